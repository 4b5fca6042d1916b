"""python -m train.table as a user types it."""

import csv
import json
import os
import shutil

import pytest
from helpers import plant_run, spoil_json

from gaternet_tf import UserError
from train.comparison import table_rows


@pytest.fixture
def runs(tmp_path):
    """Three runs: two of a gated network that differ in their seed, one of a plain one."""
    gated = {"parameters": 547_282, "gates": 336, "macs": 62_000_000}
    plain = {"parameters": 272_186, "macs": 31_000_000, "test_accuracy": 0.915, "macs_on": 31e6}
    first = {"test_accuracy": 0.92, "gate_rate": 0.4, "macs_on": 5e7}
    second = {"test_accuracy": 0.90, "gate_rate": 0.5, "macs_on": 5.2e7}
    plant_run(tmp_path / "gated-0", gated | first, "fashion", seed=0)
    plant_run(tmp_path / "gated-1", gated | second, "fashion", seed=1)
    plant_run(tmp_path / "plain", plain, "fashion", gater="none")
    return tmp_path


def test_prints_markdown(run_module, runs):
    done = run_module("train.table", "gated-0", "plain", "gated-1", cwd=runs)
    assert done.status == 0, done.err
    head, rule, gated, plain = done.out.splitlines()
    assert head.startswith("| dataset | model | parameters | gates | gates on | MACs |")
    assert rule == "| " + " | ".join(["---"] * 9) + " |"
    assert gated == (
        "| fashion | resnet20, gated by resnet20, lambda 0.1 | 547,282 | 336 | 45.0 % | 62.0 M "
        "| 51.0 M | 9.00 +- 1.41 % | 2 |"
    )
    assert plain == "| fashion | resnet20 | 272,186 | - | - | 31.0 M | 31.0 M | 8.50 % | 1 |"


def test_prints_csv(run_module, runs):
    done = run_module("train.table", "--format=csv", "gated-0", "gated-1", cwd=runs)
    rows = list(csv.DictReader(done.out.splitlines()))
    assert [row["test error"] for row in rows] == ["9.00 +- 1.41 %"]
    assert rows[0]["model"] == "resnet20, gated by resnet20, lambda 0.1"


def test_bad_input_is_refused(run_module, runs):
    run_module("train.table", cwd=runs).assert_refused("directories of finished runs")
    run_module("train.table", "nowhere", cwd=runs).assert_refused("no directory 'nowhere'")
    run_module("train.table", "plain", "./plain", cwd=runs).assert_refused("came twice")
    path = runs / "plain" / "result.json"
    path.write_text(json.dumps({"parameters": 1, "converted_from": {"file": "a.pth"}}))
    run_module("train.table", "plain", cwd=runs).assert_refused("converted", "train.evaluate")


def test_damaged_documents_are_refused_by_name(run_module, runs):
    os.truncate(runs / "gated-0" / "result.json", 30)
    done = run_module("train.table", "plain", "gated-0", cwd=runs)
    done.assert_refused("gated-0/result.json", "bring it back from a copy")
    spoil_json(runs / "gated-1" / "result.json", "macs")
    done = run_module("train.table", "gated-1", cwd=runs)
    done.assert_refused("gated-1/result.json", "has no 'macs'")
    spoil_json(runs / "plain" / "config.json", "config")
    done = run_module("train.table", "plain", cwd=runs)
    done.assert_refused("plain/config.json", "has no 'config'")


def test_rows_of_the_same_name_tell_what_differs(tmp_path):
    plant_run(tmp_path / "a", dataset="fashion", epochs=20, seed=3)
    plant_run(tmp_path / "b", dataset="fashion", epochs=5, validation=0.2)
    plant_run(tmp_path / "c", dataset="fashion", epochs=20, validation=0.2, flip=True)
    plant_run(tmp_path / "other-data", dataset="digits", epochs=2)
    plant_run(tmp_path / "other-name", dataset="fashion", epochs=1, sparsity=0.5)
    names = [row[1] for row in table_rows(sorted(tmp_path.iterdir()))[1:]]
    gated = "resnet20, gated by resnet20, lambda 0.1"
    assert names == [
        f"{gated}, flip default, validation default, epochs 20",
        f"{gated}, flip default, validation 0.2, epochs 5",
        f"{gated}, flip True, validation 0.2, epochs 20",
        gated,
        "resnet20, gated by resnet20, lambda 0.5",
    ]


def test_a_run_from_before_there_was_a_setting_has_its_default(tmp_path):
    plant_run(tmp_path / "new", seed=0)
    plant_run(tmp_path / "old", seed=1)
    spoil_json(tmp_path / "old" / "config.json", "config", "gate_bias")
    (row,) = table_rows([tmp_path / "new", tmp_path / "old"])[1:]
    assert row[1] == "resnet20, gated by resnet20, lambda 0.1"
    assert row[-1] == "2"


def test_a_seed_counts_once(tmp_path):
    plant_run(tmp_path / "base", seed=4)
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    with pytest.raises(UserError, match=r"'.*/base' and '.*/copy' have .*--seed=4; leave one out"):
        table_rows([tmp_path / "base", tmp_path / "copy"])
    spoil_json(tmp_path / "copy" / "config.json", "config", "seed", value=5)
    assert table_rows([tmp_path / "base", tmp_path / "copy"])[1][-1] == "2"
