"""The fused kernel computes what Keras' batch normalisation does, forward, backward and after."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gaternet_tf.layers import BatchNormalization

RNG = np.random.default_rng(0)
IMAGES = (RNG.normal(size=(6, 4, 5, 3)) * [1.0, 3.0, 0.2] + [0.0, -2.0, 5.0]).astype(np.float32)


def results(cls, inputs, training, **options):
    """Output, gradients and moving statistics of one call, from weights that are not trivial."""
    layer = cls(momentum=0.9, epsilon=1e-5, **options)
    layer.build(inputs.shape)
    layer.set_weights(
        [np.array(row, np.float32) for row in np.linspace(0.5, 2.0, 12).reshape(4, 3)]
    )
    x = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, training=training)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 3)
    gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
    return [outputs, *gradients, *layer.get_weights()]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("training", [False, True])
def test_it_computes_what_keras_does(training, dtype):
    images = IMAGES.astype(dtype)
    ours = results(BatchNormalization, images, training, dtype=dtype)
    theirs = results(keras.layers.BatchNormalization, images, training, dtype=dtype)
    for one, other in zip(ours, theirs, strict=True):
        # Sums over many images are rounded in other orders, and differ by their largest parts.
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())


def test_moving_statistics_are_those_of_the_batch_itself():
    layer = BatchNormalization(momentum=0.0)
    layer(IMAGES, training=True)
    np.testing.assert_allclose(layer.moving_mean, IMAGES.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, IMAGES.var((0, 1, 2)), rtol=1e-4)


def test_frozen_it_uses_the_moving_statistics():
    layer = BatchNormalization()
    layer.build(IMAGES.shape)
    layer.trainable = False
    np.testing.assert_allclose(layer(IMAGES, training=True), IMAGES, rtol=1e-2, atol=1e-2)
    assert (layer.moving_mean.numpy() == 0).all()


def test_the_kernel_is_used_for_pictures_and_is_not_needed_for_vectors():
    def operations(shape, dtype="float32"):
        layer = BatchNormalization(dtype=dtype)
        layer.build((None, *shape))
        call = tf.function(lambda x: layer(x, training=True))
        graph = call.get_concrete_function(tf.TensorSpec((None, *shape))).graph
        return {operation.type for operation in graph.get_operations()}

    for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
        assert "FusedBatchNormV3" in operations((4, 5, 3), policy)
    assert "FusedBatchNormV3" not in operations((3,))
