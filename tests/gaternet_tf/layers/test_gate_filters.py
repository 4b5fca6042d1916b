"""The gates of a layer's channels, and the convolutions of our own networks that they switch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gaternet_tf.layers import GateFilters
from gaternet_tf.models.blocks import convolve


def numpy_convolution(images, kernel, strides, pad):
    """Direct convolution with `pad` zero pixels on every side."""
    images = np.pad(images, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    size = kernel.shape[0]
    rows = (images.shape[1] - size) // strides + 1
    columns = (images.shape[2] - size) // strides + 1
    output = np.zeros((images.shape[0], rows, columns, kernel.shape[-1]))
    for row in range(rows):
        for column in range(columns):
            top, left = row * strides, column * strides
            patch = images[:, top : top + size, left : left + size]
            output[:, row, column] = np.tensordot(patch, kernel, axes=3)
    return output


def convolution(shape, filters, kernel_size, **options):
    """A model of one convolution with its normalisation."""
    images = keras.Input(shape)
    return keras.Model(images, convolve(images, "conv", filters, kernel_size, **options))


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize(("kernel_size", "strides"), [(3, 1), (3, 2), (1, 2), (5, 2), (7, 2)])
def test_convolution_pads_every_side_alike(kernel_size, strides, side):
    images = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    model = convolution((side, side, 3), 4, kernel_size, strides=strides, relu=False, seed=1)
    # At its start, batch normalisation at inference divides by sqrt(1 + 1e-5) and does no more.
    output = model(images).numpy() * np.sqrt(1 + 1e-5)
    kernel = model.get_layer("conv").kernel.numpy()
    wanted = numpy_convolution(images, kernel, strides, kernel_size // 2)
    np.testing.assert_allclose(output, wanted, atol=1e-5)
    assert model.output.shape[1:] == output.shape[1:]


def test_gates_multiply_channel_by_channel_in_the_dtype_of_the_inputs():
    inputs = np.random.default_rng(0).normal(size=(3, 6, 6, 4)).astype(np.float32)
    gates = np.array([[1, 0, 1, 0.5], [0, 0, 0, 0], [1, 1, 1, 1]], np.float32)
    np.testing.assert_array_equal(GateFilters()(inputs, gates), inputs * gates[:, None, None])
    half = GateFilters(dtype="float16")(inputs, gates)
    assert half.dtype == tf.float16
    np.testing.assert_array_equal(half, inputs.astype(np.float16) * gates[:, None, None])


def test_kernel_starts_he_normal_with_fan_out():
    layer = convolution((8, 8, 64), 64, 3, seed=3).get_layer("conv")
    kernel = layer.kernel.numpy()
    assert abs(kernel.std() / np.sqrt(2 / (9 * 64)) - 1) < 0.02
    # A truncated normal has nothing beyond two deviations.
    assert np.abs(kernel).max() > 3 * kernel.std()
    assert not layer.use_bias


def test_batch_normalisation_has_the_authors_constants_and_is_followed_by_a_relu():
    model = convolution((4, 4, 1), 2, 1)
    normalization = model.get_layer("conv_bn")
    assert (normalization.momentum, normalization.epsilon) == (0.9, 1e-5)
    images = tf.random.stateless_normal([64, 4, 4, 1], [0, 0])
    assert np.min(model(images, training=True)) == 0.0
    mean = tf.reduce_mean(model.get_layer("conv")(images), axis=[0, 1, 2])
    np.testing.assert_allclose(normalization.moving_mean, 0.1 * mean, rtol=1e-4)


@pytest.mark.parametrize(
    ("inputs", "gates"), [([2, 8, 8, 4], [2, 3]), ([2, 8, 8, 4], [2, 5, 4]), ([2, 4], [2, 4])]
)
def test_gates_of_another_shape_are_refused(inputs, gates):
    with pytest.raises(
        ValueError, match=r"layer 'mine' needs .*\[batch, channels\], got "
    ) as error:
        GateFilters(name="mine")(tf.zeros(inputs), tf.zeros(gates))
    assert f"{tuple(inputs)} and {tuple(gates)}" in str(error.value)
