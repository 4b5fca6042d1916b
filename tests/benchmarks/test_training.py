"""The benchmark prints its tables; the figures are not tested."""

import re

import pytest


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore:Even though:UserWarning")
def test_prints_its_tables(call):
    flags = ["--backbone=resnet8", "--gater=resnet8", "--batch_size=8", "--rounds=1", "--steps=1"]
    done = call("benchmarks.training", *flags)
    assert done.status == 0, done.err
    for title in (
        "one training step, resnet8, batch 8",
        "the same step otherwise",
        "fit's own overhead",
        "input pipeline against what training consumes",
    ):
        assert f"\n{title}\n" in done.out
    rows = re.findall(r"^  (\S.*?) +(\d+) images/s +(\d+\.\d\d)$", done.out, re.M)
    names = [name for name, _, _ in rows]
    assert names[:5] == ["backbone", "gater's network", "gated", "gated", "gated, bfloat16"]
    assert {"bare step", "fit", "input pipeline"} <= set(names)
    assert re.search(r"gated / \(backbone \+ gater's network\) = \d+\.\d\d", done.out)
