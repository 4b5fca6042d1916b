"""The commands of README and docs, run as a stranger would: in a copy of what git has, in order."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
from helpers import ROOT, run_python

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    """Contents of the fenced blocks of a language in a Markdown file."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


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
    # The environment that runs this test takes the place of the one that `make` would install.
    os.symlink(sys.prefix, copy / ".venv")
    return copy


@pytest.fixture(scope="module")
def output(checkout):
    """What the commands of all pages print, when all of them succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # A command that fails must not leave the server behind, which holds our pipe.
    script = ["trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    readme = PAGES[0].read_text()
    for page in PAGES:
        # A block of a page in docs/ that README has too is run once.
        new = [block for block in blocks(page, "sh") if page == PAGES[0] or block not in readme]
        for line in "".join(new).replace("8500", port).splitlines():
            if line == "make test":
                continue
            script.append(line.replace("make ", "make -o .venv/installed "))
            if line == "kill $!":
                # A person types the next command later than this script does.
                script.append("wait")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(script)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


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
    assert all(folder == true_class for folder, true_class, _, _ in rows)
    assert sum(true_class == predicted for _, true_class, predicted, _ in rows) >= 9
    assert "server stopped" in output


def test_the_single_commands_do_what_the_readme_says(output, checkout):
    assert "dataset digits 1.0.0, split 'test'\ntest accuracy 9" in output
    assert "exported runs/demo to models/gaternet/2" in output
    assert "serving gaternet version 2" in output
    assert "| resnet14, gated by resnet8, lambda 0.1 | 254,626 | 224 |" in output
    assert "| resnet8, gated by resnet8, lambda 0.1, all convolutions |" in output
    assert (checkout / "runs/demo/analysis/report.html").is_file()


def test_the_examples_of_the_library_run(tmp_path):
    done = run_python("-c", "".join(blocks(ROOT / "README.md", "python")), cwd=tmp_path)
    assert done.status == 0, done.err
    assert "Gate(layer='conv2d_1', unit='conv2d_1', channel=63)" in done.out
    assert done.out.endswith("7200\n")
