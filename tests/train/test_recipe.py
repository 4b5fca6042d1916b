"""Schedules and optimizers, and the model that a run leaves."""

import keras
import numpy as np
import pytest
from helpers import run_python

from gaternet_tf.runs import RunDirectory
from train.config import TrainingConfig
from train.recipe import build_and_compile, learning_rate_schedule, make_optimizer, set_weight_decay

STEPS = 10


def rates(**settings):
    schedule = learning_rate_schedule(TrainingConfig(**settings), STEPS)
    return np.array([float(schedule(step)) for step in range(settings["epochs"] * STEPS)])


def test_the_default_is_the_cifar_recipe():
    by_epoch = rates(epochs=160)[::STEPS]
    np.testing.assert_allclose(by_epoch[:80], 0.1, rtol=1e-6)
    np.testing.assert_allclose(by_epoch[81:120], 0.01, rtol=1e-6)
    np.testing.assert_allclose(by_epoch[121:], 0.001, rtol=1e-6)


def test_cosine_falls_from_the_rate_to_nothing():
    by_step = rates(epochs=10, schedule="cosine", learning_rate=0.2)
    expected = 0.2 * (1 + np.cos(np.pi * np.arange(100) / 100)) / 2
    np.testing.assert_allclose(by_step, expected, atol=1e-6)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_a_warm_up_rises_linearly_and_then_joins_the_schedule(schedule):
    plain = rates(epochs=4, schedule=schedule)
    warm = rates(epochs=4, schedule=schedule, warmup_epochs=1.5)
    np.testing.assert_allclose(warm[:15], plain[:15] * np.arange(1, 16) / 15, rtol=1e-5)
    np.testing.assert_allclose(warm[15:], plain[15:], rtol=1e-6)


def test_adam_is_adam():
    assert isinstance(make_optimizer(TrainingConfig(optimizer="adam"), 1), keras.optimizers.Adam)


KINDS = {
    "warm-up": {"warmup_epochs": 1, "sparsity_warmup_epochs": 1},
    "cosine": {"warmup_epochs": 1, "schedule": "cosine", "optimizer": "adam"},
    "plain": {"gater": "none", "label_smoothing": 0.1},
    "se": {"gater": "none", "attention": "se"},
    "bfloat16": {"dtype_policy": "mixed_bfloat16"},
}


def test_what_a_run_leaves_loads_where_only_the_library_is_imported(trained, tmp_path):
    paths = [trained.model_file]
    for name, settings in KINDS.items():
        config = TrainingConfig(**({"backbone": "resnet8", "gater": "resnet8"} | settings))
        keras.config.set_dtype_policy(config.dtype_policy)
        try:
            model = build_and_compile(config, (8, 8, 1), 10, STEPS)
        finally:
            keras.config.set_dtype_policy("float32")
        run = RunDirectory(tmp_path / name)
        run.path.mkdir()
        run.save_model(model)
        paths.append(run.model_file)
    code = (
        "import sys, keras, gaternet_tf\n"
        "for path in sys.argv[1:]:\n"
        "    model = keras.models.load_model(path)\n"
        "    print(len(gaternet_tf.gate_map(model)), model.get_layer('stem').compute_dtype)\n"
    )
    done = run_python("-W", "error::UserWarning", "-c", code, *paths, cwd=tmp_path)
    assert done.status == 0, done.err
    gated, plain = "112 float32", "0 float32"
    assert done.out.splitlines() == [gated, gated, gated, plain, plain, "112 bfloat16"]


def test_weight_decay_is_on_every_kind_of_kernel_and_on_nothing_else():
    layers = [keras.layers.SeparableConv2D(2, 3), keras.layers.DepthwiseConv2D(3)]
    layers += [keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    set_weight_decay(model, 0.1)
    decayed = {weight.name for weight in model.trainable_variables if weight.regularizer}
    assert decayed == {"depthwise_kernel", "pointwise_kernel", "kernel"}
