"""Runs that are ended by signals, through the real command, end where an unbroken run ends."""

import signal

import numpy as np
import pytest
from helpers import run_python

from gaternet_tf.runs import RunDirectory, open_run

STEPS = 4
TRAIN_AND_SIGNAL = """
import os, runpy, signal, sys
from train.callbacks import StopOnNonFinite

number, step = getattr(signal, sys.argv[1]), int(sys.argv[2])
check = StopOnNonFinite.on_train_batch_end

def check_and_signal(self, batch, logs=None):
    check(self, batch, logs)
    if self.model.optimizer.iterations.numpy() == step:
        os.kill(os.getpid(), number)

StopOnNonFinite.on_train_batch_end = check_and_signal
sys.argv = ["train.main", *sys.argv[3:]]
runpy.run_module("train.main", run_name="__main__", alter_sys=True)
"""
"""`train.main`, which sends itself a signal at the end of a step."""


@pytest.fixture(scope="module", name="train_main")
def train_main_fixture(data_dir, tmp_path_factory):
    """Runs the command into `workdir`; it sends itself the signal after the step, if given."""
    directory = tmp_path_factory.mktemp("resumed")

    def run(workdir, name=None, step=0):
        flags = ["--dataset=digits", f"--data_dir={data_dir}", f"--workdir={directory / workdir}"]
        flags += ["--backbone=resnet8", "--gater=resnet8", "--epochs=3", "--batch_size=16"]
        flags += [f"--steps_per_epoch={STEPS}", "--deterministic"]
        flags += ["--freeze_backbone_epochs=1"]
        before = ["-c", TRAIN_AND_SIGNAL, name, step] if name else ["-m", "train.main"]
        return run_python(*before, *flags, cwd=directory), directory / workdir

    return run


@pytest.fixture(scope="module", name="unbroken")
def unbroken_fixture(train_main):
    done, workdir = train_main("unbroken")
    assert done.status == 0, done.err
    return done, open_run(workdir)


def test_training_prints_a_line_per_epoch_and_no_progress_bar_off_a_terminal(unbroken):
    done, run = unbroken
    lines = [line for line in done.out.splitlines() if line]
    assert lines[0] == "resnet8, gater resnet8: 156,402 parameters, 112 gates"
    assert "1294 images of 'train' train, 143 validate, 360 of 'test' test" in lines[1]
    assert lines[2].startswith("pictures 8 x 8 x 1, from 0 to 1 minus 0.")
    assert "3 epochs of 4 steps, batch 16 on 1 replica, into" in lines[3]
    assert lines[4].startswith("note: networks learn little in 12 steps; raise --epochs")
    assert [line.split()[:2] for line in lines[5:8]] == [["epoch", f"{n}/3"] for n in (1, 2, 3)]
    best = run.result["selected_epoch"]
    assert "(best)" in lines[4 + best]
    assert lines[8].startswith(f"weights of epoch {best}")
    assert lines[9].startswith("test accuracy ")
    assert lines[10].startswith("gates: 112, ")
    assert "\r" not in done.out
    assert done.err == ""
    assert {path.name for path in run.path.iterdir()} == {
        *("checkpoints", "config.json", "metrics.jsonl", "model.keras", "pictures"),
        *("result.json", "tensorboard"),
    }


def test_a_killed_and_a_stopped_run_end_where_an_unbroken_run_ends(train_main, unbroken):
    killed, workdir = train_main("broken", "SIGKILL", STEPS + 2)
    assert killed.status == -signal.SIGKILL
    assert not RunDirectory(workdir).finished

    stopped, _ = train_main("broken", "SIGTERM", 2 * STEPS + 1)
    assert stopped.status == 1
    assert "resuming after epoch 1\n" in stopped.out
    assert "saved after step 1 of epoch 3; the same command resumes it" in stopped.err
    assert "Traceback" not in stopped.err

    interrupted, _ = train_main("broken", "SIGINT", 2 * STEPS + 2)
    assert interrupted.status == 1
    assert "resuming after step 1 of epoch 3\n" in interrupted.out
    assert "saved after step 2 of epoch 3; the same command resumes it" in interrupted.err

    resumed, _ = train_main("broken")
    assert resumed.status == 0, resumed.err
    assert "resuming after step 2 of epoch 3\n" in resumed.out
    run, (_, whole) = open_run(workdir), unbroken
    assert [record["epoch"] for record in run.metrics()] == [1, 2, 3]
    for ours, theirs in zip(run.load_model().weights, whole.load_model().weights, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)
    assert run.result["test_loss"] == whole.result["test_loss"]
