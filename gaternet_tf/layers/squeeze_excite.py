"""Squeeze-and-excitation (Hu et al. 2018), the paper's real-valued control for gates."""

import keras
from keras import ops

from gaternet_tf.seeds import derive_seed


@keras.saving.register_keras_serializable(package="gaternet_tf")
class SqueezeExcite(keras.layers.Layer):
    """Scales each channel by a number from 0 to 1 that is computed from all channels of the layer.

    `y = x * sigmoid(W2 relu(W1 mean(x)))`, with the mean over height and width. Unlike a gate, the
    number is real, comes from this layer alone and is the same in training and inference.

    Call arguments: `inputs` float [batch, height, width, channels]; the output has their shape.

    >>> SqueezeExcite()(tf.ones([2, 8, 8, 32])).shape
    TensorShape([2, 8, 8, 32])

    Args:
      ratio: channels for each unit of the bottleneck, which has one unit at least.
      seed: seed of the kernels.
      **kwargs: those of `keras.layers.Layer`.
    """

    def __init__(self, ratio=16, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.ratio = ratio
        self.seed = seed
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def build(self, inputs_shape):
        channels = inputs_shape[-1]
        units = max(1, channels // self.ratio)

        def dense(units, name, activation):
            seed = None if self.seed is None else derive_seed(self.seed, name)
            initializer = keras.initializers.GlorotUniform(seed)
            return keras.layers.Dense(
                units,
                activation,
                kernel_initializer=initializer,
                dtype=self.dtype_policy,
                name=name,
            )

        self.squeeze = dense(units, "squeeze", "relu")
        self.squeeze.build((inputs_shape[0], channels))
        self.excite = dense(channels, "excite", "sigmoid")
        self.excite.build((inputs_shape[0], units))

    def call(self, inputs):
        scale = self.excite(self.squeeze(ops.mean(inputs, axis=(1, 2))))
        return inputs * scale[:, None, None, :]

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        return {**super().get_config(), "ratio": self.ratio, "seed": self.seed}
