"""Runs that end before their time, through the real command, and what resuming makes of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, run_python

from gaternet_tf.runs import RunDirectory, open_run


def command(data_dir, workdir):
    flags = ["--dataset=digits", f"--data_dir={data_dir}", f"--workdir={workdir}"]
    flags += ["--backbone=resnet8", "--gater=resnet8", "--epochs=3", "--batch_size=16"]
    return [sys.executable, "-m", "train.main", *flags, "--deterministic"]


def start(data_dir, workdir):
    return subprocess.Popen(
        command(data_dir, workdir),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(process, workdir):
    """Returns when the first epoch is saved; the next epoch then runs."""
    while not (workdir / "checkpoints" / "checkpoint").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def unbroken(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    subprocess.run(
        command(data_dir, workdir), env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
    )
    return open_run(workdir)


def assert_equal(run, unbroken):
    """The same weights, to the bit, and an epoch log without gap or double."""
    assert [record["epoch"] for record in run.metrics()] == [1, 2, 3]
    for ours, theirs in zip(run.load_model().weights, unbroken.load_model().weights, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)
    assert run.result["test_loss"] == unbroken.result["test_loss"]


def end_within_an_epoch(number, data_dir, tmp_path):
    """Sends a run the signal in the middle of an epoch; its directory, exit status and errors.

    On a machine that is busy a signal may come after the epoch, or after all of them: then another
    run is tried.
    """
    for attempt in range(5):
        workdir = tmp_path / f"run{attempt}"
        with start(data_dir, workdir) as process:
            wait_for_checkpoint(process, workdir)
            time.sleep(0.1)
            process.send_signal(number)
            _, err = process.communicate(timeout=300)
        if number == signal.SIGTERM:
            in_time = "saved after step" in err
        else:
            in_time = not RunDirectory(workdir).finished
        if in_time:
            return workdir, process.returncode, err
    pytest.fail("the signal always came too late")


def test_killed_in_the_middle_of_an_epoch_it_ends_where_an_unbroken_run_ends(
    data_dir, tmp_path, unbroken
):
    workdir, status, _ = end_within_an_epoch(signal.SIGKILL, data_dir, tmp_path)
    assert status == -signal.SIGKILL
    assert not RunDirectory(workdir).finished
    with start(data_dir, workdir) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "resuming after epoch " in out
    assert_equal(open_run(workdir), unbroken)


def test_sigterm_saves_in_the_middle_of_an_epoch_and_exits(data_dir, tmp_path, unbroken):
    workdir, status, err = end_within_an_epoch(signal.SIGTERM, data_dir, tmp_path)
    assert status == 1
    assert "train.main: saved after step " in err
    assert "the same command resumes it" in err
    assert "Traceback" not in err
    with start(data_dir, workdir) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert " steps" in out.partition("resuming after epoch ")[2].splitlines()[0]
    assert_equal(open_run(workdir), unbroken)


def test_another_number_of_replicas_is_no_repetition_and_refused(data_dir, tmp_path, unbroken):
    shutil.copytree(unbroken.path, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    run.result_file.unlink()
    document = json.loads(run.config_file.read_text())
    run.config_file.write_text(json.dumps({**document, "replicas": 4}))
    _, *arguments = command(data_dir, run.path)
    done = run_python(*arguments, cwd=tmp_path)
    assert done.status == 1
    assert "as many replicas as it began on, 4, and here are 1" in done.err
    assert not run.result_file.exists()
