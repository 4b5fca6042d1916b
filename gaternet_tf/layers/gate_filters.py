"""A gate for each channel: `O_i = phi(F_i * I) . g_i` (paper section 3)."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="gaternet_tf")
class GateFilters(keras.layers.Layer):
    """Multiplies each channel by its gate: `O_i = x_i . g_i`.

    Training and inference do not differ.

    Call arguments: `inputs` float [batch, height, width, channels]; `gates` float
    [batch, channels]. Returns the inputs' shape and dtype.

    >>> GateFilters()(tf.ones([2, 8, 8, 4]), tf.zeros([2, 4])).shape
    TensorShape([2, 8, 8, 4])

    Raises:
      ValueError: for other inputs, or when there is not one gate for each channel.
    """

    def build(self, inputs_shape, gates_shape):
        if len(inputs_shape) != 4 or tuple(gates_shape[1:]) != tuple(inputs_shape[3:]):
            raise ValueError(
                f"layer '{self.name}' needs inputs [batch, height, width, channels] and gates "
                f"[batch, channels], got {tuple(inputs_shape)} and {tuple(gates_shape)}"
            )

    def call(self, inputs, gates):
        return inputs * ops.cast(gates, inputs.dtype)[:, None, None, :]

    def compute_output_shape(self, inputs_shape, gates_shape):
        return inputs_shape
