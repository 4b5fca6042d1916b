"""python -m serving.server as a user starts and stops it."""

import contextlib
import os
import re
import shutil
import signal
import socket

import pytest
from helpers import ROOT, help_without_tensorflow, run_module, running
from toy_models import write_toy

from serving.client import GaterNetClient
from serving.demo import local_server


@contextlib.contextmanager
def started(*flags):
    """A server process and its first line; killed with the block if it still runs."""
    with running("serving.server", "--port=0", *flags, cwd=ROOT) as process:
        yield process, process.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_starts_on_loopback_and_stops_cleanly_on_a_signal(exported, number):
    with started(f"--model_base_path={exported}", "--model_name=gaternet") as (process, line):
        port = int(re.search(r"serving gaternet version 1 on 127\.0\.0\.1:(\d+) ", line)[1])
        assert "production is TensorFlow Serving" in line
        with GaterNetClient(f"localhost:{port}", "gaternet") as client:
            assert client.status() == {1: "AVAILABLE"}
        # Every 127.x.x.x is this machine; a server on all interfaces would answer there too.
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=5)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, "server stopped\n")
        # TensorFlow says of itself that it found no GPU.
        assert [
            line for line in err.splitlines() if not re.match("WARNING: All log|I0000", line)
        ] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_that_is_starting(tmp_path, number):
    # It begins to read, and there is no end.
    os.mkfifo(tmp_path / "models.config")
    flags = ["--port=0", "--model_config_file=models.config"]
    with (
        running("serving.server", *flags, cwd=tmp_path) as process,
        open(tmp_path / "models.config", "w"),
    ):
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number


@pytest.mark.parametrize("verbosity", [[], ["--verbosity=0"]])
def test_warnings_are_in_the_log_and_more_on_demand(tmp_path, verbosity):
    write_toy(tmp_path / "toy")
    (tmp_path / "models.config").write_text(
        f'model_config_list {{ config {{ name: "toy" base_path: "{tmp_path / "toy"}" '
        'model_platform: "tensorflow" '
        "model_version_policy { specific { versions: 1 versions: 77 } } } }"
    )
    flags = [
        f"--model_config_file={tmp_path / 'models.config'}",
        # Ignored, as on the real server.
        "--model_base_path=nowhere",
        "--file_system_poll_wait_seconds=0.1",
    ]
    with started(*flags, *verbosity) as (process, line):
        assert "serving toy version 1 on" in line
        (tmp_path / "toy").rename(tmp_path / "elsewhere")
        err = ""
        for more in process.stderr:
            err += more
            if "model toy stays as it is" in more:
                break
        process.send_signal(signal.SIGTERM)
        err += process.communicate(timeout=30)[1]
    assert "Version 77 of servable toy, which was requested to be served" in err
    assert "deprecated" not in err
    assert ("model toy version 1: 0 warm-up records" in err) == bool(verbosity)


def test_serves_the_newest_version_by_number(exported, tmp_path):
    for name in ("9", "0010"):
        shutil.copytree(exported / "1", tmp_path / name)
    for name in ("1.5", "tmp-11", ".12", "latest"):
        (tmp_path / name).mkdir()
    with local_server(str(tmp_path)) as target, GaterNetClient(target, "gaternet") as client:
        assert client.status() == {10: "AVAILABLE"}


def test_a_number_that_is_not_a_model_is_refused(tmp_path):
    (tmp_path / "3").mkdir()
    flags = [f"--model_base_path={tmp_path}", "--port=0"]
    run_module("serving.server", *flags, cwd=tmp_path).assert_refused(
        "version 3 must be a SavedModel", str(tmp_path / "3")
    )


def damage_graph(version):
    (version / "saved_model.pb").write_bytes(b"damaged")


def damage_variables(version):
    os.truncate(version / "variables" / "variables.data-00000-of-00001", 100)


def remove_variables(version):
    (version / "variables" / "variables.index").unlink()


UNLOADABLE = "version 1 must be a SavedModel tagged 'serve', and 'models/1' cannot be loaded"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_graph, UNLOADABLE),
        (damage_variables, UNLOADABLE),
        # It loads, and its warm-up fails.
        (remove_variables, "FAILED_PRECONDITION: Could not find variable "),
    ],
)
def test_a_damaged_export_is_refused(exported_as_trained, tmp_path, damage, words):
    shutil.copytree(exported_as_trained, tmp_path / "models")
    damage(tmp_path / "models" / "1")
    flags = ["--model_base_path=models", "--port=0"]
    run_module("serving.server", *flags, cwd=tmp_path).assert_refused(words)


def test_bad_input_is_refused(exported, tmp_path):
    (tmp_path / "empty").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flags, words in [
            ([], ["--model_base_path"]),
            (["--model_base_path=nowhere"], ["must be a directory with a version", "nowhere"]),
            (["--model_base_path=empty"], ["named by a number", "'empty' has none"]),
            ([f"--model_base_path={exported / '1'}"], [f"the directory above it: {exported}"]),
            # Before anything is loaded: there is nothing.
            (
                ["--model_base_path=empty", f"--port={port}"],
                ["--port must be free", f"127.0.0.1:{port}"],
            ),
            (
                ["--model_base_path=empty", "--port=0", f"--rest_api_port={port}"],
                ["--rest_api_port must be free", f"127.0.0.1:{port}"],
            ),
            ([f"--model_base_path={exported}", "--port=70000"], ["--port", "70000"]),
            ([f"--model_base_path={exported}", "8500"], ["takes flags only", "8500"]),
        ]:
            run_module("serving.server", *flags, cwd=tmp_path).assert_refused(*words)


def test_help_needs_no_tensorflow(tmp_path):
    assert "--model_base_path" in help_without_tensorflow("serving.server", tmp_path)
