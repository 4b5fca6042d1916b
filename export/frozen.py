"""A trained model with constant weights, folded batch normalisation and no unused operations.

TensorFlow runs one operation after the other, and on small pictures their number decides about the
time. After folding, each convolution is one fused operation with its bias and ReLU, TensorFlow
arranges the constant weights in memory once, and a network some of whose gates are settled
(`export.specializing`) leaves out the filters that are never on.
"""

import dataclasses
import functools
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from gaternet_tf.layers import GatedConv2D, GateSplit, SqueezeExcite


@dataclasses.dataclass(frozen=True)
class Settled:
    """What is computed of a convolution some of whose gates are settled.

    Attributes:
      channels: int64, the filters that are computed.
      on: bool, which of these are ever on; the others become filters of zeros.
      free: bool, which of these keep their gate.
      reader: name of the convolution that reads the output; None for the last one of a residual
        unit, whose output is added to the shortcut.
    """

    channels: np.ndarray
    on: np.ndarray
    free: np.ndarray
    reader: str | None


class FrozenNetwork:
    """Computes a functional GaterNet model in float32, with its weights as constants.

    Args:
      model: a trained model of `build_gaternet`.
      settled: what to leave out, by the name of the gated convolution; the others stay whole.
    """

    def __init__(self, model: keras.Model, settled: Mapping[str, Settled] | None = None):
        self.model = model
        self.settled = settled or {}
        self.layer_of = {
            output: layer for layer in model.layers for output in keras.tree.flatten(layer.output)
        }
        # Read before any graph is built, which would otherwise capture the variables.
        self.weights = {layer.name: _weights(layer) for layer in model.layers}
        for name, part in self.settled.items():
            kernel, bias = self.weights[name]
            kernel, bias = kernel[..., part.channels] * part.on, bias[part.channels] * part.on
            self.weights[name] = [kernel, bias]
            if part.reader:
                kernel, bias = self.weights[part.reader]
                self.weights[part.reader] = [kernel[:, :, part.channels], bias]

    @tf.autograph.experimental.do_not_convert
    def __call__(self, images) -> dict:
        """Maps float32 [batch, height, width, channels], normalised, to the model's outputs."""
        outputs = {}
        if "gates" in self.model.output:
            outputs["gates"] = self.evaluate(self.model.output["gates"], images)
        logits = self.evaluate(self.model.output["logits"], images, outputs.get("gates"))
        return {**outputs, "logits": logits}

    def evaluate(self, symbol: keras.KerasTensor, images, gates=None):
        """Returns the value of a symbolic tensor of the model.

        The graph gets only what the value depends on: with given gates no gater, and not the branch
        of a residual unit without filters.
        """
        values = {self.model.input: images}
        if gates is not None:
            values[self.model.output["gates"]] = gates

        def value_of(symbol):
            if symbol not in values:
                layer = self.layer_of[symbol]
                part = self.settled.get(layer.name)
                if part and not len(part.channels):
                    values[symbol] = None
                else:
                    inputs = [value_of(each) for each in keras.tree.flatten(layer.input)]
                    outputs = keras.tree.flatten(_compute(layer, self, *inputs))
                    values.update(zip(keras.tree.flatten(layer.output), outputs, strict=True))
            return values[symbol]

        return value_of(symbol)


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


@functools.singledispatch
def _compute(layer, network, *inputs):
    """Returns a layer's outputs in inference; this is for layers without weights."""
    return layer(*inputs)


@_compute.register(GatedConv2D)
def _convolution(layer, network, inputs, gates=None):
    kernel, bias = network.weights[layer.name]
    strides = layer.strides
    if strides > 1:
        pad = layer.kernel_size // 2
        inputs = tf.pad(inputs, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    outputs = tf.nn.conv2d(inputs, kernel, strides, "VALID" if strides > 1 else "SAME")
    outputs = layer.activation(tf.nn.bias_add(outputs, bias))
    part = network.settled.get(layer.name)
    if gates is None or (part and not part.free.any()):
        return outputs
    if part and len(part.channels) < layer.filters:
        gates = tf.gather(gates, part.channels, axis=3)
    if part and not part.free.all():
        # Settled gates become 1: their filters are always on, or zeros.
        gates = tf.maximum(gates, tf.constant(~part.free, tf.float32))
    return outputs * gates


@_compute.register(keras.layers.Add)
def _add(layer, network, residual, shortcut):
    if residual is None:
        return shortcut
    if residual.shape[-1] == shortcut.shape[-1]:
        return residual + shortcut
    # Scatters the channels to their places; in TensorFlow a 1x1 convolution is fastest.
    channels = network.settled[network.layer_of[layer.input[0]].name].channels
    spread = np.zeros((1, 1, len(channels), shortcut.shape[-1]), np.float32)
    spread[0, 0, np.arange(len(channels)), channels] = 1.0
    return tf.nn.conv2d(residual, spread, 1, "SAME") + shortcut


@_compute.register(keras.layers.Dense)
def _dense(layer, network, inputs):
    kernel, bias = network.weights[layer.name]
    return layer.activation(tf.nn.bias_add(tf.matmul(inputs, kernel), bias))


@_compute.register(keras.layers.BatchNormalization)
def _normalization(layer, network, inputs):
    scale, offset = network.weights[layer.name]
    return inputs * scale + offset


@_compute.register(SqueezeExcite)
def _squeeze_excite(layer, network, inputs):
    kernel, bias, excite_kernel, excite_bias = network.weights[layer.name]
    hidden = tf.nn.relu(tf.nn.bias_add(tf.matmul(tf.reduce_mean(inputs, (1, 2)), kernel), bias))
    scale = tf.sigmoid(tf.nn.bias_add(tf.matmul(hidden, excite_kernel), excite_bias))
    return inputs * scale[:, None, None, :]


@_compute.register(GateSplit)
def _split(layer, network, gates):
    # Reshaped once for all layers, to multiply channels.
    sizes = [segment["channels"] for segment in layer.segments]
    return tf.split(gates[:, None, None, :], sizes, axis=3)
