"""Two machines, through the real command, end at the weights of one."""

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
from train.distribution import choose_strategy
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


def test_two_machines_end_at_the_weights_of_one(data_dir, tmp_path):
    # Gates draw other noise on every replica.
    settings = {"gater": "none", "batch_size": 16, "epochs": 2, "steps_per_epoch": 2}
    settings["learning_rate"] = 0.02
    flags = [f"--{name}={value}" for name, value in settings.items()]
    flags += ["--dataset=digits", "--backbone=resnet8", f"--data_dir={data_dir}"]
    with two_workers(*flags, f"--workdir={tmp_path / 'two'}") as processes:
        train(small_config(data_dir, **settings), tmp_path / "one")
        (out, err), (other_out, other_err) = (p.communicate(timeout=300) for p in processes)
        assert [process.returncode for process in processes] == [0, 0], (err, other_err)
    assert "on 2 replicas" in out
    assert "epoch 2/2" in out
    assert "epoch 2/2" not in other_out
    two, one = open_run(tmp_path / "two"), open_run(tmp_path / "one")
    for ours, theirs in zip(two.load_model().weights, one.load_model().weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6, err_msg=ours.path)
    for ours, theirs in zip(two.metrics(), one.metrics(), strict=True):
        for key in ("accuracy", "task_loss", "loss", "val_accuracy"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4), key


def test_without_a_usable_tf_config_the_error_shows_one(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {}}')
    with pytest.raises(UserError, match=r'"index": 0.*got \'{"cluster": {}}\'$'):
        choose_strategy("multi_worker")
