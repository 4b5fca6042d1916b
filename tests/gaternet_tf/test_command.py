"""What all commands share: paths, output that may be closed, and a quiet TensorFlow."""

import io
import json
import os

import pytest
from helpers import run_python

from gaternet_tf.command import run_command
from serving.client.__main__ import parse_arguments

PATHS = {
    "train.main": ["data_dir", "init_from", "workdir"],
    "train.evaluate": ["workdir", "data_dir"],
    "train.summary": ["workdir", "data_dir"],
    "train.table": ["output_dir"],
    "train.convert": ["checkpoint", "to_torch", "output"],
    "gaternet_tf.analysis": ["workdir", "model_dir", "redraw", "data_dir", "output_dir"],
    "export.main": ["workdir", "output_dir", "data_dir", "warmup_images"],
    "serving.server": ["model_base_path"],
}
REFUSED = "must be one of this machine, got '{}'"


@pytest.mark.parametrize(("command", "names"), PATHS.items())
def test_no_path_is_empty_or_a_url(call, command, names):
    for name in names:
        for text in ("", "gs://bucket/x"):
            call(command, f"--{name}={text}").assert_refused(f"--{name}=", REFUSED.format(text))


def test_other_paths_are_checked_alike(call, capsys):
    for name in ("--tls_ca", "--tls_cert", "--tls_key"):
        with pytest.raises(SystemExit):
            parse_arguments([f"{name}=", "a.png"])
        assert (
            f"{name}: a path {REFUSED.format('')}; is a variable unset?" in capsys.readouterr().err
        )
    for command in ("train.table", "export.verify"):
        call(command, "").assert_refused(REFUSED.format(""))
    for kind in ("folder", "idx"):
        done = call("train.main", f"--dataset={kind}:s3://x", "--image_size=8", "--workdir=run")
        done.assert_refused(REFUSED.format("s3://x"))


def test_a_home_directory_is_expanded(call, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    done = call("train.summary", "--backbone=~/net.keras")
    done.assert_refused(f"'{tmp_path}/home/net.keras' does not exist")
    for flag in ("--backbone=", "--gater=", "--weights=", "--weights=gs://x/net.keras"):
        call("train.main", flag).assert_refused(REFUSED.format(flag.partition("=")[2]))
    call("train.evaluate", "--workdir=~/run").assert_refused(f"'{tmp_path}/home/run' is none")


def a_pipe_that_nobody_reads():
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


@pytest.mark.parametrize("prints_only", [True, False])
def test_work_is_done_although_its_output_is_lost(monkeypatch, capsys, prints_only):
    done = []

    def work():
        print("first", flush=True)
        print("second")
        done.append(True)

    def status_with(stdout):
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", stdout)
            status = run_command("the.command", [], work, prints_only=prints_only)
        stdout.close()
        return status, capsys.readouterr().err

    assert status_with(a_pipe_that_nobody_reads()) == (0, "")
    status, error = status_with(open("/dev/full", "w"))  # noqa: SIM115
    assert status == int(prints_only)
    assert error.startswith("the.command: standard output could not be written: ")
    assert done == [True, True]


def test_text_that_the_output_has_no_characters_for_is_escaped(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), "ascii")
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stdout)
        assert run_command("the.command", [], lambda: print("Zürich")) == 0
    assert stdout.buffer.getvalue() == b"Z\\xfcrich\n"


def test_a_command_interrupted_outside_its_steps_says_so_in_a_line(capsys):
    def work():
        raise KeyboardInterrupt

    assert run_command("the.command", [], work) == 130
    assert capsys.readouterr().err == "the.command: interrupted\n"


def test_keras_other_settings_do_not_reach_a_command(tmp_path, monkeypatch):
    settings = {"backend": "jax", "floatx": "float16", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    flags = ["--backbone=resnet8", "--gater=resnet8"]
    done = run_python("-m", "train.summary", *flags, cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[-1].startswith("total")


def test_what_needs_no_tensorflow_does_not_import_it(tmp_path):
    program = """
import runpy, sys
sys.modules["tensorflow"] = None
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
    done = run_python("-c", program, "train.main", "--experiment=help", cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    run_python("-c", program, "train.table", "none", cwd=tmp_path).assert_refused("'none' is none")
    done = run_python("-c", program, "train.evaluate", "--workdir=none", cwd=tmp_path)
    done.assert_refused("TensorFlow and Keras are required", "pip install '.[all]'")
