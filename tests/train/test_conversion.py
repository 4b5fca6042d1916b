"""The authors' format, both ways, against the network written in PyTorch from its description."""

import collections
import os
import pathlib
import pickle
import sys

import numpy as np
import pytest
from helpers import plant_run, stand_in_for_cifar_servers

from export.exporting import ExportConfig, export_run
from gaternet_tf import UserError, build_gaternet
from gaternet_tf.evaluation import evaluate_run
from gaternet_tf.runs import open_run
from train.authors_format import THRESHOLD, load_state_dicts, state_dicts
from train.conversion import checkpoint_to_run, run_to_checkpoint

torch = pytest.importorskip("torch", reason="needs pip install '.[torch]', as make test does")
sys.path.append(str(pathlib.Path(__file__).parent))
from authors_network import GaterNet, prefixed  # noqa: E402


@pytest.fixture(scope="module")
def theirs():
    """Their ResNet-20-Gated, with random weights and statistics."""
    return GaterNet(20)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype(np.uint8)


def save(content, path, **options):
    torch.save(content, path, **options)
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


@pytest.mark.parametrize(
    ("depth", "prefix", "as_zip"),
    [(20, "", True), (20, "module.", False), (56, "module.", True), (56, "", False)],
)
def test_a_checkpoint_becomes_a_run_with_the_same_answers(
    tmp_path, pictures, depth, prefix, as_zip
):
    theirs = GaterNet(depth, seed=depth)
    content = {"epoch": 160, **theirs.content(prefix)}
    path = save(content, tmp_path / "it.pth", _use_new_zipfile_serialization=as_zip)
    checkpoint_to_run(path, tmp_path / "run", f"resnet{depth}")
    run = open_run(tmp_path / "run")
    assert_agree(predict(run, pictures), theirs(pictures))
    assert run.labels[:2] == ["airplane", "automobile"]
    assert run.result["converted_from"]["file"] == "it.pth"
    assert run.result["gates"] == {20: 336, 56: 1008}[depth]
    assert run.result["parameters"] == {20: 547_842, 56: 1_137_186}[depth]


@pytest.mark.parametrize("depth", [20, 56])
def test_a_run_of_ours_gives_the_same_answers_in_their_network(tmp_path, pictures, depth):
    source = GaterNet(depth, seed=1)
    path = save(source.content(), tmp_path / "source.pth")
    run = checkpoint_to_run(path, tmp_path / "run", f"resnet{depth}")
    run_to_checkpoint(run.path, tmp_path / "back.pth")
    other = GaterNet(depth, seed=2)
    other.load(torch.load(tmp_path / "back.pth", weights_only=True))
    assert_agree(predict(run, pictures), other(pictures))


def test_random_weights_of_ours_agree_in_their_network(pictures, tmp_path):
    model = build_gaternet("resnet20", "resnet20", head_batch_norm=False, seed=5)
    rng = np.random.default_rng(5)
    for variable in model.variables:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(rng.normal(0, 0.3, variable.shape))
    other = GaterNet(20, seed=6)
    other.load(
        {
            part: {key: torch.from_numpy(value) for key, value in values.items()}
            for part, values in state_dicts(model).items()
        }
    )
    from gaternet_tf.data import Preprocessing, defaults_of

    normalize = Preprocessing(32, 32, 3, *defaults_of("cifar10").statistics).normalize
    outputs = model(normalize(pictures), training=False)
    ours = np.asarray(outputs["logits"]), np.asarray(outputs["gates"])
    assert_agree(ours, other(pictures))


def test_a_preactivation_of_exactly_zero_is_on_as_theirs_is(theirs, pictures, tmp_path):
    content = theirs.content()
    gater = content["gater_state_dict"]
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


