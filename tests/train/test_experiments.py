"""Every named experiment is legal, tells its command, and trains in its smoke variant."""

import numpy as np
import pytest
from helpers import stand_in_for_cifar_servers

from gaternet_tf import UserError
from gaternet_tf.models import build_gaternet
from gaternet_tf.runs import open_run
from train.experiments import EXPERIMENTS, find_experiment, list_experiments
from train.loop import TrainingConfig, count_parameters, train

KINDS = ("plain", "wide", "se", "gated", "gated-released")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_settings_are_legal_and_the_note_tells_the_command(name):
    experiment = find_experiment(name)
    for settings in (experiment.settings, experiment.smoke()):
        TrainingConfig(**settings).check()
    assert f"python -m train.main --experiment={name}\n" in experiment.note
    assert "Expected cost: " in experiment.note
    assert "hours on 2 CPU cores" in experiment.note
    assert name in list_experiments()
    assert experiment.title in list_experiments()


def test_there_is_a_row_for_every_comparison_of_the_paper():
    wanted = {
        f"{dataset}-resnet{depth}-{kind}"
        for dataset in ("cifar10", "cifar100")
        for depth in (20, 56, 164)
        for kind in KINDS
    }
    fashion = {
        f"fashion-resnet{depth}-{kind}"
        for depth in (20, 56, 164)
        for kind in (*KINDS, "gated-open")
    }
    assert set(EXPERIMENTS) == wanted | fashion


def parameters(experiment, **changes):
    """Of the network that a CIFAR-10 experiment trains."""
    parts = ("backbone", "gater", "width")
    settings = {key: value for key, value in experiment.settings.items() if key in parts}
    return count_parameters(build_gaternet(**(settings | changes)))


@pytest.mark.parametrize("depth", [20, 56, 164])
def test_no_other_width_comes_nearer_to_the_gated_parameters(depth):
    wide = find_experiment(f"cifar10-resnet{depth}-wide")
    gated = parameters(find_experiment(f"cifar10-resnet{depth}-gated"))
    width = wide.settings["width"]
    # Parameters rise with the width, so the neighbours stand for all others.
    smaller, ours, larger = (parameters(wide, width=width + step) for step in (-1, 0, 1))
    assert smaller < gated < larger
    assert abs(ours - gated) < min(gated - smaller, larger - gated)
    numbers = [f"{round(number, -3):,}" for number in (ours, gated)]
    assert all(number in wide.note for number in (str(width), *numbers))


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="--experiment=help lists, got 'cifar'"):
        find_experiment("cifar")


def idx_files(directory):
    """28x28 pictures in the format of Fashion-MNIST."""
    rng = np.random.default_rng(0)
    directory.mkdir()
    for prefix, count in (("train", 60), ("t10k", 20)):
        for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            array = rng.integers(0, 10, shape).astype(np.uint8)
            head = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
            (directory / f"{prefix}-{kind}-ubyte").write_bytes(head + array.tobytes())
    return f"idx:{directory}"


KINDS = ["plain", "wide", "se", "gated", "gated-released"]
ON_FASHION = [f"fashion-resnet20-{kind}" for kind in [*KINDS, "gated-open"]]
ON_FASHION += ["fashion-resnet164-gated-open"]
ON_CIFAR = [f"cifar10-resnet164-{kind}" for kind in KINDS] + ["cifar100-resnet20-gated"]


@pytest.mark.parametrize("name", ON_FASHION)
def test_fashion_experiments_train_in_their_smoke_variants(tmp_path, name):
    settings = find_experiment(name).smoke()
    settings |= {"dataset": idx_files(tmp_path / "files"), "data_dir": str(tmp_path / "data")}
    result = train(TrainingConfig(**settings), tmp_path / "run")
    assert result["test_images"] == 20
    assert ("gate_rate" in result) == ("-gated" in name)
    assert open_run(tmp_path / "run").config["steps_per_epoch"] == 2


@pytest.mark.parametrize("name", ON_CIFAR)
def test_cifar_experiments_train_in_their_smoke_variants(tmp_path, monkeypatch, name):
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3)).astype(np.uint8)
    stand_in_for_cifar_servers(monkeypatch, tmp_path / "archive", images, np.arange(64) % 10)
    settings = find_experiment(name).smoke()
    config = TrainingConfig(**settings, data_dir=str(tmp_path / "data"))
    result = train(config, tmp_path / "run")
    assert result["test_images"] == 4
    assert open_run(tmp_path / "run").config["dataset"] == settings["dataset"]


@pytest.mark.parametrize("name", sorted(set(EXPERIMENTS) - {*ON_FASHION, *ON_CIFAR}))
def test_every_other_one_differs_from_a_trained_one_in_its_data_and_width_only(name):
    dataset, backbone, kind = name.split("-", 2)
    twin = f"{'cifar10-resnet164' if backbone == 'resnet164' else 'fashion-resnet20'}-{kind}"
    data = {"dataset", "crop_padding", "flip", "schedule", "epochs", "width"}
    ours, theirs = (
        {key: value for key, value in find_experiment(one).smoke().items() if key not in data}
        for one in (name, twin)
    )
    assert ours == theirs
    assert dataset in ("cifar10", "cifar100", "fashion")
