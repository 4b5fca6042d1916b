"""docs/client.md: its program runs."""

import re
import shutil

from helpers import ROOT, run_python


def test_the_program_runs(server, trained, tmp_path):
    text = (ROOT / "docs" / "client.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
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
