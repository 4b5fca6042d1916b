"""The benchmark runs; its figures are no test."""

import re


def test_prints_time_and_memory_of_each_part(run_module):
    done = run_module("benchmarks.analysis", "--images=60", "--gates=16", "--classes=3")
    assert done.status == 0, done.err
    parts = re.findall(r"^(\S.*?) +[\d.]+ s, peak [\d.]+ GiB$", done.out, re.M)
    assert parts == ["made", "counted", "statistics", "t-SNE of 60 images"]
