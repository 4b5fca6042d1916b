"""python -m train.main as a user types it."""

import pytest
from helpers import help_without_tensorflow, run_module

DIGITS = ["--dataset=digits", "--backbone=resnet8", "--gater=resnet8", "--epochs=1"]


def test_trains_with_one_line_an_epoch_and_no_progress_bar_off_a_terminal(tmp_path, data_dir):
    workdir = tmp_path / "run"
    flags = [*DIGITS, f"--data_dir={data_dir}", f"--workdir={workdir}", "--batch_size=256"]
    done = run_module("train.main", *flags, cwd=tmp_path)
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "resnet8, gater resnet8: 156,402 parameters, 112 gates"
    assert "1294 images of 'train' train, 143 validate, 360 of 'test' test" in lines[1]
    assert "on 1 replica" in lines[2]
    assert [line.split()[:2] for line in lines[3:4]] == [["epoch", "1/1"]]
    assert lines[4] == "weights of epoch 1, the best on the validation images"
    assert lines[5].startswith("test accuracy ")
    assert lines[6].startswith("gates: 112, ")
    assert "\r" not in done.out
    assert {path.name for path in workdir.iterdir()} == {
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "model.keras",
        "pictures",
        "result.json",
        "tensorboard",
    }


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--backbone=resnet21"], ["6n+2", "9n+2", "resnet21"]),
        (["--backbone=alexnet"], ["resnet164", "alexnet"]),
        (["--sparsity=-1"], ["--sparsity=-1", "non-negative"]),
        (["--batch_size=33", "--strategy=mirrored", "--logical_cpus=2"], ["2 replicas", "33"]),
        (["--workdir=foreign"], ["foreign", "choose another"]),
        (["--workdir=foreign/note.txt/run"], ["cannot (Not a directory)"]),
        (["--dataset=cifar10", "--nodownload"], ["cifar10", "--data_dir", "--dataset=digits"]),
        (["resnet164"], ["takes flags only", "resnet164"]),
        (["--bakcbone=resnet20"], ["bakcbone", "backbone"]),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, flags, words):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "note.txt").write_text("mine")
    flags = [*DIGITS, "--data_dir=data", "--workdir=run", *flags]
    run_module("train.main", *flags, cwd=tmp_path).assert_refused(*words)
    assert not (tmp_path / "run").exists()
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["note.txt"]


def test_help_needs_no_tensorflow(tmp_path):
    text = help_without_tensorflow("train.main", tmp_path)
    assert "--backbone" in text
    assert "lambda" in text
