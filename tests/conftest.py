"""What all tests share: two logical CPUs, one small trained run, its export, a running server."""

import fcntl
import os
import pathlib
import runpy

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Threads that wait for each other, as t-SNE's do, burn the CPU that other test processes need.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import pytest
import tensorflow as tf
from absl import app, flags
from helpers import Finished, small_config

# Before anything touches a device: two replicas need two devices.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


LONG = ("test_readme.py", "test_resume.py", "test_distributed.py", "test_export.py")
"""Files that start first, so that no process waits for another at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True)
def process_settings_unchanged():
    """No test changes what the tests after it, in the same process, do."""
    yield
    assert keras.config.dtype_policy().name == "float32"
    with tf.Graph().as_default():
        # Raises if operations are deterministic from here on, as this one has no seed.
        tf.random.uniform([])


@pytest.fixture(name="call")
def call_fixture(capsys, tmp_path, monkeypatch):
    """`call(module, *arguments)` does what `run_module` does, in the test's own process."""
    monkeypatch.chdir(tmp_path)

    def call(module, *arguments):
        before = set(flags.FLAGS)
        capsys.readouterr()
        error = ""
        try:
            command = runpy.run_module(module, run_name=module)
            status = command["main"](flags.FLAGS([module, *map(str, arguments)]))
        except (flags.Error, app.UsageError) as usage_error:
            status, error = 1, str(usage_error)
        finally:
            flags.FLAGS.unparse_flags()
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
        out, err = capsys.readouterr()
        return Finished(status, out, err + error)

    return call


@pytest.fixture
def eager():
    """Compiles no step, which takes most of the time where there are few steps."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id):
    """`made_once(name, make)`: a path that the first of the parallel test processes makes."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "shared"
    shared.mkdir(exist_ok=True)

    def get(name, make) -> pathlib.Path:
        path, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                make(path)
                done.touch()
        return path

    return get


@pytest.fixture(scope="session")
def data_dir(made_once):
    """A TFDS directory with the digits prepared in it."""
    from gaternet_tf.data import open_dataset

    return str(made_once("data", lambda path: open_dataset("digits", str(path))))


@pytest.fixture(scope="session")
def digits(data_dir):
    """The digits dataset."""
    from gaternet_tf.data import open_dataset

    return open_dataset("digits", data_dir)


@pytest.fixture(scope="session")
def trained(made_once, data_dir):
    """A small GaterNet trained on the digits for three epochs; tests only read it."""
    from gaternet_tf.runs import open_run
    from train.loop import train

    return open_run(
        made_once("trained", lambda path: train(small_config(data_dir, epochs=3), path))
    )


def _export(path, run, optimize):
    from export.exporting import ExportConfig, export_run

    export_run(ExportConfig(run.path, path / "gaternet", optimize=optimize))


@pytest.fixture(scope="session")
def exported(made_once, trained):
    """The model directory of `trained` with its version 1; tests only read it."""
    return made_once("exported", lambda path: _export(path, trained, "fold")) / "gaternet"


@pytest.fixture(scope="session")
def exported_as_trained(made_once, trained):
    """The same with `--optimize=none`, so with variables."""
    return made_once("as_trained", lambda path: _export(path, trained, "none")) / "gaternet"


@pytest.fixture(scope="session")
def server(exported):
    """host:port of a local server, in a process of its own, on `exported`."""
    from serving.demo import local_server

    with local_server(str(exported)) as target:
        yield target
