"""Several runs side by side."""

import csv
import json
import os
import shutil
import warnings
from xml.etree import ElementTree

import pytest
from helpers import spoil_json

from gaternet_tf import UserError
from gaternet_tf.analysis.comparing import COLUMNS, as_markdown, compare, pareto, write_comparison


@pytest.fixture(name="runs")
def runs_fixture(tmp_path, trained):
    """Three finished runs: cheap and bad, dear and good, dear and bad."""

    def copy(name, accuracy, macs_on):
        target = tmp_path / name
        shutil.copytree(trained.path, target, ignore=shutil.ignore_patterns("checkpoints"))
        result = json.loads((target / "result.json").read_text())
        result |= {"test_accuracy": accuracy, "macs_on": macs_on}
        (target / "result.json").write_text(json.dumps(result))
        return target

    return [copy("cheap", 0.9, 1e5), copy("good", 0.95, 2e5), copy("bad", 0.9, 2e5)]


def test_a_run_that_none_beats_is_on_the_front():
    points = [(1, 0.9), (2, 0.95), (2, 0.9), (1, 0.9), (0.5, 0.1)]
    assert pareto(points) == [True, True, False, True, True]


def test_table_csv_and_figure(runs, tmp_path, run_module):
    done = run_module("gaternet_tf.analysis.compare", *runs, "--output_dir=out")
    assert done.status == 0, done.err
    assert "90.00%" in done.out
    assert done.out.count("| yes |") == 2
    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["Pareto"] for row in rows] == ["yes", "yes", "no"]
    assert [float(row["test accuracy"]) for row in rows] == [0.9, 0.95, 0.9]
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "out" / "comparison.svg").read_text()


def test_any_name_of_a_run_or_a_model_fits_table_and_figure(tmp_path):
    numbers = [0, 0.9, 10, 0.5, 5, 1e6, 5e5, "yes"]
    rows = [list(COLUMNS), ["a|b\tc\x1b[31m", "m" * 500 + "\x01 $\\frac$", *numbers]]
    assert f"| a\\|b\\tc\\x1b[31m | {'m' * 500}\\x01" in as_markdown(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_comparison(rows, tmp_path)
    ElementTree.parse(tmp_path / "comparison.svg")


@pytest.mark.parametrize("name", ["test_accuracy", "macs_on"])
def test_results_that_are_not_finite_are_refused(runs, name):
    result = json.loads((runs[1] / "result.json").read_text())
    (runs[1] / "result.json").write_text(json.dumps(result | {name: float("nan")}))
    with pytest.raises(
        UserError, match=f"finite numbers, and '{name}' in the result.json of .*nan"
    ):
        compare(runs)


def test_bad_calls_are_refused(runs, run_module):
    run_module("gaternet_tf.analysis.compare", runs[0]).assert_refused("two or more")
    with pytest.raises(UserError, match="came twice"):
        compare([runs[0], runs[0]])
    with pytest.raises(UserError, match="no directory"):
        compare([runs[0], runs[0].parent / "nowhere"])
    document = json.loads((runs[1] / "config.json").read_text())
    document["dataset"]["name"] = "cifar10"
    (runs[1] / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"one dataset, and there are digits.* and cifar10"):
        compare(runs)


def test_damaged_documents_are_refused_by_name(runs, run_module):
    cheap, good, bad = runs
    spoil_json(cheap / "config.json", "preprocessing")
    spoil_json(good / "result.json", "macs")
    os.truncate(bad / "result.json", 30)
    for run, words in [
        (cheap, ["cheap/config.json", "has no 'preprocessing'"]),
        (good, ["good/result.json", "has no 'macs'"]),
        (bad, ["bad/result.json", "bring it back from a copy"]),
    ]:
        with pytest.raises(UserError) as caught:
            compare([run, runs[0]])
        assert all(word in str(caught.value) for word in words)
    run_module("gaternet_tf.analysis.compare", bad, good).assert_refused("bad/result.json")
