"""What all tests share: two logical CPUs, one small trained run, its export, a running server."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Before anything touches a device: two replicas need two devices.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@dataclasses.dataclass
class Finished:
    """A command that ended."""

    status: int
    out: str
    err: str

    def assert_refused(self, *words):
        """It ended with status 1 or 2, without a traceback, and said each of `words`."""
        assert self.status in (1, 2), (self.status, self.out, self.err)
        assert "Traceback" not in self.err, self.err
        for word in words:
            assert word in self.err + self.out, (word, self.out, self.err)


def run_module(module, *arguments, cwd, timeout=300) -> Finished:
    """Runs `python -m module arguments` in another directory, as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture(name="run_module")
def run_module_fixture(tmp_path):
    """`run_module` in an empty directory."""

    def call(module, *arguments, **options):
        return run_module(module, *arguments, **{"cwd": tmp_path, **options})

    return call


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS directory with the digits prepared in it."""
    from gaternet_tf.data import open_dataset

    directory = tmp_path_factory.mktemp("data")
    open_dataset("digits", str(directory))
    return str(directory)


@pytest.fixture(scope="session")
def digits(data_dir):
    """The digits dataset."""
    from gaternet_tf.data import open_dataset

    return open_dataset("digits", data_dir)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data_dir):
    """A small GaterNet trained on the digits for three epochs."""
    from gaternet_tf.runs import open_run
    from gaternet_tf.training import train

    workdir = tmp_path_factory.mktemp("runs") / "small"
    train(small_config(data_dir, epochs=3), workdir)
    return open_run(workdir)


def small_config(data_dir, **changes):
    """Settings of the smallest run that exercises everything."""
    from gaternet_tf.training import TrainingConfig

    settings = {
        "backbone": "resnet8",
        "gater": "resnet8",
        "dataset": "digits",
        "data_dir": data_dir,
        "epochs": 1,
        "batch_size": 64,
    }
    return TrainingConfig(**(settings | changes))


@pytest.fixture(scope="session")
def exported(tmp_path_factory, trained):
    """The model directory of `trained` with its version 1."""
    from export.exporting import export_run

    output_dir = tmp_path_factory.mktemp("models") / "gaternet"
    export_run(trained.path, output_dir, 1)
    return output_dir


@pytest.fixture(scope="session")
def server(exported):
    """host:port of a local server, in a process of its own, on `exported`."""
    from serving.demo import local_server

    with local_server(str(exported)) as target:
        yield target
