"""The settings: defaults, limits, and the flags made of them."""

import dataclasses

import pytest
from helpers import help_without_tensorflow

from gaternet_tf import UserError
from train.config import TrainingConfig, default_workdir


def test_the_defaults_are_legal():
    TrainingConfig().check()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"select": "worst"}, "--select must be one of best, last, got worst"),
        ({"gate_bias": float("nan")}, "--gate_bias must be a finite number, got nan"),
        ({"sparsity": -0.1}, "--sparsity must be 0 or more, got -0.1"),
        ({"sparsity": float("inf")}, "--sparsity must be a finite number"),
        ({"learning_rate": 0.0}, "--learning_rate must be above 0, got 0.0"),
        ({"momentum": 1.0}, "--momentum must be below 1, got 1.0"),
        ({"epochs": 0}, "--epochs must be 1 or more, got 0"),
        ({"validation": 1.0}, "--validation must be below 1"),
        ({"dataset": "folder:mine"}, "no common size; give --image_size=PIXELS"),
        ({"attention": "se"}, "--attention=se takes the place of the gates and needs"),
        ({"deterministic": True, "jit_compile": True}, "--deterministic does not go with"),
        ({"strategy": "multi_worker", "jit_compile": True}, "leave out --jit_compile"),
        ({"backbone": "resnet21"}, "6n\\+2.*got 'resnet21'"),
        ({"gater": "resnet21"}, "6n\\+2.*got 'resnet21'"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_what_is_legal(change, words):
    with pytest.raises(UserError, match=words):
        TrainingConfig(**change).check()


def test_default_directories_tell_apart_what_is_trained():
    named = {"backbone": "resnet20", "gate_bias": 2.0}
    names = [
        default_workdir(TrainingConfig(**settings), {})
        for settings in ({}, {"sparsity": 0.5}, {"gater": "none"}, {"seed": 1})
    ]
    assert names == [
        *("runs/cifar10-resnet20-0", "runs/cifar10-resnet20-sparsity_0.5-0"),
        *("runs/cifar10-resnet20-gater_none-0", "runs/cifar10-resnet20-1"),
    ]
    pets = TrainingConfig(dataset="folder:my/pets", data_dir="elsewhere")
    assert default_workdir(pets, {}) == "runs/folder-my-pets-resnet20-0"
    config = TrainingConfig(**named, sparsity=1.0)
    assert default_workdir(config, named, "open", smoke=True) == "runs/open-smoke-sparsity_1.0-0"


def test_a_run_records_every_setting(trained):
    assert list(trained.config) == [field.name for field in dataclasses.fields(TrainingConfig)]


@pytest.mark.parametrize("command", ["main", "sweep", "evaluate", "summary", "table", "convert"])
def test_help_needs_no_tensorflow(tmp_path, command):
    text = help_without_tensorflow(f"train.{command}", tmp_path)
    names = [field.name for field in dataclasses.fields(TrainingConfig)]
    expected = {
        "main": [*names, "experiment", "workdir"],
        "sweep": ["jobs"],
        "evaluate": ["workdir", "data_dir", "download"],
        "summary": ["workdir", "backbone", "head_batch_norm"],
        "table": ["output_dir"],
        "convert": ["checkpoint", "backbone", "gater"],
    }
    for name in expected[command]:
        assert f"--{name}=" in text or f"--[no]{name}\n" in text
    headings = {
        "main": ["Data", "Network", "Gates", "Optimisation", "Run", "Examples"],
        "sweep": ["Flags", "Examples"],
    }
    found = [line for line in text.splitlines() if line and line.split() == [line]]
    assert found == headings.get(command, ["Flags"])
