"""The command python -m serving.client, on a model in the test's own process."""

import csv
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import pytest
from fake_servers import FakeModel, RefusedError, grpc_server, picture
from helpers import running

from serving.client.__main__ import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with set/a.png (cat), set/b/1.PNG (dog) and set/b/note.txt."""
    (tmp_path / "set" / "b").mkdir(parents=True)
    (tmp_path / "set" / "a.png").write_bytes(picture(0))
    (tmp_path / "set" / "b" / "1.PNG").write_bytes(picture(1))
    (tmp_path / "set" / "b" / "note.txt").write_text("not a picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def target():
    """The address of a model with one version, which is labelled "stable"."""
    with grpc_server(FakeModel(version_labels={"stable": 1})) as target:
        yield target


@pytest.fixture
def command(target, capsys):
    """Runs the command; returns its status, output and errors."""

    def call(*arguments, target=target):
        try:
            flags = ["--model=fake", "--timeout=60", f"--target={target}"]
            status = main([*flags, *arguments])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return call


def test_prints_a_table_of_files_and_directories(command, folder):
    status, out, err = command("--gates", "--top=3", "set", "set/a.png")
    assert (status, err) == (0, "")
    assert [re.split(r"\s\s+", line) for line in out.splitlines()] == [
        ["picture", "class", "probability", "gates on", "then"],
        ["set/a.png", "cat", "0.5000", "1 of 3", "dog 0.2500, eel 0.1250"],
        ["set/b/1.PNG", "dog", "0.5000", "2 of 3", "eel 0.2500, cat 0.1250"],
        ["set/a.png", "cat", "0.5000", "1 of 3", "dog 0.2500, eel 0.1250"],
    ]


def test_pictures_that_would_go_unseen_are_wrong_usage(command, folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    status, out, err = command("-")
    assert (status, out) == (2, "")
    assert "must name a picture per line, and is empty" in err
    assert command("--status", "set/a.png")[0] == 2


def test_prints_json(command, folder):
    flags = ["--output=json", "--gates", "--top=2"]
    status, out, err = command(*flags, "missing.png", "set/b")
    assert status == 3
    missing, dog = json.loads(out)
    assert missing == {
        "picture": "missing.png",
        "error": "cannot be read (No such file or directory)",
    }
    fields = {"label": "dog", "class_id": 1, "probability": 0.5, "version": 1}
    top = [{"label": "dog", "probability": 0.5}, {"label": "eel", "probability": 0.25}]
    assert dog == {"picture": "set/b/1.PNG", **fields, "gates": [1, 1, 0], "top": top}
    assert err.splitlines() == [
        "serving.client: error: missing.png: cannot be read (No such file or directory)"
    ]


def test_prints_csv(command, folder):
    status, out, _ = command("--output=csv", "--gates", "--top=2", "set", "missing.png")
    assert status == 3
    head, *rows = csv.reader(io.StringIO(out))
    assert head == [
        *("picture", "label", "class_id", "probability", "version", "gates_on", "gates"),
        *("label_2", "probability_2", "error"),
    ]
    assert rows[0] == ["set/a.png", "cat", "0", "0.5", "1", "1", "100", "dog", "0.25", ""]
    assert rows[2] == ["missing.png", *[""] * 8, "cannot be read (No such file or directory)"]


def test_a_directory_that_may_not_be_read_is_an_error(command, folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for argument, expected in (("set", ["set/a.png"]), ("set/b", [])):
        status, out, err = command(argument)
        assert status == 3
        assert [line.split()[0] for line in out.splitlines()[1:]] == expected
        assert "serving.client: error: set/b: cannot be read" in err


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--model=nope"], 5, "model 'nope'"),
        (["--target=localhost:1"], 4, "--target=HOST:PORT"),
        (["--timeout=0"], 2, "must be above 0, got 0"),
    ],
)
def test_each_failure_has_its_status_and_says_what_to_do(command, folder, flags, status, words):
    got, out, err = command(*flags, "set/a.png")
    assert (got, out) == (status, "")
    assert words in err


def test_what_was_answered_before_the_server_failed_is_printed(command, folder):
    def before(request):
        if len(model.rows) > 1:
            raise RefusedError("INTERNAL", "out of \x1b[31mpaper")

    model = FakeModel(before)
    with grpc_server(model) as target:
        flags = ["--batch_size=1", "--in_flight=1", "--output=json", "set"]
        status, out, err = command(*flags, target=target)
    assert status == 1
    answered, lost = json.loads(out)
    assert answered["label"] == "cat"
    assert "out of \x1b[31mpaper" in lost["error"]
    # A terminal would obey it.
    assert r"set/b/1.PNG: no answer" in err
    assert r"out of \x1b[31mpaper" in err


@pytest.mark.parametrize("output", ["table", "csv", "json"])
def test_prints_the_status_of_the_versions(command, output):
    with grpc_server(FakeModel(versions={1: "END: disk full", 2: "AVAILABLE"})) as target:
        flags = ["--status", "--wait_ready=60", f"--output={output}"]
        status, out, _ = command(*flags, target=target)
    assert status == 0
    if output == "json":
        assert json.loads(out) == [
            {"version": 2, "state": "AVAILABLE", "error": ""},
            {"version": 1, "state": "END", "error": "disk full"},
        ]
    else:
        rows = [re.split(r"\s\s+|,", line) for line in out.splitlines()]
        assert rows[0] == ["version", "state", "error"]
        assert rows[1][:2] == ["2", "AVAILABLE"]
        assert rows[2] == ["1", "END", "disk full"]


def test_a_process_takes_names_of_any_bytes_from_its_standard_input(target, folder):
    pathlib.Path(os.fsdecode(b"\xff.png")).write_bytes(picture(1))
    done = subprocess.run(
        [sys.executable, "-m", "serving.client", "--model=fake", f"--target={target}", "-"],
        input=b"set/a.png\n\n\xff.png\nmissing\xfe.png\n",
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        capture_output=True,
    )
    assert done.returncode == 3, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [
        [b"set/a.png", b"cat"],
        [rb"\udcff.png", b"dog"],
    ]
    assert rb"error: missing\udcfe.png: cannot be read" in done.stderr


def test_ctrl_c_ends_a_process_that_waits_for_the_server(folder):
    asked, release = threading.Event(), threading.Event()

    def before(request):
        asked.set()
        release.wait(60)

    flags = ["--model=fake", "--timeout=300", "set/a.png"]
    with (
        grpc_server(FakeModel(before)) as target,
        running("serving.client", f"--target={target}", *flags, cwd=folder) as process,
    ):
        asked.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("", "")
        release.set()
    # A shell reports it as status 130.
    assert process.returncode == -signal.SIGINT
