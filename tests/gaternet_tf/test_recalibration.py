"""Recalibrated moments against moments computed by hand, with hard gates."""

import keras
import numpy as np
import pytest
from helpers import small_config

from gaternet_tf import build_gaternet
from gaternet_tf.recalibration import normalizations, recalibrate
from gaternet_tf.training import train

RNG = np.random.default_rng(0)
BATCHES = [(RNG.normal(size=(6, 8, 8, 1)).astype(np.float32), None) for _ in range(5)]


@pytest.fixture
def model():
    model = build_gaternet("resnet8", "resnet8", (8, 8, 1), seed=3)
    for layer in normalizations(model):
        layer.moving_mean.assign(RNG.normal(size=layer.moving_mean.shape))
    return model


def test_all_normalizations_are_found(model):
    names = [v.path for v in model.variables if v.name == "moving_mean"]
    assert sorted(layer.moving_mean.path for layer in normalizations(model)) == sorted(names)


def test_the_first_layers_moments_are_means_over_batches(model):
    assert recalibrate(model, BATCHES, 3) == 3
    stem = model.get_layer("stem")
    outputs = [np.asarray(stem.convolution(images)) for images, _ in BATCHES[:3]]
    means = np.mean([output.mean(axis=(0, 1, 2)) for output in outputs], axis=0)
    variances = np.mean([output.var(axis=(0, 1, 2)) for output in outputs], axis=0)
    np.testing.assert_allclose(stem.normalization.moving_mean, means, atol=1e-5)
    np.testing.assert_allclose(stem.normalization.moving_variance, variances, rtol=1e-4)


def test_moments_behind_a_gate_are_those_of_hard_gates(model):
    (images, _) = BATCHES[0]
    recalibrate(model, BATCHES, 1)
    # On that one batch the moving statistics are the batch's own, so inference sees hard gates
    # and the very activations that were measured.
    inner = keras.Model(model.inputs[0], model.get_layer("stage2_unit1_add").output)
    layer = model.get_layer("stage3_unit1_conv1")
    measured = np.asarray(layer.convolution(pad(relu(inner(images, training=False)))))
    np.testing.assert_allclose(
        layer.normalization.moving_mean, measured.mean(axis=(0, 1, 2)), atol=1e-3
    )


def relu(values):
    return np.maximum(np.asarray(values), 0)


def pad(values):
    return np.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0)))


def test_nothing_else_changes_and_training_goes_on_as_before(model):
    kept = {v.path: np.array(v) for v in model.trainable_variables}
    recalibrate(model, BATCHES, 10)
    for variable in model.trainable_variables:
        np.testing.assert_array_equal(variable, kept[variable.path])
    gates = model.get_layer("gates")
    assert (gates.noise_stddev, gates.hard_share) == (1.0, 0.5)
    assert {layer.momentum for layer in normalizations(model)} == {0.9}


def test_it_repeats(model):
    recalibrate(model, BATCHES, 5)
    first = [np.array(layer.moving_variance) for layer in normalizations(model)]
    recalibrate(model, BATCHES, 5)
    for values, layer in zip(first, normalizations(model), strict=True):
        np.testing.assert_allclose(values, layer.moving_variance, rtol=1e-5)


def test_training_tells_the_accuracy_before_and_after(data_dir, tmp_path, capsys):
    train(small_config(data_dir, batch_size=256, recalibrate_batches=4), tmp_path / "run")
    out = capsys.readouterr().out
    assert "batch normalisation recalibrated on 4 batches: validation accuracy " in out
    assert "% before, " in out
