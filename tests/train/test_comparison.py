"""The comparison table: groups of runs, their names, and which ones no other one beats."""

import csv

import pytest
from helpers import plant_run

from gaternet_tf import UserError
from train.comparison import as_latex, as_markdown, compare, write_comparison

GATED = "resnet20, gated by resnet20, lambda 0.1"


@pytest.fixture
def runs(tmp_path):
    """Three runs: two of a gated network that differ in their seed, one of a plain one."""
    gated = {"parameters": 547_282, "gates": 336, "macs": 62_000_000}
    plain = {"parameters": 272_186, "macs": 31_000_000, "test_accuracy": 0.905, "macs_on": 31e6}
    first = {"test_accuracy": 0.92, "gate_rate": 0.4, "macs_on": 5e7}
    second = {"test_accuracy": 0.90, "gate_rate": 0.5, "macs_on": 5.2e7}
    plant_run(tmp_path / "gated-0", gated | first, "fashion", seed=0)
    plant_run(tmp_path / "gated-1", gated | second, "fashion", seed=1)
    plant_run(tmp_path / "plain", plain, "fashion", gater="none")
    return [tmp_path / name for name in ("gated-0", "plain", "gated-1")]


def test_seeds_of_a_model_share_a_row_and_the_baseline_comes_first(runs):
    head, rule, plain, gated = as_markdown(compare(runs)).splitlines()
    assert head.startswith("| model | parameters | gates | gates on | MACs |")
    assert rule == "| " + " | ".join(["---"] * 11) + " |"
    assert plain == (
        "| resnet20 | 272,186 | - | - | 31.00 M | 31.00 M | 9.50 % | +0.00 | - | 0 | yes |"
    )
    assert gated == (
        f"| {GATED} | 547,282 | 336 | 45.0 ± 7.1 % | 62.00 M | 51.00 ± 1.41 M | 9.00 ± 1.41 % "
        "| -0.50 | - | 0,1 | yes |"
    )


def test_rows_are_ordered_and_compared_to_the_plain_backbone_with_the_same_recipe(tmp_path):
    plant_run(tmp_path / "a", {"test_accuracy": 0.85}, sparsity=1.0)
    plant_run(tmp_path / "b", {"test_accuracy": 0.86}, gater="none", width=12)
    # Without gates lambda changes nothing.
    plant_run(tmp_path / "c", {"test_accuracy": 0.80}, gater="none", sparsity=1.0)
    plant_run(tmp_path / "d", {"test_accuracy": 0.82}, gater="none", seed=1)
    plant_run(tmp_path / "e", {"test_accuracy": 0.60}, gater="none", epochs=5)
    plant_run(tmp_path / "f", {"test_accuracy": 0.61}, epochs=5)
    plant_run(tmp_path / "g", {"test_accuracy": 0.61}, backbone="resnet164")
    rows = compare(sorted(tmp_path.iterdir()))
    assert [(row.model, row.difference and round(row.difference, 6)) for row in rows] == [
        ("resnet20, epochs 160", 0),
        ("resnet20, epochs 5", 0),
        ("resnet20, width 12", -0.05),
        (GATED, -0.01),
        ("resnet20, gated by resnet20, lambda 1", -0.04),
        ("resnet164, gated by resnet20, lambda 0.1", None),
    ]


SLEEP = (
    (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0),
    (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4),
)
"""Student's data on two drugs, whose p-values are in the documentation of R's t.test."""


@pytest.mark.parametrize(
    ("first_seed", "p_value", "cells"),
    [(0, 0.002833, "| -1.58 | 0.0028 | 0-9 |"), (9, 0.07939, "| -1.58 | 0.079 | 9-18 |")],
)
def test_the_t_test_is_paired_if_three_seeds_are_shared(tmp_path, first_seed, p_value, cells):
    for seed, (gated, plain) in enumerate(zip(*SLEEP, strict=True)):
        result = {"test_accuracy": 0.9 - gated / 100}
        plant_run(tmp_path / f"gated-{seed}", result, seed=first_seed + seed)
        result = {"test_accuracy": 0.9 - plain / 100}
        plant_run(tmp_path / f"plain-{seed}", result, seed=seed, gater="none")
        if seed < 3:
            # As far from the plain backbone with each seed.
            result = {"test_accuracy": 0.95 - plain / 100}
            plant_run(tmp_path / f"wide-{seed}", result, seed=seed, gater="none", width=23)
    plant_run(tmp_path / "single", seed=20, sparsity=1.0)
    rows = compare(tmp_path.iterdir())
    assert [row.p_value for row in rows] == [None, None, pytest.approx(p_value, rel=1e-3), None]
    # Over the same seeds as the p-value, and not -0.061, the difference of the means over all.
    assert rows[1].difference == pytest.approx(-0.05)
    assert compare(tmp_path.glob("plain-[01]"))[0].p_value is None
    assert cells in as_markdown(rows)


def test_any_row_may_be_the_one_to_compare_with(tmp_path):
    for number, (width, epochs) in enumerate([(16, 5), (23, 5), (16, 9), (23, 9), (12, 9)]):
        settings = {"gater": "none", "width": width, "epochs": epochs}
        plant_run(tmp_path / str(number), {"test_accuracy": 0.8 + number / 100}, **settings)
    runs = sorted(tmp_path.iterdir())
    differences = [round(row.difference, 6) for row in compare(runs, "*width 23*")]
    assert differences == [0.01, 0.01, -0.01, 0, 0]
    with pytest.raises(UserError, match=r"'\*width\*', which matches '.*width 12' and '.*width 23"):
        compare(runs, "*width*")
    with pytest.raises(UserError, match=r"got 'wide'; the rows are 'resnet20, epochs 5', '"):
        compare(runs, "wide")


