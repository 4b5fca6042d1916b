"""The gated convolution: padding, gates, and the plain layer by the same code."""

import numpy as np
import pytest
import tensorflow as tf

from gaternet_tf.layers import GatedConv2D


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


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize(("kernel_size", "strides"), [(3, 1), (3, 2), (1, 2), (5, 2)])
def test_convolution_pads_every_side_alike(kernel_size, strides, side):
    images = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    layer = GatedConv2D(4, kernel_size, strides, seed=1)
    # At its start, batch normalisation at inference divides by sqrt(1 + 1e-5) and does no more.
    output = layer(images).numpy() * np.sqrt(1 + 1e-5)
    kernel = layer.convolution.kernel.numpy()
    wanted = numpy_convolution(images, kernel, strides, kernel_size // 2)
    np.testing.assert_allclose(output, wanted, atol=1e-5)
    assert layer.compute_output_shape(images.shape) == output.shape


def test_gates_multiply_the_activated_normalised_output_channel_by_channel():
    images = np.random.default_rng(0).normal(size=(3, 6, 6, 2)).astype(np.float32)
    gates = np.array([[1, 0, 1, 0.5], [0, 0, 0, 0], [1, 1, 1, 1]], np.float32)
    layer = GatedConv2D(4, 3, activation="relu", seed=2)
    plain = layer(images).numpy()
    assert plain.min() == 0.0
    np.testing.assert_array_equal(layer(images, gates=gates).numpy(), plain * gates[:, None, None])


def test_kernel_starts_he_normal_with_fan_out():
    layer = GatedConv2D(64, 3, seed=3)
    layer.build([None, 8, 8, 64])
    kernel = layer.convolution.kernel.numpy()
    assert abs(kernel.std() / np.sqrt(2 / (9 * 64)) - 1) < 0.02
    # A truncated normal has nothing beyond two deviations.
    assert np.abs(kernel).max() > 3 * kernel.std()
    assert not layer.convolution.use_bias


def test_batch_normalisation_has_the_authors_constants():
    layer = GatedConv2D(2, 1)
    assert (layer.normalization.momentum, layer.normalization.epsilon) == (0.9, 1e-5)
    images = tf.random.stateless_normal([64, 4, 4, 1], [0, 0])
    layer(images, training=True)
    mean = tf.reduce_mean(layer.convolution(images), axis=[0, 1, 2])
    np.testing.assert_allclose(layer.normalization.moving_mean, 0.1 * mean, rtol=1e-4)


def test_even_kernels_and_gates_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"odd.*got 2"):
        GatedConv2D(4, 2)
    for shape in ([2, 3], [2, 5, 4]):
        with pytest.raises(ValueError, match=rf"4 filters.*got \({str(shape)[1:-1]}\)"):
            GatedConv2D(4, 3)(tf.zeros([2, 8, 8, 1]), gates=tf.zeros(shape))
