"""Combinations of settings, the names of their runs, and a sweep that goes on."""

import importlib
import re
import signal
import sys

import pytest
from absl import flags
from helpers import plant_run, run_module, running

from gaternet_tf import UserError
from gaternet_tf.runs import open_run


@pytest.fixture(name="combinations", scope="module")
def combinations_fixture():
    """The function; its module's flags must not stay for other commands in this process."""
    before = set(flags.FLAGS)
    yield importlib.import_module("train.sweep").combinations
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    for module in ("train.sweep", "train.main"):
        del sys.modules[module]


def test_every_combination_is_a_run_with_a_name_of_its_own(combinations):
    arguments = ["", "--gater=none,resnet8", "--sparsity=0,0.10", "--seeds=0,1", "--data_dir=a,b"]
    gated = ["--data_dir=a,b", "--gater=resnet8"]
    name = "runs/cifar10-resnet20-gater_resnet8"
    runs = {
        "runs/cifar10-resnet20-gater_none-0": ["--data_dir=a,b", "--gater=none", "--seed=0"],
        "runs/cifar10-resnet20-gater_none-1": ["--data_dir=a,b", "--gater=none", "--seed=1"],
        f"{name}-sparsity_0.0-0": [*gated, "--sparsity=0.0", "--seed=0"],
        f"{name}-sparsity_0.0-1": [*gated, "--sparsity=0.0", "--seed=1"],
        f"{name}-0": [*gated, "--sparsity=0.1", "--seed=0"],
        f"{name}-1": [*gated, "--sparsity=0.1", "--seed=1"],
    }
    assert combinations(arguments) == runs
    # With another value the names of these runs stay.
    arguments[2] += ",1"
    assert runs.items() <= combinations(arguments).items()


def test_settings_of_gates_are_left_out_of_experiments_without_a_gater(combinations):
    names = "fashion-*20-plain,fashion-resnet20-gated"
    assert list(
        combinations(["", f"--experiment={names}", "--sparsity=0,0.1", "--nodownload"])
    ) == [
        "runs/fashion-resnet20-plain-0",
        "runs/fashion-resnet20-gated-sparsity_0.0-0",
        "runs/fashion-resnet20-gated-0",
    ]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--sparsity=0,-1", "--sparsity=-1: -1.0 is not a non-negative number"),
        ("--optimizer=sgd,lion", "--optimizer=lion"),
        ("--experiment=fashion-resnet20-plain,other", "got 'other'"),
        ("--widht=16,23", "Did you mean: width"),
        ("--workdir=here", "except for --workdir"),
        ("resnet8", "got 'resnet8'"),
        ("--dataset=folder:a/b,folder:a-b", "would both have 'runs/folder-a-b-resnet20-0'"),
    ],
)
def test_every_value_is_checked_before_anything_starts(combinations, flag, words):
    with pytest.raises(UserError, match=re.escape(words)):
        combinations(["", flag])


SETTINGS = {"backbone": "resnet8", "gater": "none", "dataset": "digits", "epochs": 1}
SETTINGS |= {"steps_per_epoch": 1, "batch_size": 32}
FLAGS = [f"--{name}={value}" for name, value in SETTINGS.items()]
NAME = "runs/digits-resnet8-batch_size_32-epochs_1-gater_none-steps_per_epoch_1"


def test_a_sweep_trains_what_is_missing_and_names_what_failed(data_dir, tmp_path):
    plant_run(tmp_path / f"{NAME}-1", {"test_accuracy": 1.0}, **SETTINGS, seed=1)
    foreign = tmp_path / f"{NAME}-2"
    foreign.mkdir()
    (foreign / "note.txt").write_text("mine")
    arguments = [*FLAGS, f"--data_dir={data_dir}", "--seeds=0,2,1", "--jobs=2"]
    done = run_module("train.sweep", *arguments, cwd=tmp_path)
    first, second, third, head, _, *rows = done.out.splitlines()
    assert first == "3 runs, 1 of them finished"
    assert [second, third] == [f"[1/2] {NAME}-0", f"[2/2] {NAME}-2"]
    assert head.startswith("| model | parameters |")
    # The planted run lacks the settings that are the dataset's, so it has a row of its own.
    assert len(rows) == 2
    assert done.status == 1
    assert f"1 of 3 runs failed: {NAME}-2; their output is in runs/logs\n" in done.err
    log = tmp_path / NAME.replace("runs/", "runs/logs/")
    assert "holds other files (note.txt)" in log.with_name(f"{log.name}-2.log").read_text()
    assert open_run(tmp_path / f"{NAME}-0").config["seed"] == 0


def test_a_signal_stops_the_runs_and_the_sweep(tmp_path):
    with running("train.sweep", *FLAGS, "--seeds=0,1", cwd=tmp_path) as process:
        assert any(line.startswith("[1/2]") for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "[2/2]" not in out
    assert err.endswith("train.sweep: stopped; the same command goes on\n")