def test_multiply_accumulates_have_four_significant_digits(tmp_path):
    for seed, macs in enumerate((1.465e6, 1.528e6, 254.96e6, 4089.2e6)):
        plant_run(tmp_path / str(seed), {"macs": macs}, gater="none", width=seed + 1)
    lines = as_markdown(compare(sorted(tmp_path.iterdir()))).splitlines()
    macs = [line.split(" | ")[4] for line in lines[2:]]
    assert macs == ["1.465 M", "1.528 M", "255.0 M", "4089 M"]


def test_latex_has_the_same_cells(runs, tmp_path):
    plant_run(tmp_path / "other", dataset="folder:a_b", backbone="resnet8")
    begin, top, head, middle, plain, gated, other, *end = as_latex(
        compare([*runs, tmp_path / "other"])
    ).splitlines()
    assert (begin, top, middle) == (r"\begin{tabular}{llrrrrrrrrrr}", r"\toprule", r"\midrule")
    assert head.startswith("dataset & model & parameters & ")
    assert other.startswith(r"folder:a\_b & resnet8, gated by resnet20, lambda 0.1 & ")
    assert plain.startswith("fashion & resnet20 & ")
    assert gated == (
        rf"fashion & {GATED} & 547,282 & 336 & 45.0 $\pm$ 7.1 \% & 62.00 M & 51.00 $\pm$ 1.41 M "
        r"& 9.00 $\pm$ 1.41 \% & $-$0.50 & - & 0,1 & yes \\"
    )
    assert end == [r"\bottomrule", r"\end{tabular}"]


def test_a_model_that_none_beats_is_marked(tmp_path):
    points = [(1e6, 0.9), (2e6, 0.95), (2e6, 0.9), (0.5e6, 0.1)]
    for number, (macs, accuracy) in enumerate(points):
        result = {"macs_on": macs, "test_accuracy": accuracy}
        plant_run(tmp_path / str(number), result, sparsity=float(number))
    # Another dataset is another comparison.
    plant_run(tmp_path / "4", {"macs_on": 1.0, "test_accuracy": 1.0}, dataset="digits")
    rows = compare(sorted(tmp_path.iterdir()))
    assert [row.pareto for row in rows] == [True, True, False, True, True]


def test_pareto_compares_means_and_not_the_lucky_seed(tmp_path):
    for seed, accuracy in enumerate((0.95, 0.85)):
        plant_run(tmp_path / str(seed), {"test_accuracy": accuracy, "macs_on": 3e6}, seed=seed)
    plant_run(tmp_path / "2", {"test_accuracy": 0.91, "macs_on": 2e6}, sparsity=1.0)
    assert [row.pareto for row in compare(sorted(tmp_path.iterdir()))] == [False, True]


def test_the_csv_and_the_figure_have_the_numbers(runs, tmp_path):
    write_comparison(compare(runs), tmp_path / "out")
    with (tmp_path / "out" / "comparison.csv").open() as file:
        plain, gated = csv.DictReader(file)
    assert float(gated["test accuracy"]) == pytest.approx(0.91)
    assert float(gated["test error difference"]) == pytest.approx(-0.005)
    assert (gated["runs"], gated["seeds"], gated["p-value"]) == ("2", "0 1", "")
    assert float(gated["gate rate"]) == pytest.approx(0.45)
    assert float(gated["MACs without off filters std"]) == pytest.approx(2**0.5 * 1e6)
    assert plain["gate rate"] == plain["test accuracy std"] == ""
    assert gated["Pareto"] == plain["Pareto"] == "yes"
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "out" / "comparison.svg").read_text()


def test_rows_of_the_same_name_have_the_settings_that_differ(tmp_path):
    plant_run(tmp_path / "a", dataset="fashion", epochs=20, seed=3)
    plant_run(tmp_path / "b", dataset="fashion", epochs=5, validation=0.2)
    plant_run(tmp_path / "c", dataset="fashion", epochs=20, validation=0.2, flip=True)
    plant_run(tmp_path / "other-data", dataset="digits", epochs=2)
    plant_run(tmp_path / "other-name", dataset="fashion", epochs=1, sparsity=0.5)
    assert [row.model for row in compare(sorted(tmp_path.iterdir()))] == [
        GATED,
        f"{GATED}, flip default, validation default, epochs 20",
        f"{GATED}, flip default, validation 0.2, epochs 5",
        f"{GATED}, flip True, validation 0.2, epochs 20",
        "resnet20, gated by resnet20, lambda 0.5",
    ]


def test_a_seed_counts_once_and_a_converted_run_not_at_all(tmp_path):
    plant_run(tmp_path / "base", seed=4)
    plant_run(tmp_path / "copy", seed=4)
    with pytest.raises(UserError, match=r"'.*/base' and '.*/copy' have .*--seed=4; leave one out"):
        compare([tmp_path / "base", tmp_path / "copy"])
    run = plant_run(tmp_path / "converted")
    run.write_result({"parameters": 1, "converted_from": {"file": "a.pth"}})
    with pytest.raises(UserError, match=r"converted.*train\.evaluate"):
        compare([run.path])
