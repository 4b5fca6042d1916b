"""Schedules and optimizers."""

import keras
import numpy as np
import pytest

from train.config import TrainingConfig
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
