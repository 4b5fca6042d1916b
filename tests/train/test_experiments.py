"""Every named experiment is legal and says its command; its smallest variant trains."""

import textwrap

import numpy as np
import pytest

from gaternet_tf import UserError
from gaternet_tf.models import build_gaternet
from gaternet_tf.runs import open_run
from train.config import TrainingConfig
from train.experiments import EXPERIMENTS, find_experiment, list_experiments
from train.loop import train
from train.recipe import count_parameters

KINDS = ("plain", "wide", "se", "gated", "gated-released")


def test_settings_are_legal_and_the_note_has_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'runs/fashion-resnet20-plain-0/model.keras' does not ex"):
        TrainingConfig(**EXPERIMENTS["fashion-resnet20-gated-pretrained"].settings).check()
    gater = tmp_path / "runs" / "fashion-resnet20-plain-0" / "model.keras"
    gater.parent.mkdir(parents=True)
    gater.touch()
    for name, experiment in EXPERIMENTS.items():
        for settings in (experiment.settings, experiment.smoke()):
            TrainingConfig(**settings).check()
        assert f"python -m train.main --experiment={name}\n" in experiment.note
        assert list_experiments(name) == f"{name}\n{textwrap.indent(experiment.note, '  ')}"
    head, *rows, _ = list_experiments().splitlines()
    assert [row.split()[0] for row in rows] == list(EXPERIMENTS)
    assert max(map(len, (head, *rows))) < 80
    assert len(list_experiments("fashion-resnet20-*").splitlines()) == 14
    with pytest.raises(UserError, match="no experiment matches 'x\\*'; --experiment=help lists"):
        list_experiments("x*")
    with pytest.raises(UserError, match=r"got 'resnet20-fashion'.*did you mean fashion-resnet20-"):
        find_experiment("resnet20-fashion")


def test_there_is_a_row_for_every_comparison_of_the_paper():
    expected = {
        f"{dataset}-resnet{depth}-{kind}"
        for dataset in ("cifar10", "cifar100", "fashion")
        for depth in (20, 56, 164)
        for kind in KINDS
    }
    assert set(EXPERIMENTS) == expected | {
        *(
            f"fashion-resnet{depth}-gated-open{sparsity}"
            for depth in (20, 56, 164)
            for sparsity in ("", "-lambda0", "-lambda0.01", "-lambda0.03")
        ),
        *(
            f"fashion-resnet{depth}-gated-pretrained{sparsity}"
            for depth in (20, 56, 164)
            for sparsity in ("", "-lambda0", "-lambda0.01")
        ),
        *(f"fashion30-resnet20-{kind}" for kind in ("plain", "wide", "gated-open")),
    }
    gated_open = find_experiment("fashion-resnet56-gated-open").settings
    assert find_experiment("fashion-resnet56-gated-open-lambda0.01").settings == {
        **gated_open,
        "sparsity": 0.01,
    }
    assert find_experiment("fashion30-resnet20-plain").settings["epochs"] == 30


def test_no_other_width_comes_nearer_to_the_gated_parameters():
    # Of all depths the smallest, which is built fastest.
    wide = find_experiment("cifar10-resnet20-wide")
    gated = count_parameters(build_gaternet("resnet20", "resnet20"))
    width = wide.settings["width"]
    # Parameters rise with the width, so the neighbours stand for all others.
    smaller, ours, larger = (
        count_parameters(build_gaternet("resnet20", "none", width=width + step))
        for step in (-1, 0, 1)
    )
    assert smaller < gated < larger
    assert abs(ours - gated) < min(gated - smaller, larger - gated)
    numbers = [f"{round(number, -3):,}" for number in (ours, gated)]
    assert all(number in wide.note for number in (str(width), *numbers))


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


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore:Even though:UserWarning")
def test_an_experiment_trains_in_its_smoke_variant(tmp_path):
    settings = find_experiment("fashion-resnet164-gated-open").smoke()
    settings |= {"dataset": idx_files(tmp_path / "files"), "data_dir": str(tmp_path / "data")}
    result = train(TrainingConfig(**settings), tmp_path / "run")
    assert result["test_images"] == 20
    # Nearly all gates start on.
    assert result["gate_rate"] > 0.9
    assert open_run(tmp_path / "run").config["steps_per_epoch"] == 2
