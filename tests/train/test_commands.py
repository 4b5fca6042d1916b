"""What the commands print, and how they refuse what they cannot do."""

import json
import re
import shutil

import pytest
from helpers import plant_run


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--backbone=alexnet"], ["resnet164", "alexnet"]),
        (["--sparsity=-1"], ["--sparsity=-1", "non-negative"]),
        (["--batch_size=33", "--strategy=mirrored"], ["2 replicas, got 33; take 32"]),
        (["--strategy=multi_worker"], ["TF_CONFIG", '"index": 0', "got ''"]),
        (["--workdir=foreign"], ["foreign", "choose another"]),
        (["--dataset=cifar10", "--nodownload"], ["cifar10", "--data_dir", "--dataset=digits"]),
        (["--batch_size=2000"], ["at most the 1294 training images"]),
        (["--validation=0.001"], ["--validation=0.001 holds no image out of the 1437"]),
        (["--resize=7"], ["--resize must be 0 or at least the 8 pixels"]),
        (["--strategy=mirrored", "--jit_compile"], ["--jit_compile needs one", "are 2; leave it"]),
        (["--init_from=foreign"], ["--init_from must be", "'foreign' is none"]),
        (["--experiment=cifar"], ["--experiment=help lists, got 'cifar'"]),
        (["--smoke"], ["give --experiment=NAME too"]),
        (["resnet164"], ["takes flags only, got 'resnet164'"]),
    ],
)
def test_training_refuses_bad_input_before_anything_is_written(
    call, tmp_path, data_dir, flags, words
):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "note.txt").write_text("mine")
    digits = ["--dataset=digits", "--backbone=resnet8", "--gater=resnet8"]
    done = call("train.main", *digits, f"--data_dir={data_dir}", "--workdir=run", *flags)
    done.assert_refused(*words)
    assert not (tmp_path / "run").exists()
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["note.txt"]


def test_evaluation_gives_the_numbers_of_training(call, trained, data_dir, tmp_path):
    shutil.copytree(trained.path, tmp_path / "run")
    done = call("train.evaluate", "--workdir=run", f"--data_dir={data_dir}")
    assert done.status == 0, done.err
    first, second, third = done.out.splitlines()
    assert first == "dataset digits 1.0.0, split 'test'"
    shown = re.fullmatch(r"test accuracy ([\d.]+)% \((\d+) of 360\), test loss ([\d.]+)", second)
    assert int(shown[2]) / 360 == trained.result["test_accuracy"]
    assert float(shown[3]) == pytest.approx(trained.result["test_loss"], abs=1e-4)
    assert third.startswith("gates: 112, ")
    written = json.loads((tmp_path / "run" / "evaluation-digits-test.json").read_text())
    for key, value in trained.result.items():
        if key.startswith("gate"):
            assert written[key] == pytest.approx(value), key


def test_the_summary_of_a_network(call):
    done = call("train.summary", "--backbone=resnet8", "--gater=resnet8", "--nohead_batch_norm")
    assert done.status == 0, done.err
    head, *_, total = done.out.splitlines()
    assert head.split() == ["part", "output", "parameters", "MACs", "gates"]
    assert total.split()[0::3] == ["total", "112"]


def test_the_summary_of_a_run_has_its_gates(call, trained, data_dir):
    flags = [f"--workdir={trained.path}", f"--data_dir={data_dir}"]
    done = call("train.summary", *flags)
    assert done.status == 0, done.err
    result = trained.result
    kinds = ("gates_always_on", "gates_always_off", "gates_input_dependent")
    assert done.out.splitlines()[-1].split()[-3:] == [str(result[kind]) for kind in kinds]
    call("train.summary", *flags, "--split=mine").assert_refused("one of test, train", "'mine'")


def test_the_table_and_its_figure(call, tmp_path):
    plant_run("gated", {"test_accuracy": 0.9, "macs_on": 1e6}, "fashion")
    plant_run("plain", {"test_accuracy": 0.8}, "fashion", gater="none")
    plant_run("digits", gater="none", dataset="digits")
    done = call("train.table", "gated", "plain", "--output_dir=out")
    assert done.status == 0, done.err
    assert len(done.out.splitlines()) == 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "comparison.csv",
        "comparison.png",
        "comparison.svg",
    }
    assert r"\begin{tabular}" in call("train.table", "gated", "--format=latex").out
    call("train.table", "gated", "--against=wide").assert_refused("got 'wide'; the rows are 'res")
    call("train.table").assert_refused("directories of finished runs")
    call("train.table", "nowhere").assert_refused("'nowhere' is none")
    call("train.table", "gated", "digits", "--output_dir=out").assert_refused("one dataset")
