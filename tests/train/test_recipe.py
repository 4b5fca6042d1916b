"""Schedules, the optimizer, and what the training loop does beside its steps."""

import keras
import numpy as np
import pytest

from gaternet_tf.losses import SparsityLoss
from train.callbacks import SparsityWarmUp, Validation, collapse
from train.loop import TrainingConfig
from train.recipe import learning_rate_schedule, make_optimizer

STEPS = 10


def rates(**settings):
    schedule = learning_rate_schedule(TrainingConfig(**settings), STEPS)
    return np.array([float(schedule(step)) for step in range(settings["epochs"] * STEPS)])


def test_the_default_is_the_cifar_recipe():
    by_epoch = rates(epochs=160)[::STEPS]
    np.testing.assert_allclose(by_epoch[:80], 0.1, rtol=1e-6)
    np.testing.assert_allclose(by_epoch[81:120], 0.01, rtol=1e-6)
    np.testing.assert_allclose(by_epoch[121:], 0.001, rtol=1e-6)


def test_the_schedule_follows_the_epochs():
    by_step = rates(epochs=4)
    assert by_step[[19, 21, 31, 39]] == pytest.approx([0.1, 0.01, 0.001, 0.001])


def test_cosine_falls_from_the_rate_to_nothing():
    by_step = rates(epochs=10, schedule="cosine", learning_rate=0.2)
    wanted = 0.2 * (1 + np.cos(np.pi * np.arange(100) / 100)) / 2
    np.testing.assert_allclose(by_step, wanted, atol=1e-6)


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_a_warm_up_rises_linearly_and_then_joins_the_schedule(schedule):
    plain = rates(epochs=4, schedule=schedule)
    warm = rates(epochs=4, schedule=schedule, warmup_epochs=1.5)
    np.testing.assert_allclose(warm[:15], plain[:15] * np.arange(1, 16) / 15, rtol=1e-5)
    np.testing.assert_allclose(warm[15:], plain[15:], rtol=1e-6)


def test_a_schedule_survives_a_config_round_trip():
    optimizer = make_optimizer(TrainingConfig(epochs=2, warmup_epochs=1), STEPS)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, keras.optimizers.SGD)
    assert again.nesterov
    schedule = again.get_config()["learning_rate"]
    assert schedule["config"]["steps"] == STEPS


def test_adam_is_adam():
    assert isinstance(make_optimizer(TrainingConfig(optimizer="adam"), 1), keras.optimizers.Adam)


def test_sparsity_warm_up_is_linear_over_epochs():
    loss = SparsityLoss(0.1)
    callback = SparsityWarmUp(loss, steps=15)
    model = keras.Sequential()
    model.compile("sgd", "mse")
    callback.set_model(model)
    seen = []
    for epoch in range(2):
        model.optimizer.iterations.assign(10 * epoch)
        callback.on_epoch_begin(epoch)
        for batch in range(10):
            callback.on_train_batch_begin(batch)
            seen.append(float(loss.scale))
    np.testing.assert_allclose(seen, np.minimum(1, np.arange(1, 21) / 15), rtol=1e-6)


def planted(on, off, gates=8, images=50):
    return {
        "accuracy": 0.5,
        "images": images,
        "gates": gates,
        "gates_always_on": on,
        "gates_always_off": off,
        "gates_input_dependent": gates - on - off,
    }


@pytest.mark.parametrize(
    ("on", "off", "words"),
    [
        (8, 0, "all gates are on for every image (8 of 8 always on, 0 always off on 50"),
        (0, 8, "all gates are off for every image"),
        (3, 5, "the gates are the same for every image (3 of 8 always on, 5 always off"),
        (3, 4, None),
        (0, 0, None),
    ],
)
def test_collapsed_gates_are_named_with_their_numbers(on, off, words, capsys):
    logs = {}
    Validation(lambda batches: planted(on, off), []).on_epoch_end(0, logs)
    out = capsys.readouterr().out
    assert out.startswith(f"warning: {words}") if words else out == ""
    assert logs["val_accuracy"] == 0.5
    assert logs["val_gates_always_on"] == on
    assert "val_images" not in logs


def test_a_plain_network_has_nothing_to_collapse():
    assert collapse({"accuracy": 0.5, "images": 3}) is None
