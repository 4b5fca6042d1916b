"""The benchmark runs and prints its tables; its figures are no test."""

import contextlib
import re

from benchmarks.serving import main


def test_prints_its_tables(server, exported, monkeypatch, capsys):
    # It would start another server on the same export.
    monkeypatch.setattr("benchmarks.serving.local_server", lambda _: contextlib.nullcontext(server))
    flags = ["--seconds=0.05", "--batch_size=4", "--requests=5"]
    assert main([f"--model_base_path={exported}", *flags]) == 0
    out = capsys.readouterr().out
    costs = re.findall(r"^\| an (\w+).* \| \d+\.\d\d \|$", out, re.M)
    assert costs == ["encoded", "array"]
    number = r"\d+\.\d\d"
    rows = re.findall(
        rf"^\| ([\w ]+) \| (\d+) \| \d+ \| {number} \| {number} \| (\d+)% \|$", out, re.M
    )
    assert [row[:2] for row in rows] == [
        (name, pictures)
        for pictures in ("1", "4")
        for name in ("in process", "1 over gRPC", "8 over gRPC")
    ]
    assert [share for *_, share in rows[::3]] == ["100", "100"]
