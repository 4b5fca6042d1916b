"""docs/client.md: its commands and programs run, its tables are those of the code."""

import os
import re
import subprocess
import sys

import pytest
from fake_servers import FakeModel, grpc_server, picture
from helpers import ROOT

from serving import client, client_command
from serving.client_questions import Choices
from serving.transport import Retries, Settings

TEXT = (ROOT / "docs" / "client.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("language", "block"), [one for one in BLOCKS if one[0] != "text"])
def test_every_command_and_program_runs(language, block, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.png").write_bytes(picture(0))
    (tmp_path / "pictures" / "dog.png").write_bytes(picture(1))
    with grpc_server(FakeModel()) as target:
        block = block.replace("localhost:8500", target)
        block = block.replace("--model=gaternet", "--model=fake").replace('"gaternet"', '"fake"')
        command = ["bash", "-eo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, block],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    if "loadtest" in block:
        # --duration=2, and the last answers.
        seconds = re.search(r"([\d.]+) s\nthroughput", done.stdout)
        assert 2 <= float(seconds[1]) < 10
        assert '"answered": 100,' in done.stdout
    else:
        assert "cat" in done.stdout
        assert "dog" in done.stdout


def test_the_exit_statuses_are_those_of_the_help():
    rows = re.findall(r"^\| (\d+) \| (.*?) \|$", TEXT, re.MULTILINE)
    told = re.findall(r"^  (\d+)  (.*)$", client_command.EPILOG, re.MULTILINE)
    assert [number for number, _ in rows] == [number for number, _ in told]
    for (_, long), (_, short) in zip(rows, told, strict=True):
        assert re.findall(r"\w+", long)[:2] == re.findall(r"\w+", short)[:2]


def test_every_error_is_in_the_table_with_its_exit_status():
    rows = dict(re.findall(r"^\| `(\w+Error)` \| .*? \| (\d) \|$", TEXT, re.MULTILINE))
    errors = {
        name
        for name in client.__all__
        if name.endswith("Error") and name not in ("ClientError", "PictureError")
    }
    assert set(rows) == errors | {"PictureError"}
    for name in errors:
        assert client_command.exit_status(getattr(client, name)("")) == int(rows[name])


def test_the_numbers_are_the_defaults():
    choices, settings, retries = Choices("m"), Settings("h:1"), Retries()
    for words in (
        f"`batch_size` pictures ({choices.batch_size})",
        f"`batch_bytes` bytes ({choices.batch_bytes // 2**20} MiB)",
        f"`in_flight` requests ({settings.in_flight})",
        f"`timeout` seconds ({settings.timeout:g})",
        f"`attempts` ({retries.attempts}) in all",
        f"pauses of {retries.first} s, {2 * retries.first} s and so on to {retries.longest:g} s",
        f"`max_message_bytes` ({settings.max_message_bytes // 2**20} MiB)",
        f"`max_pixels` pixels ({choices.limits.pixels // 10**6} million)",
    ):
        assert words in " ".join(TEXT.split()), words
