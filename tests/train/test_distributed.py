"""Two machines, through the real command, end at the weights of two replicas on one machine."""

import contextlib
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, small_config

from gaternet_tf import UserError
from gaternet_tf.runs import open_run
from train.distribution import check_replicas, choose_strategy
from train.loop import train


@contextlib.contextmanager
def two_workers(*flags):
    """The processes of both machines; they are killed at the end if they still run."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{free.getsockname()[1]}" for free in sockets]
    processes = []
    for index in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "train.main", "--strategy=multi_worker", *flags],
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


def test_two_machines_end_at_the_weights_of_two_replicas(data_dir, tmp_path):
    flags = ["--dataset=digits", "--backbone=resnet8", "--gater=resnet8", "--batch_size=16"]
    flags += ["--epochs=2", "--steps_per_epoch=2", "--learning_rate=0.02"]
    flags += [f"--data_dir={data_dir}", f"--workdir={tmp_path / 'machines'}"]
    config = small_config(
        data_dir,
        strategy="mirrored",
        batch_size=16,
        epochs=2,
        steps_per_epoch=2,
        learning_rate=0.02,
    )
    with two_workers(*flags) as processes:
        train(config, tmp_path / "replicas")
        (out, err), (other_out, other_err) = (p.communicate(timeout=300) for p in processes)
        assert [process.returncode for process in processes] == [0, 0], (err, other_err)
    assert "on 2 replicas" in out
    assert "epoch 2/2" in out
    assert "epoch 2/2" not in other_out
    machines, replicas = open_run(tmp_path / "machines"), open_run(tmp_path / "replicas")
    for ours, theirs in zip(
        machines.load_model().weights, replicas.load_model().weights, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6, err_msg=ours.path)
    keys = ("accuracy", "task_loss", "gate_rate", "val_accuracy")
    for ours, theirs in zip(machines.metrics(), replicas.metrics(), strict=True):
        for key in keys:
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4), key


@pytest.mark.parametrize("text", ["", "{", '{"cluster": {}}'])
def test_without_a_usable_tf_config_the_error_shows_one(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match='"index": 0') as caught:
        choose_strategy("multi_worker")
    assert str(caught.value).endswith(f"got '{text}'")


def test_the_batch_must_divide_among_the_replicas():
    check_replicas(2, 128)
    check_replicas(1, 33, steps_per_execution=4)
    with pytest.raises(UserError, match="multiple of the 2 replicas, got 33; take 32"):
        check_replicas(2, 33)
