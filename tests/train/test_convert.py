"""python -m train.convert as a user types it."""

import pathlib
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs pip install '.[torch]', as make test does")
sys.path.append(str(pathlib.Path(__file__).parents[1] / "gaternet_tf"))
from authors_network import GaterNet  # noqa: E402


def test_converts_there_and_back(run_module, tmp_path):
    torch.save(GaterNet(20).content("module."), tmp_path / "ResNet-20-Gated.pth")
    flags = ["--checkpoint=ResNet-20-Gated.pth", "--backbone=resnet20", "--output=runs/authors"]
    done = run_module("train.convert", *flags)
    assert done.status == 0, done.err
    assert done.out == (
        "wrote runs/authors: resnet20, gater resnet20, 547,842 parameters, 336 gates\n"
        "measure it with python -m train.evaluate --workdir=runs/authors\n"
    )
    done = run_module("train.convert", "--to_torch", "runs/authors")
    assert (done.status, done.out) == (0, "wrote runs/authors/authors.pth\n"), done.err
    GaterNet(20, seed=1).load(torch.load(tmp_path / "runs/authors/authors.pth", weights_only=True))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["either --checkpoint=FILE or --to_torch=RUN"]),
        (["--checkpoint=it.pth", "--to_torch=run"], ["either --checkpoint=FILE"]),
        (["--checkpoint=it.pth"], ["--output=RUN"]),
        (["--checkpoint=it.pth", "--output=taken"], ["--output must be new or empty", "mine"]),
        (["--checkpoint=none.pth", "--output=run"], ["'none.pth' is no file"]),
        (["--checkpoint=it.pth", "--output=run"], ["must be a PyTorch file", "'it.pth'"]),
        (["--checkpoint=it.pth", "--output=run", "--backbone=resnet21"], ["6n+2", "resnet21"]),
        (["--to_torch=taken"], ["--workdir must be a run directory", "taken"]),
        (["--to_torch=run", "authors.pth"], ["takes flags only", "authors.pth"]),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(run_module, tmp_path, flags, words):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    (tmp_path / "it.pth").write_text("no checkpoint")
    before = sorted(tmp_path.rglob("*"))
    run_module("train.convert", *flags).assert_refused(*words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_of_another_head_is_refused(run_module, trained, tmp_path):
    done = run_module("train.convert", f"--to_torch={trained.path}", "--output=it.pth")
    done.assert_refused("--nohead_batch_norm")
    assert list(tmp_path.iterdir()) == []


def test_without_torch_the_error_says_how_to_get_it(run_module, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('not installed')")
    (tmp_path / "it.pth").write_bytes(b"")
    done = run_module("train.convert", "--checkpoint=it.pth", "--output=run")
    done.assert_refused("PyTorch is required", "pip install '.[torch]'")
