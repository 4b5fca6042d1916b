"""Hands each gated convolution its own columns of the gate vector."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="gaternet_tf")
class GateSplit(keras.layers.Layer):
    """Splits gates into one tensor a segment, and carries the gate map with the model.

    The layer's configuration holds the map's rows, so that a saved model still knows which
    filter each gate switches; `gaternet_tf.gate_map(model)` reads them back.

    Call argument: `inputs` [batch, ..., gates]. Returns a list of [batch, ..., channels], one a
    segment.

    >>> rows = [{"layer": "conv", "unit": "block", "channels": 16}]
    >>> [piece.shape for piece in GateSplit(rows)(tf.zeros([2, 16]))]
    [TensorShape([2, 16])]

    Args:
      segments: list of dicts with `layer`, `unit` and `channels`, in gate order.
      **kwargs: those of `keras.layers.Layer`.

    Raises:
      ValueError: when the gates are not as many as the segments' channels.
    """

    def __init__(self, segments, **kwargs):
        super().__init__(**kwargs)
        self.segments = [dict(segment) for segment in segments]

    def build(self, input_shape):
        total = sum(segment["channels"] for segment in self.segments)
        if input_shape[-1] != total:
            raise ValueError(
                f"the gate map has {total} gates, so gates must be [batch, ..., {total}]; "
                f"got {tuple(input_shape)}"
            )

    def call(self, inputs):
        return tf.split(inputs, [segment["channels"] for segment in self.segments], axis=-1)

    def compute_output_shape(self, input_shape):
        return [(*input_shape[:-1], segment["channels"]) for segment in self.segments]

    def get_config(self):
        return {**super().get_config(), "segments": self.segments}
