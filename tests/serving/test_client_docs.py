"""docs/client.md: its program runs, and its numbers are those of the code."""

import re
import shutil

from helpers import ROOT, run_python

from serving import client
from serving.client.channel import MAX_MESSAGE
from serving.client.pictures import MAX_PICTURE

TEXT = (ROOT / "docs" / "client.md").read_text()


def test_the_program_runs(server, trained, tmp_path):
    (program,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    for name, path in zip(("cat", "dog"), sorted(trained.pictures.glob("*/*.png")), strict=False):
        shutil.copy(path, tmp_path / f"{name}.png")
    done = run_python("-c", program.replace("localhost:8500", server), cwd=tmp_path)
    assert done.status == 0, done.err
    first, second, broken, *gates, status = done.out.splitlines()
    for line in (first, second):
        label, probability, version, top = line.split(maxsplit=3)
        assert version == "1"
        assert top.startswith(f"(('{label}', {probability}), ")
    assert broken == "no answer: cannot be read (No such file or directory)"
    assert [line.split()[2:] for line in gates] == [["gates", "on", "of", "112"]] * 2
    assert status == "{1: 'AVAILABLE'}"


def test_the_numbers_are_the_defaults():
    defaults = client.GaterNetClient.__init__.__kwdefaults__
    for words in (
        f"`batch_size` pictures ({defaults['batch_size']})",
        f"`in_flight` requests ({defaults['in_flight']})",
        f"`timeout` seconds ({defaults['timeout']:g})",
        f"{client.BATCH_BYTES // 2**20} MiB of pictures",
        f"{MAX_PICTURE // 2**20} MiB.",
        f"{MAX_MESSAGE // 2**20} MiB for requests",
    ):
        assert words in " ".join(TEXT.split()), words
