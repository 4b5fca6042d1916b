"""The authors' format, both ways, against the network written in PyTorch from its description."""

import os
import pathlib
import sys

import numpy as np
import pytest

from gaternet_tf import UserError, build_gaternet
from gaternet_tf.runs import open_run
from train.authors_format import THRESHOLD, state_dicts
from train.conversion import checkpoint_to_run, run_to_checkpoint

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")
sys.path.append(str(pathlib.Path(__file__).parents[1]))
from authors_network import GaterNet  # noqa: E402

BACKBONE, GATER = "backbone_state_dict", "gater_state_dict"


@pytest.fixture(scope="module")
def theirs():
    """Their ResNet-20-Gated, with random weights and statistics."""
    return GaterNet(20)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype(np.uint8)


def save(content, path):
    torch.save(content, path)
    return path


def predict(run, pictures):
    outputs = run.load_model()(run.preprocessing.normalize(pictures), training=False)
    return np.asarray(outputs["logits"]), np.asarray(outputs["gates"])


def assert_agree(ours, theirs):
    logits, gates = theirs
    assert 0.05 < gates.mean() < 0.95
    assert len(np.unique(gates, axis=0)) > 1
    np.testing.assert_array_equal(ours[1], gates)
    np.testing.assert_allclose(ours[0], logits, atol=1e-4)


