"""python -m train.evaluate as a user types it."""

import json
import re

import pytest


def test_gives_the_numbers_of_the_training_run(run_module, trained, data_dir):
    done = run_module("train.evaluate", f"--workdir={trained.path}", f"--data_dir={data_dir}")
    assert done.status == 0, done.err
    first, second, third = done.out.splitlines()
    assert first == "dataset digits 1.0.0, split 'test'"
    shown = re.fullmatch(r"test accuracy ([\d.]+)% \((\d+) of 360\), test loss ([\d.]+)", second)
    assert int(shown[2]) / 360 == trained.result["test_accuracy"]
    assert float(shown[3]) == pytest.approx(trained.result["test_loss"], abs=1e-4)
    assert third.startswith("gates: 112, ")
    written = json.loads((trained.path / "evaluation-digits-test.json").read_text())
    assert written["accuracy"] == trained.result["test_accuracy"]
    for key, value in trained.result.items():
        if key.startswith("gate"):
            assert written[key] == pytest.approx(value), key


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workdir=nowhere"], ["no directory 'nowhere'"]),
        (["--dataset=no_such_set"], ["--dataset", "no_such_set"]),
        (["--dataset=cifar10", "--nodownload"], ["cifar10", "--data_dir"]),
        (["run"], ["takes flags only", "run"]),
        (["--batch_size=0"], ["--batch_size", "0"]),
    ],
)
def test_bad_input_is_refused(run_module, trained, data_dir, flags, words):
    flags = [f"--workdir={trained.path}", f"--data_dir={data_dir}", *flags]
    run_module("train.evaluate", *flags).assert_refused(*words)


def test_the_workdir_is_required(run_module):
    run_module("train.evaluate").assert_refused("--workdir", "must have a value")
