"""A trained model with constant weights, folded batch normalisation and no unused operations.

TensorFlow runs one operation after the other, and on small pictures their number decides about the
time. After folding, each convolution is one fused operation with its bias and ReLU, TensorFlow
arranges the constant weights in memory once, and a network some of whose gates are settled
(`export.specializing`) leaves out the filters that are never on.
"""

import dataclasses
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf

from gaternet_tf.errors import UserError
from gaternet_tf.layers import GatedConv2D, GateSplit, SemHash, SqueezeExcite


@dataclasses.dataclass(frozen=True)
class Settled:
    """Filters whose gates are settled, by the name of the gated layer.

    `kept` holds the channels of a layer that are computed, `on` whether each of them is ever on
    (the others become filters of zeros), `free` whether each still has its gate. A layer without an
    entry is computed in full.
    """

    kept: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    on: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    free: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Channels:
    """Some channels of an activation; the others are zero, and without a value all are."""

    value: tf.Tensor | None
    kept: np.ndarray
    total: int


class FrozenNetwork:
    """Evaluates tensors of a functional GaterNet model, with its weights as constants.

    The graph gets only what a wanted tensor depends on, so a network with given gates does not
    evaluate its gater, and a residual unit without filters does not evaluate its branch.

    Args:
      model: a trained model of `build_gaternet`.
      settled: filters and gates to leave out.

    Raises:
      UserError: for a layer of an unknown type, or a model that computes in half precision.
    """

    def __init__(self, model: keras.Model, settled: Settled | None = None):
        self.model = model
        self.settled = settled or Settled()
        self.layer_of = {}
        # Read before any graph is built, which would otherwise capture the variables.
        self.weights = {layer.name: _weights(layer) for layer in model.layers}
        for layer in model.layers:
            if _handler(layer) is None:
                raise UserError(
                    f"--optimize=fold supports the layers of build_gaternet, and '{layer.name}' is "
                    f"a {type(layer).__name__}; give --optimize=none"
                )
            if layer.compute_dtype != "float32":
                raise UserError(
                    f"--optimize=fold computes in float32, and '{layer.name}' was trained in "
                    f"{layer.compute_dtype}; give --optimize=none to export it as it was evaluated"
                )
            for output in _as_list(layer.output):
                self.layer_of[id(output)] = layer

    def evaluate(self, wanted: dict, given: list) -> dict:
        """Evaluates symbolic tensors of the model.

        Args:
          wanted: symbolic tensors by name.
          given: pairs of a symbolic tensor and its value.

        Returns:
          Values by name.
        """
        values = {id(symbol): value for symbol, value in given}

        def value_of(symbol):
            if id(symbol) not in values:
                layer = self.layer_of[id(symbol)]
                kept = self.settled.kept.get(layer.name)
                if kept is not None and not len(kept):
                    outputs = Channels(None, kept, layer.filters)
                else:
                    inputs = [value_of(each) for each in _as_list(layer.input)]
                    outputs = _handler(layer)(self, layer, *inputs)
                for output, value in zip(_as_list(layer.output), _as_list(outputs), strict=True):
                    values[id(output)] = value
            return values[id(symbol)]

        return {name: value_of(symbol) for name, symbol in wanted.items()}

    @tf.autograph.experimental.do_not_convert
    def __call__(self, images) -> dict:
        """Maps float32 [batch, height, width, channels], normalised, to the model's outputs."""
        return self.evaluate(self.model.output, [(self.model.input, images)])


def _handler(layer):
    """Returns the function that computes a layer of this class or of a base class, else None."""
    return next((HANDLERS[cls] for cls in type(layer).__mro__ if cls in HANDLERS), None)


def _as_list(value):
    return list(value) if isinstance(value, list | tuple) else [value]


def _weights(layer) -> list[np.ndarray]:
    """Returns a layer's weights; of a gated convolution the folded kernel and bias."""
    weights = [np.asarray(weight, np.float64) for weight in layer.get_weights()]
    if isinstance(layer, GatedConv2D):
        kernel, *moments = weights
        scale, offset = _affine(moments, layer.normalization.epsilon)
        weights = [kernel * scale, offset]
    elif isinstance(layer, keras.layers.BatchNormalization):
        weights = list(_affine(weights, layer.epsilon))
    return [weight.astype(np.float32) for weight in weights]


