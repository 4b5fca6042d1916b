"""The authors' format, both ways, against the network written in PyTorch from its description."""

import os
import pathlib
import sys

import numpy as np
import pytest

from gaternet_tf import UserError, build_gaternet
from gaternet_tf.runs import open_run
from train.authors_format import THRESHOLD, load_state_dicts, state_dicts

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[torch]'")
sys.path.append(str(pathlib.Path(__file__).parents[1]))
from authors_network import GaterNet  # noqa: E402

from train.conversion import checkpoint_to_run  # noqa: E402

BACKBONE, GATER = "backbone_state_dict", "gater_state_dict"


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype(np.uint8)


def save(content, path="it.pth"):
    torch.save(content, path)


def predict(run, pictures):
    outputs = run.load_model()(run.preprocessing.normalize(pictures), training=False)
    return np.asarray(outputs["logits"]), np.asarray(outputs["gates"])


def assert_agree(ours, theirs):
    logits, gates = theirs
    assert 0.05 < gates.mean() < 0.95
    assert len(np.unique(gates, axis=0)) > 1
    np.testing.assert_array_equal(ours[1], gates)
    np.testing.assert_allclose(ours[0], logits, atol=1e-4)


@pytest.mark.parametrize(
    ("depth", "prefix", "parameters", "gates"),
    [(20, "module.", "547,842", 336), (56, "", "1,137,186", 1008)],
)
def test_a_checkpoint_becomes_a_run_with_the_same_answers_and_goes_back(
    call, pictures, depth, prefix, parameters, gates
):
    theirs = GaterNet(depth, seed=depth)
    save({"epoch": 160, **theirs.content(prefix)})
    flags = ["--checkpoint=it.pth", f"--backbone=resnet{depth}", "--output=runs/authors"]
    done = call("train.convert", *flags)
    assert done.status == 0, done.err
    assert done.out == (
        f"wrote runs/authors: resnet{depth}, gater resnet20, {parameters} parameters, {gates} "
        "gates\nmeasure it with python -m train.evaluate --workdir=runs/authors\n"
    )
    run = open_run("runs/authors")
    assert run.labels[:2] == ["airplane", "automobile"]
    assert run.result["converted_from"]["file"] == "it.pth"
    assert_agree(predict(run, pictures), theirs.predict(pictures))

    done = call("train.convert", "--to_torch", "runs/authors")
    assert (done.status, done.out) == (0, "wrote runs/authors/authors.pth\n"), done.err
    back = torch.load("runs/authors/authors.pth", weights_only=True)
    GaterNet(depth, seed=2).load(back)
    for part, values in theirs.content().items():
        kept = [key for key in values if not key.endswith("num_batches_tracked")]
        assert list(back[part]) == kept
        for key in kept:
            torch.testing.assert_close(back[part][key], values[key], rtol=0, atol=1e-7)


def arrays(content):
    return {part: {k: v.numpy() for k, v in values.items()} for part, values in content.items()}


def small_model(**changes):
    settings = {"backbone": "resnet8", "gater": "resnet8", "head_batch_norm": False}
    return build_gaternet(**(settings | changes))


def test_a_preactivation_of_exactly_zero_is_on_as_theirs_is(pictures):
    theirs = GaterNet(8, 8)
    bias = torch.linspace(-1e-4, 1e-4, 112)
    bias[56] = 0.0
    content = theirs.content()
    content[GATER]["fnn.fc.0.weight"] = torch.zeros(112, 8)
    content[GATER]["fnn.fc.0.bias"] = bias
    theirs.load(content)
    model = small_model()
    load_state_dicts(model, arrays(content))
    gates = np.asarray(model(pictures.astype(np.float32), training=False)["gates"])[0]
    np.testing.assert_array_equal(gates, theirs.predict(pictures)[1][0])
    np.testing.assert_array_equal(gates, bias.numpy() > THRESHOLD)
    assert gates[56] == 1
    assert 0 < gates[:56].sum() < 56


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["either --checkpoint=FILE or --to_torch=RUN"]),
        (["--checkpoint=it.pth"], ["--output=RUN"]),
        (["--checkpoint=it.pth", "--output=taken"], ["--output must be new or empty", "mine"]),
        (["--checkpoint=none.pth", "--output=run"], ["No such file", "none.pth"]),
        (["--checkpoint=it.pth", "--output=run"], ["must be a PyTorch file", "'it.pth'"]),
    ],
)
def test_the_command_refuses_bad_input_and_writes_nothing(call, tmp_path, flags, words):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    (tmp_path / "it.pth").write_text("no checkpoint")
    before = sorted(tmp_path.rglob("*"))
    call("train.convert", *flags).assert_refused(*words)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_torch_the_error_says_how_to_get_it(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "train.conversion")
    done = call("train.convert", "--checkpoint=it.pth", "--output=run")
    done.assert_refused("PyTorch is required", "pip install '.[torch]'")


class Bomb:
    """Unpickled, it would make the directory `exploded`."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (os.mkdir, (str(self.place / "exploded"),))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "it.pth"
    save({**GaterNet(8, 8).content(), "extra": Bomb(tmp_path)}, path)
    with pytest.raises(UserError, match="holds more than tensors, which is refused without"):
        checkpoint_to_run(path, tmp_path / "run", "resnet8", "resnet8")
    assert os.listdir(tmp_path) == ["it.pth"]
    # Unprotected, it would have run.
    torch.load(path, weights_only=False)
    assert (tmp_path / "exploded").exists()


def test_another_checkpoint_is_refused_with_its_tensors_and_nothing_is_written(tmp_path):
    path = tmp_path / "it.pth"
    content = GaterNet(8, 8).content()
    del content[BACKBONE]["stage2.block1.shortcut.bn.running_mean"]
    content[GATER]["resnet.fc.weight"] = torch.zeros(10, 64)
    content[BACKBONE]["fc.weight"] = torch.zeros(100, 64)
    save(content, path)
    with pytest.raises(UserError) as caught:
        checkpoint_to_run(path, tmp_path / "run", "resnet8", "resnet8")
    assert (
        "this one has no backbone stage2.block1.shortcut.bn.running_mean; an unexpected gater "
        "resnet.fc.weight; backbone fc.weight of shape [100, 64], must be [10, 64]. --backbone and"
    ) in str(caught.value)
    save(content[BACKBONE], path)
    with pytest.raises(UserError, match="with backbone_state_dict and gater_state_dict"):
        checkpoint_to_run(path, tmp_path / "run", "resnet8", "resnet8")
    assert os.listdir(tmp_path) == ["it.pth"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_batch_norm": True}, "--nohead_batch_norm"),
        ({"gater": "none"}, "no gater"),
        ({"gated_convs": "all"}, "--gated_convs=all"),
        ({"gater": "resnet11"}, "bottleneck units"),
    ],
)
def test_a_network_that_their_code_cannot_hold_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        state_dicts(small_model(**changes))
