"""The gated convolution `O = phi(F * I) . g` (paper section 3)."""

import keras
from keras import ops

from gaternet_tf.layers.batch_normalization import batch_normalization


@keras.saving.register_keras_serializable(package="gaternet_tf")
class GatedConv2D(keras.layers.Layer):
    """Convolution, batch normalisation, optional activation, and a gate for each filter.

    `O_i = phi(BN(F_i * I)) . g_i`. Called without gates it is the plain layer, by the same code.
    The convolution has no bias and pads `(kernel_size - 1) / 2` pixels on *every* side, also when
    it is strided, where TensorFlow's own "same" would pad only right and bottom.

    Training and inference differ in batch normalisation only.

    Call arguments: `inputs` float [batch, height, width, channels]; `gates` None or float
    [batch, filters]; `training` bool. Returns float [batch, ceil(height / strides),
    ceil(width / strides), filters] in the compute dtype.

    >>> layer = GatedConv2D(4, 3, activation="relu")
    >>> layer(tf.ones([2, 8, 8, 3]), gates=tf.zeros([2, 4])).shape
    TensorShape([2, 8, 8, 4])

    Args:
      filters: number of filters, and of gates.
      kernel_size: odd side of the square kernel, pixels.
      strides: step in both directions, pixels.
      activation: name or function of `phi`; None for the identity.
      synchronized: whether batch normalisation uses the moments of all replicas.
      seed: seed of the kernel (He normal, not truncated, fan-out).
      **kwargs: those of `keras.layers.Layer`.

    Raises:
      ValueError: for an even kernel size, or gates that are not [batch, filters].
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=1,
        activation=None,
        synchronized=False,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if kernel_size % 2 == 0:
            raise ValueError(
                f"kernel_size must be odd, to be padded alike on every side; got {kernel_size}"
            )
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.activation = keras.activations.get(activation)
        self.synchronized = synchronized
        self.seed = seed
        self.convolution = keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="valid" if self._explicit_padding else "same",
            data_format="channels_last",
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(
                scale=2.0, mode="fan_out", distribution="untruncated_normal", seed=seed
            ),
            dtype=self.dtype_policy,
            name="convolution",
        )
        self.normalization = batch_normalization(
            synchronized, dtype=self.dtype_policy, name="normalization"
        )

    @property
    def _explicit_padding(self):
        """Pixels to pad on each side, where "same" would not pad both sides alike."""
        return self.kernel_size // 2 if self.strides > 1 else 0

    def build(self, inputs_shape, gates_shape=None):
        if gates_shape is not None and tuple(gates_shape[1:]) != (self.filters,):
            raise ValueError(
                f"layer '{self.name}' has {self.filters} filters and needs gates of shape "
                f"[batch, {self.filters}], got {tuple(gates_shape)}"
            )
        self.convolution.build(inputs_shape)
        self.normalization.build((*inputs_shape[:-1], self.filters))

    def call(self, inputs, gates=None, training=None):
        outputs = inputs
        if pad := self._explicit_padding:
            outputs = ops.pad(outputs, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        outputs = self.normalization(self.convolution(outputs), training=training)
        outputs = self.activation(outputs)
        if gates is not None:
            outputs = outputs * ops.cast(gates, outputs.dtype)[:, None, None, :]
        return outputs

    def compute_output_shape(self, inputs_shape, gates_shape=None):
        batch, *size, _ = inputs_shape
        size = [None if side is None else -(-side // self.strides) for side in size]
        return (batch, *size, self.filters)

    def get_config(self):
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "activation": keras.activations.serialize(self.activation),
            "synchronized": self.synchronized,
            "seed": self.seed,
        }
