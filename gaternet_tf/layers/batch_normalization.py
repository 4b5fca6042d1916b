"""Batch normalisation with this project's constants, by TensorFlow's fused kernel where it can."""

import keras
import tensorflow as tf
from keras import ops

BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5
"""The values the method's authors used; Keras' own defaults are 0.99 and 1e-3."""
FUSED_DTYPES = (tf.float32, tf.float16, tf.bfloat16)
"""Inputs that the fused kernel takes, always with float32 weights and statistics."""


@keras.saving.register_keras_serializable(package="gaternet_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch normalisation over the last axis, faster on pictures.

    Keras computes it from single operations, each of which reads and writes the whole activation.
    TensorFlow's fused kernel is used for [batch, height, width, channels] and the dtype policies
    that it has: float32, mixed_bfloat16 and mixed_float16. The moments over all replicas of a
    strategy (`synchronized=True`) stay Keras'.

    Arguments, variables and what is computed are those of `keras.layers.BatchNormalization`; the
    moving variance is that of the batch, not multiplied by N / (N - 1) as the kernel has it.

    >>> BatchNormalization()(tf.ones([2, 4, 4, 3]), training=True).shape
    TensorShape([2, 4, 4, 3])
    """

    def call(self, inputs, training=None, mask=None):
        training = bool(training) and self.trainable
        channels_last = self.axis in (-1, 3)
        plain = self.center and self.scale and mask is None and channels_last
        has_kernel = self.variable_dtype == "float32" and inputs.dtype in FUSED_DTYPES
        if len(inputs.shape) != 4 or not (plain and has_kernel) or (training and self.synchronized):
            return super().call(inputs, training=training, mask=mask)
        scale, offset = ops.cast(self.gamma, "float32"), ops.cast(self.beta, "float32")
        if not training:
            outputs, _, _ = tf.compat.v1.nn.fused_batch_norm(
                inputs,
                scale,
                offset,
                ops.cast(self.moving_mean, "float32"),
                ops.cast(self.moving_variance, "float32"),
                epsilon=self.epsilon,
                is_training=False,
            )
            return outputs
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, scale, offset, epsilon=self.epsilon, is_training=True
        )
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), tf.float32)
        moments = (self.moving_mean, mean), (self.moving_variance, variance * (count - 1) / count)
        for moving, moment in moments:
            moving.assign(moving * self.momentum + moment * (1.0 - self.momentum))
        return outputs


def batch_normalization(synchronized=False, **kwargs):
    """Batch normalisation over the last axis with this project's momentum and epsilon."""
    return BatchNormalization(
        momentum=BATCH_NORM_MOMENTUM,
        epsilon=BATCH_NORM_EPSILON,
        synchronized=synchronized,
        **kwargs,
    )
