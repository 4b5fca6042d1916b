"""python -m train.table as a user types it."""

import csv
import json

import pytest

from gaternet_tf.documents import write_json


@pytest.fixture
def runs(tmp_path):
    """Three runs: two of a gated network that differ in their seed, one of a plain one."""
    config = {
        "backbone": "resnet20",
        "width": 16,
        "gater": "resnet20",
        "attention": "none",
        "head_batch_norm": True,
        "gated_convs": "last",
        "sparsity": 0.1,
    }
    result = {"parameters": 547_282, "gates": 336, "macs": 62_000_000}
    for name, changes, numbers in [
        ("gated-0", {"seed": 0}, {"test_accuracy": 0.92, "gate_rate": 0.4, "macs_on": 5e7}),
        ("gated-1", {"seed": 1}, {"test_accuracy": 0.90, "gate_rate": 0.5, "macs_on": 5.2e7}),
        ("plain", {"seed": 0, "gater": "none"}, {"test_accuracy": 0.915, "macs_on": 31e6}),
    ]:
        (tmp_path / name).mkdir()
        document = {
            "format": "gaternet-run-1",
            "config": config | changes,
            "dataset": {"name": "fashion"},
        }
        if name == "plain":
            result = {"parameters": 272_186, "macs": 31_000_000}
        write_json(tmp_path / name / "config.json", document)
        write_json(tmp_path / name / "result.json", result | numbers)
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
    path.write_text(json.dumps({"parameters": 1}))
    run_module("train.table", "plain", cwd=runs).assert_refused("converted", "train.evaluate")
