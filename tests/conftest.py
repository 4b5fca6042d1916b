"""What all tests share: two logical CPUs, one small trained run, its export, a running server."""

import os
import runpy
import signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest
import tensorflow as tf
from absl import app, flags
from helpers import Finished, run_module, small_config

# Before anything touches a device: two replicas need two devices.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def pytest_configure():
    """Ctrl-C is not ignored, as it is where a script started the tests with `&`.

    What the tests start would ignore it too.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_left_for_the_whole_process():
    """No test changes what those after it, in the same process, do."""
    yield
    assert keras.config.dtype_policy().name == "float32"
    with tf.Graph().as_default():
        # Refused if operations are deterministic from here on, as this one has no seed.
        tf.random.uniform([])


@pytest.fixture(name="run_module")
def run_module_fixture(tmp_path):
    """`run_module` in an empty directory."""

    def call(module, *arguments, **options):
        return run_module(module, *arguments, **{"cwd": tmp_path, **options})

    return call


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
    from train.loop import train

    workdir = tmp_path_factory.mktemp("runs") / "small"
    train(small_config(data_dir, epochs=3), workdir)
    return open_run(workdir)


@pytest.fixture(scope="session")
def exported(tmp_path_factory, trained):
    """The model directory of `trained` with its version 1."""
    from export.exporting import ExportConfig, export_run

    output_dir = tmp_path_factory.mktemp("models") / "gaternet"
    export_run(ExportConfig(trained.path, output_dir))
    return output_dir


@pytest.fixture(scope="session")
def exported_as_trained(tmp_path_factory, trained):
    """The same, not folded: with variables."""
    from export.exporting import ExportConfig, export_run

    output_dir = tmp_path_factory.mktemp("models") / "gaternet"
    export_run(ExportConfig(trained.path, output_dir, optimize="none"))
    return output_dir


@pytest.fixture(scope="session")
def server(exported):
    """host:port of a local server, in a process of its own, on `exported`."""
    from serving.demo import local_server

    with local_server(str(exported)) as target:
        yield target
