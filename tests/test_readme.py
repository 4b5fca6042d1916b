"""The README's commands, run as a stranger would: in a copy of what git has, in order."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
from helpers import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [block for kind, block in BLOCKS if kind == "sh"]
# What a block of another kind is, and why it is not run.
NOT_RUN = {
    # Docker; CIFAR-10; the authors' files; a run of another head, see test_convert.py; output;
    # several machines, see test_distributed.py; minutes of training for a benchmark.
    "text": [
        *("docker run", "--backbone=resnet164", "--checkpoint=", "--to_torch=", "test accuracy"),
        *("TF_CONFIG", "benchmarks.export"),
    ],
    "python": ["GaterNetClient"],  # a fragment; what it calls is in tests/serving/test_client.py
}
WAIT_FOR_SERVER = (
    "for i in $(seq 3000); do (: </dev/tcp/127.0.0.1/PORT) 2>/dev/null && break; sleep 0.1; done"
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the files that git has or would take, in a directory with a space in its name."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True)
    copy = tmp_path_factory.mktemp("read me") / "gater net"
    for name in filter(None, done.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    # The environment that runs this test stands for the one that `make` would install.
    os.symlink(sys.prefix, copy / ".venv")
    return copy


def as_script(port):
    """The README's shell commands in order; only what would start this test again is left out."""
    # A command that fails must not leave the server behind, which holds our pipe.
    lines = ["trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for line in "".join(COMMANDS).replace("8500", str(port)).splitlines():
        if line == "make test":
            continue
        lines.append(line.replace("make ", "make -o .venv/installed "))
        if line.endswith(" &"):
            lines.append(WAIT_FOR_SERVER.replace("PORT", str(port)))
    return "\n".join(lines)


@pytest.fixture(scope="module")
def output(checkout):
    """What the README's commands print, when all of them succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", as_script(port)],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


def test_the_first_screen_has_the_two_commands():
    assert COMMANDS[0] == "make demo\nmake test\n"
    assert "```sh\nmake demo" in "\n".join(README.splitlines()[:25])


def test_every_block_is_run_or_has_its_reason():
    for kind, block in BLOCKS:
        if kind != "sh":
            assert any(word in block for word in NOT_RUN[kind]), block


def test_the_demo_reaches_its_accuracy_and_classifies_ten_pictures(output, checkout):
    result = json.loads((checkout / "runs" / "demo" / "result.json").read_text())
    assert result["test_accuracy"] >= 0.97
    shown = re.search(r"test accuracy ([\d.]+)% \((\d+) of 360\)", output)
    assert int(shown[2]) / 360 == pytest.approx(result["test_accuracy"])
    assert re.search(r"gates: 224, [\d.]+% on; \d+ always on, \d+ always off, \d+ input-", output)
    rows = re.findall(
        r"^runs/demo/pictures/(\d)/\d+\.png +(\d) +(\d) +[01]\.\d{4} +(\d+) of 224$", output, re.M
    )
    assert len(rows) == 10
    assert all(folder == true for folder, true, _, _ in rows)
    assert sum(true == predicted for _, true, predicted, _ in rows) >= 9
    assert "server stopped" in output


def test_the_single_commands_do_what_the_readme_says(output, checkout):
    assert "dataset digits 1.0.0, split 'test'\ntest accuracy 9" in output
    assert "exported runs/demo to models/gaternet/2" in output
    assert "serving gaternet version 2" in output
    table = re.findall(r"^runs/demo/pictures/(\d)/\d+\.png  (\d)      [01]\.\d{4}$", output, re.M)
    assert len(table) == 10
    (document,) = re.findall(r"^\[\n.*?^\]$", output, re.M | re.S)
    (answer, *_) = json.loads(document)
    assert answer["version"] == 2
    assert len(answer["gates"]) == 224
    assert "(2, 10) (2, 7200)" in output
    assert "cifar10-resnet164-gated-released\n  GaterNet with the head of" in output
    assert "| digits | resnet14, gated by resnet8, lambda 0.1 | 254,626 | 224 |" in output
    assert "| digits | resnet8, gated by resnet8, lambda 0.1, all convolutions |" in output
    assert sorted(path.name for path in (checkout / "runs").iterdir()) == [
        "comparison",
        "demo",
        "digits-all",
    ]


def first_column(table):
    return "\n".join(row.split("|")[1] for row in table.split("\n"))


def test_the_run_directory_is_what_its_table_says(output, checkout):
    run, analysis = re.findall(r"\| file \| what \|\n\|---\|---\|\n(.*?)\n\n", README, re.S)
    names = set(re.findall(r"`([\w./]+?)/?`", first_column(run)))
    written = {path.name for path in (checkout / "runs/demo").iterdir()}
    assert written == names | {"evaluation-digits-test.json", "analysis"}
    whole = {"report.html", "analysis.json", "gates.npz"}
    assert {*re.findall(r"`([\w./]+?)`", first_column(analysis))} == {
        *whole,
        *("NAME.png", ".svg", ".csv"),
    }
    written = {path.name for path in (checkout / "runs/demo/analysis").iterdir()}
    figures = {name.removesuffix(".png") for name in written if name.endswith(".png")}
    drawn = {name + suffix for name in figures for suffix in (".png", ".svg", ".csv")}
    assert len(figures) > 5
    assert whole | drawn <= written
    assert all(name.endswith(".csv") for name in written - whole - drawn)


def test_figures_in_the_text_are_those_of_the_code():
    import gaternet_tf

    model = gaternet_tf.build_gaternet(
        backbone="resnet164", gater="resnet20", head_batch_norm=False, num_classes=10
    )
    parameters = sum(int(variable.shape.num_elements()) for variable in model.trainable_variables)
    gates = len(gaternet_tf.gate_map(model))
    assert f"({gates} gates, {parameters:,} parameters without" in README.replace("\n", " ")
