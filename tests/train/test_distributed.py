"""One device, two replicas and two machines, through the real command, end at the same weights."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, run_module

from gaternet_tf.runs import open_run

FLAGS = ["--dataset=digits", "--backbone=resnet8", "--batch_size=16", "--steps_per_epoch=2"]
FLAGS += ["--learning_rate=0.02", "--deterministic"]
GATED = ["--gater=resnet8", "--epochs=2"]
PLAIN = ["--gater=none", "--epochs=1"]


def single(data_dir, workdir, *flags):
    done = run_module(
        "train.main", *FLAGS, f"--data_dir={data_dir}", f"--workdir={workdir}", *flags, cwd=ROOT
    )
    assert done.status == 0, done.err
    return open_run(workdir)


@contextlib.contextmanager
def two_workers(data_dir, workdir, *flags, second_workdir=None):
    """Both machines' processes; they are killed at the end if they still run.

    The second one gets the `workdir` of the first, unless it is given another.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{free.getsockname()[1]}" for free in sockets]
    processes = []
    for index in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        command = [sys.executable, "-m", "train.main", *FLAGS, f"--data_dir={data_dir}"]
        place = second_workdir if second_workdir and index else workdir
        command += [f"--workdir={place}", "--strategy=multi_worker", *flags]
        processes.append(
            subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CONFIG": json.dumps(config)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def outputs(processes):
    return [process.communicate(timeout=300) for process in processes]


def assert_close(run, other, tolerance=5e-6):
    for ours, theirs in zip(run.load_model().weights, other.load_model().weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=ours.path)


@pytest.fixture(scope="module")
def two_replicas(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "replicas"
    return single(data_dir, workdir, "--strategy=mirrored", "--logical_cpus=2", *GATED)


def test_one_and_two_replicas_agree(data_dir, tmp_path):
    # Without gates, because every replica draws its own noise.
    one = single(data_dir, tmp_path / "one", *PLAIN)
    flags = ["--strategy=mirrored", "--logical_cpus=2", *PLAIN]
    assert_close(single(data_dir, tmp_path / "two", *flags), one)


def test_two_machines_agree_with_two_replicas(data_dir, tmp_path, two_replicas):
    with two_workers(data_dir, tmp_path / "run", *GATED) as processes:
        (out, err), (other_out, other_err) = outputs(processes)
        assert [process.returncode for process in processes] == [0, 0], (err, other_err)
    run = open_run(tmp_path / "run")
    assert_close(run, two_replicas)
    assert "on 2 replicas" in out
    assert "epoch 2/2" in out
    assert "epoch 2/2" not in other_out
    keys = ("accuracy", "task_loss", "gate_rate", "val_accuracy")
    for ours, theirs in zip(run.metrics(), two_replicas.metrics(), strict=True):
        for key in keys:
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4), key


def stop_by_one_of_them(data_dir, tmp_path):
    """Sends one worker of two SIGTERM after the first epoch; their directory and their errors.

    On a machine that is busy the signal may come when they are at their end: then two others are
    tried.
    """
    for attempt in range(5):
        workdir = tmp_path / f"run{attempt}"
        with two_workers(data_dir, workdir, *GATED) as processes:
            while not (workdir / "checkpoints" / "checkpoint").exists():
                assert all(process.poll() is None for process in processes), outputs(processes)
                time.sleep(0.02)
            processes[1].send_signal(signal.SIGTERM)
            texts = outputs(processes)
        # In the middle of the second epoch or, if it came early, before that.
        in_time = r"saved after (step \d+ of epoch 2|epoch 1);"
        if all(re.search(in_time, err) for _, err in texts):
            assert [process.returncode for process in processes] == [1, 1], texts
            return workdir, [err for _, err in texts]
    pytest.fail("the signal always came too late")


def test_a_signal_to_one_machine_saves_and_stops_all_and_they_resume(
    data_dir, tmp_path, two_replicas
):
    workdir, errors = stop_by_one_of_them(data_dir, tmp_path)
    for err in errors:
        assert "Traceback" not in err
    with two_workers(data_dir, workdir, *GATED) as processes:
        (out, err), _ = outputs(processes)
        assert processes[0].returncode == 0, err
    assert "resuming after epoch 1" in out
    assert_close(open_run(workdir), two_replicas)


def test_machines_that_do_not_share_their_workdir_do_not_resume(data_dir, tmp_path, two_replicas):
    shutil.copytree(two_replicas.path, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with two_workers(
        data_dir, tmp_path / "run", *GATED, second_workdir=tmp_path / "elsewhere"
    ) as processes:
        texts = outputs(processes)
        assert [process.returncode for process in processes] == [1, 1], texts
    for (_, err), found in zip(texts, ("ckpt-2, ckpt-4", "none"), strict=True):
        assert f"in a --workdir that they share, and they do not (this one finds {found})" in err
        assert "Traceback" not in err


@pytest.mark.parametrize("text", ["", "{", '{"cluster": {}}'])
def test_without_a_usable_tf_config_the_answer_is_what_it_must_hold(
    text, data_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("TF_CONFIG", text)
    done = run_module("train.main", *FLAGS, "--strategy=multi_worker", cwd=tmp_path)
    done.assert_refused("TF_CONFIG", '"index": 0', f"got '{text}'")
    assert list(tmp_path.iterdir()) == []