def test_the_tensors_survive_the_way_there_and_back(theirs, tmp_path):
    path = save(theirs.content(), tmp_path / "it.pth")
    run = checkpoint_to_run(path, tmp_path / "run", "resnet20")
    run_to_checkpoint(run.path, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    for part, values in theirs.content().items():
        kept = [key for key in values if not key.endswith("num_batches_tracked")]
        assert list(back[part]) == kept
        for key in kept:
            torch.testing.assert_close(back[part][key], values[key], rtol=0, atol=1e-7)


def test_half_precision_and_missing_counters_are_read(theirs, tmp_path):
    content = {
        part: {
            key: value.half() if value.is_floating_point() else value
            for key, value in values.items()
            if not key.endswith("num_batches_tracked")
        }
        for part, values in theirs.content().items()
    }
    run = checkpoint_to_run(save(content, tmp_path / "it.pth"), tmp_path / "run", "resnet20")
    kernel = run.load_model().get_layer("stem").convolution.kernel
    wanted = theirs.backbone.conv.weight.detach().half().float().permute(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, wanted)


def test_a_converted_run_is_evaluated_on_cifar10(theirs, pictures, tmp_path, monkeypatch):
    logits, gates = theirs(pictures[-4:])
    labels = np.arange(16) % 10
    labels[-4:] = logits.argmax(-1)
    labels[-1] = (labels[-1] + 1) % 10  # One is wrong.
    stand_in_for_cifar_servers(monkeypatch, tmp_path / "archive", pictures, labels)
    run = checkpoint_to_run(
        save(theirs.content(), tmp_path / "it.pth"), tmp_path / "run", "resnet20"
    )
    result = evaluate_run(run.path, data_dir=str(tmp_path / "data"))
    assert (result["dataset"], result["split"], result["images"]) == ("cifar10", "test", 4)
    assert result["accuracy"] == 0.75
    assert result["gate_rate"] == pytest.approx(gates.mean())
    chances = torch.log_softmax(torch.from_numpy(logits), -1).numpy()
    assert result["loss"] == pytest.approx(-chances[np.arange(4), labels[-4:]].mean(), abs=1e-4)


def test_a_converted_run_exports(theirs, tmp_path):
    path = save(theirs.content(), tmp_path / "it.pth")
    checkpoint_to_run(path, tmp_path / "run", "resnet20")
    version = export_run(ExportConfig(tmp_path / "run", tmp_path / "models" / "authors"))
    assert (version / "assets.extra" / "tf_serving_warmup_requests").stat().st_size > 0


class Bomb:
    """Unpickled, it would make the directory `exploded`."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (os.mkdir, (str(self.place / "exploded"),))


def without(content, part, key):
    del content[part][key]
    return content


def with_one(content, part, key, value):
    content[part][key] = value
    return content


BACKBONE, GATER = "backbone_state_dict", "gater_state_dict"
WRONG = {
    "missing_key": (
        lambda c: without(c, BACKBONE, "stage2.block1.shortcut.bn.running_mean"),
        ["1 missing: backbone stage2.block1.shortcut.bn.running_mean"],
    ),
    "unexpected_key": (
        lambda c: with_one(c, GATER, "resnet.fc.weight", torch.zeros(10, 64)),
        ["1 unexpected: gater resnet.fc.weight"],
    ),
    "key_twice": (
        lambda c: with_one(c, BACKBONE, "module.fc.bias", torch.zeros(10)),
        ["1 there twice", "backbone fc.bias"],
    ),
    "shape": (
        lambda c: with_one(c, BACKBONE, "fc.weight", torch.zeros(100, 64)),
        ["1 of another shape: backbone fc.weight ([100, 64], must be [10, 64])"],
    ),
    "several": (
        lambda c: with_one(without(c, BACKBONE, "fc.bias"), GATER, "x", torch.zeros(1)),
        ["1 missing: backbone fc.bias; 1 unexpected: gater x"],
    ),
    "not_finite": (
        lambda c: with_one(c, BACKBONE, "fc.bias", torch.full([10], float("nan"))),
        ["1 not finite: backbone fc.bias"],
    ),
    "counter_of_nothing": (
        lambda c: with_one(c, BACKBONE, "fc.num_batches_tracked", torch.zeros(())),
        ["1 unexpected: backbone fc.num_batches_tracked"],
    ),
    "no_tensor": (
        lambda c: with_one(c, BACKBONE, "fc.bias", [1, 2]),
        ["holds no tensor but a list as fc.bias"],
    ),
    "another_network": (
        lambda c: GaterNet(56).content(),
        ["unexpected", "more", "of another shape", "keys are those of --backbone=resnet56"],
    ),
    "another_library": (
        lambda c: {BACKBONE: {"layer1.0.conv1.weight": torch.zeros(1)}, GATER: {}},
        ["216 missing: gater resnet.conv.weight", "1 unexpected: backbone layer1.0.conv1.weight"],
    ),
    "plain_state_dict": (
        lambda c: c[BACKBONE],
        ["must be a PyTorch file with backbone_state_dict", "'bn.bias'"],
    ),
    "half": (lambda c: {BACKBONE: c[BACKBONE]}, ["has ['backbone_state_dict']"]),
    "a_tensor": (lambda c: torch.zeros(3), ["has Tensor"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_that_network_is_refused_and_nothing_is_written(theirs, tmp_path, name):
    change, words = WRONG[name]
    path = save(change(theirs.content()), tmp_path / "it.pth")
    with pytest.raises(UserError) as error:
        checkpoint_to_run(path, tmp_path / "run", "resnet20")
    for word in words:
        assert word in str(error.value)
    assert os.listdir(tmp_path) == ["it.pth"]


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickle_that_would_run_code_is_refused_unrun(theirs, tmp_path, as_zip):
    content = {**theirs.content(), "extra": Bomb(tmp_path)}
    path = save(content, tmp_path / "it.pth", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(UserError, match=r"holds posix\.mkdir, which is refused unrun"):
        checkpoint_to_run(path, tmp_path / "run", "resnet20")
    assert os.listdir(tmp_path) == ["it.pth"]
    # The bomb is a real one.
    torch.load(path, weights_only=False)
    assert (tmp_path / "exploded").exists()


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1000], lambda data: data[:300], lambda data: b"", flip]
)
@pytest.mark.parametrize("as_zip", [True, False])
def test_a_damaged_file_is_refused(theirs, tmp_path, damage, as_zip):
    path = save(theirs.content(), tmp_path / "it.pth", _use_new_zipfile_serialization=as_zip)
    data = path.read_bytes()
    if damage is flip and not as_zip:
        data = data[: len(data) // 3]  # The old format has no checksums.
    path.write_bytes(damage(data))
    with pytest.raises(UserError, match=r"it\.pth'.*get it again"):
        checkpoint_to_run(path, tmp_path / "run", "resnet20")
    assert os.listdir(tmp_path) == ["it.pth"]


@pytest.mark.parametrize("data", [b"hello", pickle.dumps({"a": 1}), b"PK\x03\x04"])
def test_a_file_of_another_kind_is_refused(tmp_path, data):
    path = tmp_path / "it.pth"
    path.write_bytes(data)
    with pytest.raises(UserError, match="must be a PyTorch file with"):
        checkpoint_to_run(path, tmp_path / "run", "resnet20")


def test_a_place_that_is_taken_is_refused_before_the_file_is_read(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"--output must be new or empty.*mine\.txt"):
        checkpoint_to_run(tmp_path / "none.pth", tmp_path, "resnet20")
    with pytest.raises(UserError, match=r"none\.pth' is no file"):
        checkpoint_to_run(tmp_path / "none.pth", tmp_path / "run", "resnet20")
    with pytest.raises(UserError, match="exists; choose another"):
        run_to_checkpoint(plant_run(tmp_path / "finished").path, tmp_path / "mine.txt")


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


def test_a_refused_dictionary_leaves_the_model_as_it_was():
    model = build_gaternet("resnet8", "resnet8", head_batch_norm=False, seed=1)
    before = [np.array(variable) for variable in model.variables]
    parts = {part: collections.OrderedDict(values) for part, values in state_dicts(model).items()}
    parts[BACKBONE]["fc.bias"] = np.ones(11, np.float32)
    parts[BACKBONE]["conv.weight"] = parts[BACKBONE]["conv.weight"] + 1
    with pytest.raises(UserError, match="of another shape"):
        load_state_dicts(model, parts)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_prefixes_are_what_dataparallel_writes():
    plain = torch.nn.Linear(2, 2)
    wrapped = torch.nn.DataParallel(plain).state_dict()
    assert list(prefixed(plain.state_dict(), "module.")) == list(wrapped)
