"""Figures with any names of classes."""

import csv
import warnings
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure as Canvas
from planted_analysis import UNITS, planted_analysis

from gaternet_tf.analysis.drawing import STYLE, shown_name
from gaternet_tf.analysis.figures import figures_of, write_figure


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("dog & $x^2$ <b>, crème", "dog & $x^2$ <b>, crème"),
        ("a\x01b\tc\nd\u202ee", r"a\x01b\tc\nd\u202ee"),
        # The name of a directory need not be UTF-8.
        ("caf\udce9", r"caf\udce9"),
        # The font has no such letter.
        ("\u732b", r"\u732b"),
        ("left-" * 5 + "-right" * 5, "left-left-left-l…t-right"),
    ],
)
def test_names_as_figures_show_them(name, shown):
    assert shown_name(name) == shown


def drawn(figure):
    canvas = Canvas()
    figure.draw(canvas)
    return canvas.axes[0]


def shown_ticks(axes):
    return [label.get_text() for label in axes.get_xticklabels()]


def test_every_unit_has_a_tick_and_every_nth_a_name():
    document, arrays = planted_analysis()
    names = [unit.replace("_", " ") for unit in UNITS]
    figures = figures_of(document, arrays)
    assert shown_ticks(drawn(figures["gate_kinds_by_unit"])) == names
    assert shown_ticks(drawn(figures["gate_rate_by_class"])) == names
    document["units"] = [{**document["units"][0], "name": f"block_{n}"} for n in range(1, 63)]
    axes = drawn(figures_of(document, arrays)["gate_kinds_by_unit"])
    assert shown_ticks(axes) == [f"block {n}" for n in range(1, 63, 3)]
    assert axes.get_xticks().tolist() == list(range(1, 63, 3))
    assert {*axes.get_xticks(), *axes.get_xticks(minor=True)} == set(range(1, 63))


def test_the_cells_of_heat_maps_have_their_numbers():
    document, arrays = planted_analysis()
    figures = figures_of(document, arrays)
    axes = drawn(figures["gate_rate_by_class"])
    rates = [f"{100 * rate:.0f}" for row in document["gate_rate_by_class"] for rate in row]
    assert [text.get_text() for text in axes.texts] == rates
    # The colours reach from the lowest number to the highest.
    assert axes.images[0].get_clim() == pytest.approx(
        (0, 100 * max(map(max, document["gate_rate_by_class"])))
    )
    (first, *_), *_ = figures["confusion"].rows[1:]
    right = int(((arrays["labels"] == 0) & (arrays["predictions"] == 0)).sum())
    assert (first, figures["confusion"].rows[1][1]) == (document["classes"][0], right)
    assert drawn(figures["confusion"]).texts[0].get_text() == str(right)


@pytest.mark.parametrize(
    ("total", "label"), [(1000, "full network 0.00 "), (10**8, "full network 100.00 →")]
)
def test_the_full_network_is_marked_beside_the_images_multiply_accumulates(total, label):
    document, arrays = planted_analysis()
    document["macs"]["total"] = total
    axes = drawn(figures_of(document, arrays)["macs_per_image"])
    assert [text.get_text() for text in axes.texts][1:] == [label]
    # A bar for each number of gates that are on, of 10 multiply-accumulates each.
    assert {round(bar.get_width() * 1e6) for bar in axes.patches} == {10}
    assert (axes.get_xlim()[1] * 1e6 > 1000) == (total == 1000)


def test_the_curves_are_the_metrics_of_the_training_that_there_are():
    document, arrays = planted_analysis()
    figure = figures_of(document, arrays)["training"]
    assert figure.rows[:2] == [
        [
            "epoch",
            "task_loss",
            "val_task_loss",
            "accuracy",
            "val_accuracy",
            "gate_rate",
            "val_gate_rate",
        ],
        [1, 2.0, 2.1, 0.5, 0.4, 0.5, 0.4],
    ]
    assert [line.get_ydata().tolist() for line in drawn(figure).lines] == [
        [2, 1, pytest.approx(2 / 3)],
        [2.1, 1.05, pytest.approx(0.7)],
    ]
    for record in document["training"]:
        del record["val_task_loss"]
    assert len(drawn(figures_of(document, arrays)["training"]).lines) == 1
    document["training"] = []
    assert "training" not in figures_of(document, arrays)


def test_no_name_of_a_class_spoils_a_figure(tmp_path):
    classes = ("a\x01b\n\u732b", "caf\udce9 $\\frac$", "_background" + "W" * 200)
    figures = figures_of(*planted_analysis(classes=classes))
    for name in ("t_sne", "gate_rate_by_class", "confusion"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write_figure(figures[name], tmp_path)
        ElementTree.parse(tmp_path / f"{name}.svg")
        # The tables have the whole names.
        path = tmp_path / f"{name}.csv"
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            assert {row["class"] for row in csv.DictReader(file)} == set(classes)
        # Long names leave room for the picture.
        with mpl.rc_context(STYLE):
            canvas = Canvas(figsize=(6.4, 3.6), layout="constrained")
            figures[name].draw(canvas)
            canvas.draw_without_rendering()
            assert canvas.axes[0].get_position().width > 0.25
            tight = canvas.get_tightbbox()
            assert 0 <= tight.x0 < tight.x1 <= 6.4
