"""The benchmark runs and prints its tables; its figures are no test."""

import re


def test_prints_its_tables(run_module, exported):
    flags = ["--seconds=0.05", "--batch_size=4", "--requests=5"]
    done = run_module("benchmarks.serving", f"--model_base_path={exported}", *flags)
    assert done.status == 0, done.err
    costs = re.findall(r"^\| an (\w+).* \| \d+\.\d\d \|$", done.out, re.M)
    assert costs == ["encoded", "array"]
    number = r"\d+\.\d\d"
    rows = re.findall(
        rf"^\| ([\w ]+) \| (\d+) \| \d+ \| {number} \| {number} \| (\d+)% \|$", done.out, re.M
    )
    assert [row[:2] for row in rows] == [
        (name, pictures)
        for pictures in ("1", "4")
        for name in ("in process", "1 over gRPC", "8 over gRPC")
    ]
    assert [share for *_, share in rows[::3]] == ["100", "100"]
