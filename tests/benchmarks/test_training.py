"""The benchmark runs and prints what the README says of it; its figures are no test."""

import re


def test_prints_its_tables(run_module):
    flags = ["--backbone=resnet8", "--gater=resnet8", "--batch_size=8", "--rounds=1", "--steps=1"]
    done = run_module("benchmarks.training", *flags)
    assert done.status == 0, done.err
    for title in (
        "one training step, resnet8, batch 8",
        "the same step otherwise",
        "fit's own overhead",
        "input pipeline against what training consumes",
    ):
        assert f"\n{title}\n" in done.out
    rows = re.findall(r"^  (\S.*?) +(\d+) images/s +(\d+\.\d\d)$", done.out, re.M)
    assert [name for name, _, _ in rows][:5] == [
        *("backbone", "gater's network", "gated"),
        *("gated", "gated, bfloat16"),
    ]
    assert {"bare step", "fit", "fit, steps_per_execution=8", "input pipeline"} <= {
        name for name, _, _ in rows
    }
    assert re.search(r"gated / \(backbone \+ gater's network\) = \d+\.\d\d", done.out)
