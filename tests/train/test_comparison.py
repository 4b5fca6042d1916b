"""The comparison table: groups of runs, their names, and which ones no other one beats."""

import csv

import pytest
from helpers import plant_run

from gaternet_tf import UserError
from train.comparison import as_markdown, compare, write_comparison

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


def test_seeds_of_a_model_share_a_row(runs):
    head, rule, gated, plain = as_markdown(compare(runs)).splitlines()
    assert head.startswith("| dataset | model | parameters | gates | gates on | MACs |")
    assert rule == "| " + " | ".join(["---"] * 10) + " |"
    assert gated == (
        f"| fashion | {GATED} | 547,282 | 336 | 45.0 % | 62.0 M | 51.0 M | 9.00 +- 1.41 % | 2 "
        "| yes |"
    )
    assert plain == (
        "| fashion | resnet20 | 272,186 | - | - | 31.0 M | 31.0 M | 9.50 % | 1 | yes |"
    )


def test_a_model_that_none_beats_is_marked(tmp_path):
    points = [(1e6, 0.9), (2e6, 0.95), (2e6, 0.9), (0.5e6, 0.1)]
    for number, (macs, accuracy) in enumerate(points):
        result = {"macs_on": macs, "test_accuracy": accuracy}
        plant_run(tmp_path / str(number), result, sparsity=float(number))
    # Another dataset is another comparison.
    plant_run(tmp_path / "4", {"macs_on": 1.0, "test_accuracy": 1.0}, dataset="digits")
    rows = compare(sorted(tmp_path.iterdir()))
    assert [row.pareto for row in rows] == [True, True, False, True, True]


def test_the_csv_has_the_numbers(runs, tmp_path):
    write_comparison(compare(runs), tmp_path / "out")
    with (tmp_path / "out" / "comparison.csv").open() as file:
        gated, plain = csv.DictReader(file)
    assert float(gated["test accuracy"]) == pytest.approx(0.91)
    assert float(gated["gate rate"]) == pytest.approx(0.45)
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
        f"{GATED}, flip default, validation default, epochs 20",
        f"{GATED}, flip default, validation 0.2, epochs 5",
        f"{GATED}, flip True, validation 0.2, epochs 20",
        GATED,
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
