"""The report in headless Chromium: what a person sees and does."""

import re
import shutil

import numpy as np
import pytest
from axe_core_python.sync_playwright import Axe
from planted_analysis import CLASSES, UNITS, planted_analysis, planted_gates
from playwright.sync_api import sync_playwright

from gaternet_tf.analysis.report import draw, headlines

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)


def drawn(analysis, directory):
    draw(*analysis, directory)
    return directory / "report.html"


@pytest.fixture(scope="module")
def analysis():
    return planted_analysis()


@pytest.fixture(scope="module")
def report(analysis, tmp_path_factory):
    return drawn(analysis, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip(f"no browser on the PATH ({', '.join(NAMES)})")
    with sync_playwright() as playwright:
        # Without a sandbox it also starts for root, as in containers; it opens our own file only.
        launched = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser):
    """Opens a file; by the end of the test it must have logged and fetched nothing."""
    pages, complaints = [], []

    def call(path, width=1100, height=900):
        page = browser.new_page(viewport={"width": width, "height": height})
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: fetched(request.url, path))
        page.goto(path.as_uri())
        return page

    def fetched(url, path):
        if not url.startswith("data:") and url != path.as_uri():
            complaints.append(url)

    yield call
    for page in pages:
        page.close()
    assert complaints == []


def test_the_headlines_name_another_dataset_than_the_networks_first():
    own, _ = planted_analysis()
    other, _ = planted_analysis(dataset={"name": "digits", "version": "1.0.0"})
    first, *rest = headlines(other)
    assert first.startswith("The network was trained on digits 1.0.0, and all numbers here are of")
    assert "another dataset, planted 1.0.0." in first
    assert headlines(own) == rest


def test_the_headlines_are_the_numbers(open_page, report):
    text = open_page(report).inner_text(".headlines")
    assert "Of 24 gates, 20 depend on the input, 0 are always on and 4 always off." in text
    assert "The last gated layer of 1 unit is off for every image: stage1 unit1." in text


def test_pointing_at_an_image_shows_it_with_class_and_prediction(open_page, analysis, report):
    page = open_page(report)
    canvas = page.locator("#points")
    assert not page.locator("#card .picture").is_visible()
    canvas.scroll_into_view_if_needed()
    arrays = analysis[1]
    points, labels, predictions = (arrays[name] for name in ("points", "labels", "predictions"))
    low, high = points.min(axis=0), points.max(axis=0)
    box = canvas.bounding_box()
    for image in (0, 41):
        x, y = (points[image] - low) / (high - low)
        inner = [box["width"] - 24 - 2, box["height"] - 24 - 2]
        page.mouse.move(
            box["x"] + 13 + float(x) * inner[0], box["y"] + 13 + float(1 - y) * inner[1]
        )
        text = page.inner_text("#card")
        assert f"image {image}: {CLASSES[labels[image]]}" in text
        assert f"predicted {CLASSES[predictions[image]]}" in text
        assert page.locator("#card .picture").is_visible()


def test_the_keyboard_goes_from_image_to_image(open_page, report):
    page = open_page(report)
    page.locator("#points").focus()
    seen = set()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
        seen.add(page.inner_text("#card"))
    assert len(seen) >= 3
    assert all(text.startswith("image ") for text in seen)


def test_choosing_a_class_marks_it_everywhere(open_page, report):
    page = open_page(report)
    before = page.locator("#points").screenshot()
    page.click(".choose button[data-class='1']")
    assert page.locator(".choose button[data-class='1']").get_attribute("aria-pressed") == "true"
    chosen = page.locator("tr.chosen th")
    legend = page.locator("ul.legend li")
    assert legend.all_inner_texts() == list(CLASSES)
    assert legend.locator("svg").count() == 3
    assert chosen.all_inner_texts() == [CLASSES[1]] * 2
    assert page.locator("details.class-gates[open] summary").all_inner_texts() == [CLASSES[1]]
    assert page.locator("#points").screenshot() != before
    page.click(".choose button[data-class='-1']")
    assert page.locator("tr.chosen").count() == 0


def test_the_table_of_units_sorts(open_page, report):
    page = open_page(report)
    table = page.locator("table.sortable")
    rates = table.locator("tbody td:nth-child(6)")
    button = table.get_by_role("button", name="gates on, %")
    for direction, sign in (("ascending", 1), ("descending", -1)):
        button.click()
        assert table.locator(f"th[aria-sort={direction}]").inner_text() == "gates on, %"
        values = [float(text) for text in rates.all_inner_texts()]
        assert values == sorted(values, key=lambda value: sign * value)
    table.get_by_role("button", name="unit", exact=True).click()
    assert table.locator("tbody th").all_inner_texts() == [unit.replace("_", " ") for unit in UNITS]


def test_no_table_is_cut_on_a_wide_screen(open_page, report):
    page = open_page(report, 1200)
    assert page.locator("table.heat").is_visible()
    cut = "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth)"
    assert page.evaluate(f"{cut}.map((e) => e.ariaLabel)") == []


def test_the_heat_map_reaches_from_light_to_dark(report):
    cells = re.findall(r'<td style="background:(.*?);color:(.*?)">(\d+)</td>', report.read_text())
    numbers = [int(number) for *_, number in cells]
    assert ("#f7fbff", "#000000", str(min(numbers))) in cells
    assert ("#08306b", "#ffffff", str(max(numbers))) in cells


@pytest.fixture(scope="module")
def long_words(tmp_path_factory):
    """A report in which every name is long."""
    word = "Wortungetüm" * 20
    analysis = planted_analysis(
        classes=(word, "c" * 300, "dog"),
        path=f"runs/{word}",
        dataset={"name": f"folder:{word}", "version": "1.0.0"},
    )
    return drawn(analysis, tmp_path_factory.mktemp("long"))


@pytest.mark.parametrize(("which", "width"), [("report", 1100), ("long_words", 360)])
def test_it_is_accessible_and_fits_a_phone(open_page, request, which, width):
    page = open_page(request.getfixturevalue(which), width)
    page.click(".choose button[data-class='0']")
    page.locator("#points").press("ArrowRight")
    page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Nor is anything cut off where the page does not scroll; tables scroll in themselves.
    beyond = """(width) => [...document.querySelectorAll("body *")].filter((each) =>
        !each.closest(".scroll") && each.getBoundingClientRect().right > width)
        .map((each) => each.outerHTML.slice(0, 80))"""
    assert page.evaluate(beyond, width) == []
    violations = Axe().run(page)["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in violations] == []
    for image in page.locator("figure img").all():
        assert len(image.get_attribute("alt")) > 40
        assert image.evaluate("(image) => image.naturalWidth") > 300
    # Printed, it hides what cannot be pressed.
    page.emulate_media(media="print")
    assert not page.locator(".choose").is_visible()
    assert page.locator("table.sortable").is_visible()


@pytest.mark.parametrize(
    ("gates", "absent"),
    [
        (np.ones((30, 24)), "no gate depends on the input"),
        (planted_gates()[:9], "needs more than 30 different gate vectors"),
    ],
)
def test_numbers_that_do_not_exist_are_explained(open_page, tmp_path, gates, absent):
    (tmp_path / "t_sne.png").write_text("of an earlier analysis")
    page = open_page(drawn(planted_analysis(gates, git_commit=None), tmp_path))
    assert "git commit unknown" in page.inner_text("main")
    assert absent in page.inner_text("main")
    page.click(".choose button[data-class='1']")
    assert not (tmp_path / "t_sne.png").exists()