def _affine(weights, epsilon):
    """Returns the scale and the offset that a batch normalisation applies in inference."""
    gamma, beta, mean, variance = weights
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def _convolution(network, layer, inputs, gates=None):
    settled = network.settled
    kernel, bias = network.weights[layer.name]
    if isinstance(inputs, Channels):
        if inputs.value is None:
            raise ValueError(f"the inputs of {layer.name} are all left out")
        kernel, inputs = kernel[:, :, inputs.kept], inputs.value
    kept = settled.kept.get(layer.name)
    partial = kept is not None and len(kept) < layer.filters
    if kept is not None:
        on = settled.on[layer.name]
        kernel, bias = kernel[..., kept] * on, bias[kept] * on
    strides = layer.strides
    if strides > 1:
        pad = layer.kernel_size // 2
        inputs = tf.pad(inputs, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    outputs = tf.nn.conv2d(inputs, kernel, strides, "VALID" if strides > 1 else "SAME")
    outputs = layer.activation(tf.nn.bias_add(outputs, bias))
    free = settled.free.get(layer.name, np.ones(1, bool))
    if gates is not None and free.any():
        gates = tf.gather(gates, kept, axis=3) if partial else gates
        if not free.all():
            # Settled gates become 1: their filters are always on, or zeros.
            gates = tf.maximum(gates, tf.constant(~free, tf.float32))
        outputs *= gates
    return Channels(outputs, kept, layer.filters) if partial else outputs


def _add(network, layer, residual, shortcut):
    if not isinstance(residual, Channels):
        return residual + shortcut
    if residual.value is None:
        return shortcut
    # Scatters the channels to their places; in TensorFlow a 1x1 convolution is fastest.
    spread = np.zeros((1, 1, len(residual.kept), residual.total), np.float32)
    spread[0, 0, np.arange(len(residual.kept)), residual.kept] = 1.0
    return tf.nn.conv2d(residual.value, spread, 1, "SAME") + shortcut


def _dense(network, layer, inputs):
    if layer.activation is not keras.activations.linear:
        raise UserError(
            f"--optimize=fold supports dense layers without an activation, and '{layer.name}' has "
            f"{keras.activations.serialize(layer.activation)}; give --optimize=none"
        )
    kernel, bias = network.weights[layer.name]
    return tf.nn.bias_add(tf.matmul(inputs, kernel), bias)


def _normalization(network, layer, inputs):
    scale, offset = network.weights[layer.name]
    return inputs * scale + offset


def _squeeze_excite(network, layer, inputs):
    kernel, bias, excite_kernel, excite_bias = network.weights[layer.name]
    hidden = tf.nn.relu(tf.nn.bias_add(tf.matmul(tf.reduce_mean(inputs, (1, 2)), kernel), bias))
    scale = tf.sigmoid(tf.nn.bias_add(tf.matmul(hidden, excite_kernel), excite_bias))
    return inputs * scale[:, None, None, :]


def _split(network, layer, gates):
    # Reshaped once for all layers, to multiply channels.
    sizes = [segment["channels"] for segment in layer.segments]
    return tf.split(gates[:, None, None, :], sizes, axis=3)


HANDLERS: dict[type, Callable] = {
    keras.layers.InputLayer: lambda network, layer: None,
    GatedConv2D: _convolution,
    GateSplit: _split,
    SemHash: lambda network, layer, inputs: tf.cast(inputs > 0, tf.float32),
    SqueezeExcite: _squeeze_excite,
    keras.layers.Dense: _dense,
    keras.layers.BatchNormalization: _normalization,
    keras.layers.Add: _add,
    keras.layers.ReLU: lambda network, layer, inputs: tf.nn.relu(inputs),
    keras.layers.GlobalAveragePooling2D: lambda network, layer, inputs: tf.reduce_mean(
        inputs, (1, 2)
    ),
}
