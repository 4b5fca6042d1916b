"""The benchmark runs and prints its tables; its figures are no test."""

import re


def test_prints_its_tables(run_module, exported):
    flags = ["--seconds=0.2", "--batch_size=4", "--requests=5"]
    done = run_module("benchmarks.serving", f"--model_base_path={exported}", *flags)
    assert done.status == 0, done.err
    costs = re.findall(r"^\| an (\w+).* \| (\d+\.\d\d) \|$", done.out, re.M)
    assert [name for name, _ in costs] == ["encoded", "array"]
    number = r"(\d+)\.\d\d"
    rows = re.findall(
        rf"^\| ([\w ]+) \| (\w+) \| (\d+) \| \d+ \| {number} \| {number} \| (\d+)% \|$",
        done.out,
        re.M,
    )
    assert [one[:3] for one in rows] == [
        (who, kind, pictures)
        for kind in ("images", "image_bytes")
        for pictures in ("1", "4")
        for who in ("in process", "1 over gRPC", "8 over gRPC")
    ]
    assert [one[-1] for one in rows[::3]] == ["100"] * 4


def test_bad_input_is_refused(run_module, tmp_path):
    run_module("benchmarks.serving").assert_refused("--model_base_path")
    flags = ["--model_base_path=nowhere", "--seconds=0"]
    run_module("benchmarks.serving", *flags).assert_refused("--seconds must be above 0")
    run_module("benchmarks.serving", flags[0]).assert_refused("nowhere", "did not start")