@pytest.mark.parametrize(("depth", "prefix"), [(20, "module."), (56, "")])
def test_a_checkpoint_becomes_a_run_with_the_same_answers_and_goes_back(
    tmp_path, pictures, depth, prefix
):
    theirs = GaterNet(depth, seed=depth)
    path = save({"epoch": 160, **theirs.content(prefix)}, tmp_path / "it.pth")
    answers = theirs(pictures)
    run = checkpoint_to_run(path, tmp_path / "run", f"resnet{depth}")
    assert_agree(predict(run, pictures), answers)
    assert run.labels[:2] == ["airplane", "automobile"]
    assert run.result["converted_from"]["file"] == "it.pth"
    assert run.result["gates"] == {20: 336, 56: 1008}[depth]
    assert run.result["parameters"] == {20: 547_842, 56: 1_137_186}[depth]

    run_to_checkpoint(run.path, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    other = GaterNet(depth, seed=2)
    other.load(back)
    assert_agree(predict(run, pictures), other(pictures))
    for part, values in GaterNet(depth, seed=depth).content().items():
        kept = [key for key in values if not key.endswith("num_batches_tracked")]
        assert list(back[part]) == kept
        for key in kept:
            torch.testing.assert_close(back[part][key], values[key], rtol=0, atol=1e-7)


def test_a_preactivation_of_exactly_zero_is_on_as_theirs_is(theirs, pictures, tmp_path):
    content = theirs.content()
    gater = content[GATER]
    gater["fnn.fc.0.weight"] = torch.zeros_like(gater["fnn.fc.0.weight"])
    bias = torch.linspace(-1e-4, 1e-4, 336)
    bias[168] = 0.0
    gater["fnn.fc.0.bias"] = bias
    other = GaterNet(20, seed=3)
    other.load(content)
    run = checkpoint_to_run(save(content, tmp_path / "it.pth"), tmp_path / "run", "resnet20")
    (gates, *_) = predict(run, pictures)[1]
    np.testing.assert_array_equal(gates, other(pictures)[1][0])
    np.testing.assert_array_equal(gates, bias.numpy() > THRESHOLD)
    assert gates[168] == 1
    assert 0 < gates[:168].sum() < 168


def test_the_command_converts_there_and_back(call, theirs, tmp_path):
    save(theirs.content(), tmp_path / "ResNet-20-Gated.pth")
    flags = ["--checkpoint=ResNet-20-Gated.pth", "--backbone=resnet20", "--output=runs/authors"]
    done = call("train.convert", *flags)
    assert done.status == 0, done.err
    assert done.out == (
        "wrote runs/authors: resnet20, gater resnet20, 547,842 parameters, 336 gates\n"
        "measure it with python -m train.evaluate --workdir=runs/authors\n"
    )
    done = call("train.convert", "--to_torch", "runs/authors")
    assert (done.status, done.out) == (0, "wrote runs/authors/authors.pth\n"), done.err
    GaterNet(20, seed=1).load(torch.load("runs/authors/authors.pth", weights_only=True))
    assert open_run("runs/authors").result["gates"] == 336


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["either --checkpoint=FILE or --to_torch=RUN"]),
        (["--checkpoint=it.pth"], ["--output=RUN"]),
        (["--checkpoint=it.pth", "--output=taken"], ["--output must be new or empty", "mine"]),
        (["--checkpoint=none.pth", "--output=run"], ["No such file", "none.pth"]),
        (["--checkpoint=it.pth", "--output=run"], ["must be a PyTorch file", "'it.pth'"]),
        (["--checkpoint=it.pth", "--output=run", "--backbone=resnet21"], ["6n+2", "resnet21"]),
        (["--to_torch=taken"], ["--workdir must be a run directory", "taken"]),
    ],
)
def test_the_command_refuses_bad_input_and_writes_nothing(call, tmp_path, flags, words):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    (tmp_path / "it.pth").write_text("no checkpoint")
    before = sorted(tmp_path.rglob("*"))
    call("train.convert", *flags).assert_refused(*words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_with_another_head_is_refused(call, trained, tmp_path):
    done = call("train.convert", f"--to_torch={trained.path}", "--output=it.pth")
    done.assert_refused("--nohead_batch_norm")
    assert list(tmp_path.iterdir()) == []


def test_without_torch_the_error_says_how_to_get_it(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    done = call("train.convert", "--checkpoint=it.pth", "--output=run")
    done.assert_refused("PyTorch is required", "pip install '.[torch]'")


class Bomb:
    """Unpickled, it would make the directory `exploded`."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (os.mkdir, (str(self.place / "exploded"),))


def test_a_pickle_that_would_run_code_is_refused(theirs, tmp_path):
    path = save({**theirs.content(), "extra": Bomb(tmp_path)}, tmp_path / "it.pth")
    with pytest.raises(UserError, match="holds more than tensors, which is refused without"):
        checkpoint_to_run(path, tmp_path / "run", "resnet20")
    assert os.listdir(tmp_path) == ["it.pth"]
    # Unprotected, it would have run.
    torch.load(path, weights_only=False)
    assert (tmp_path / "exploded").exists()


def without_a_tensor(content):
    del content[BACKBONE]["stage2.block1.shortcut.bn.running_mean"]
    return content


def with_a_tensor(content, part, key, value):
    content[part][key] = value
    return content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_a_tensor, ["1 missing: backbone stage2.block1.shortcut.bn.running_mean"]),
        (
            lambda c: with_a_tensor(c, GATER, "resnet.fc.weight", torch.zeros(10, 64)),
            ["1 unexpected: gater resnet.fc.weight"],
        ),
        (
            lambda c: with_a_tensor(c, BACKBONE, "fc.weight", torch.zeros(100, 64)),
            ["1 of another shape: backbone fc.weight ([100, 64], must be [10, 64])"],
        ),
        (lambda c: GaterNet(56).content(), ["unexpected", "more", "--backbone and --gater must"]),
        (lambda c: c[BACKBONE], ["with backbone_state_dict and gater_state_dict"]),
    ],
    ids=["missing", "unexpected", "shape", "another_network", "another_file"],
)
def test_another_checkpoint_is_refused_and_nothing_is_written(theirs, tmp_path, change, words):
    path = save(change(theirs.content()), tmp_path / "it.pth")
    with pytest.raises(UserError) as caught:
        checkpoint_to_run(path, tmp_path / "run", "resnet20")
    for word in words:
        assert word in str(caught.value)
    assert os.listdir(tmp_path) == ["it.pth"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"head_batch_norm": True}, "--nohead_batch_norm"),
        ({"gater": "none"}, "no gater"),
        ({"gated_convs": "all"}, "--gated_convs=all"),
        ({"backbone": "resnet11"}, "bottleneck units"),
        ({"gater": "resnet11"}, "bottleneck units"),
    ],
)
def test_a_network_that_their_code_cannot_hold_is_refused(arguments, words):
    settings = {"backbone": "resnet8", "gater": "resnet8", "head_batch_norm": False}
    with pytest.raises(UserError, match=words):
        state_dicts(build_gaternet(**(settings | arguments)))
