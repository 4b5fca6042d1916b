"""A trained model with constant weights, folded batch normalisation and no unused operations.

TensorFlow runs one operation after the other, and on small pictures their number decides about the
time. After folding, each convolution is one fused operation with its bias and ReLU, TensorFlow
arranges the constant weights in memory once, and a network some of whose gates are settled
(`export.specializing`) leaves out the filters that are never on.
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from gaternet_tf.layers import BatchNormalization, GateFilters, GateSplit, SemHash, SqueezeExcite
from gaternet_tf.models import gate_map


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


def can_be_frozen(model: keras.Model) -> bool:
    """Returns whether `FrozenNetwork` computes a model: all its layers are known, and used once."""
    return len(model.inputs) == 1 and all(
        isinstance(layer, keras.layers.InputLayer)
        or (type(layer) in KNOWN and _is_plain(layer.get_config()))
        for layer in model.operations
    )


def _is_plain(config) -> bool:
    """Returns whether a layer is a convolution without groups and dilation, or no convolution."""
    size = np.ravel(config.get("dilation_rate", 1))
    return config.get("groups", 1) == 1 and (size == 1).all()


class FrozenNetwork:
    """Computes a functional GaterNet model in float32, with its weights as constants.

    Args:
      model: a trained model of which `can_be_frozen` is true.
      settled: what to leave out, by the name of the gated convolution; the others stay whole.
    """

    def __init__(self, model: keras.Model, settled: Mapping[str, Settled] | None = None):
        self.model = model
        self.settled = settled or {}
        self.layer_of = {
            output: layer for layer in model.layers for output in keras.tree.flatten(layer.output)
        }
        self.convolution_of = _gated_convolutions(model)
        # Read before any graph is built, which would otherwise capture the variables.
        self.weights = {layer.name: _weights(layer) for layer in model.layers}
        self.folded = self._fold_normalizations()
        for name, part in self.settled.items():
            kernel, bias = self.weights[name]
            kernel, bias = kernel[..., part.channels] * part.on, bias[part.channels] * part.on
            self.weights[name] = [kernel, bias]
            if part.reader:
                kernel, bias = self.weights[part.reader]
                self.weights[part.reader] = [kernel[:, :, part.channels], bias]
        for weights in self.weights.values():
            weights[:] = [weight.astype(np.float32) for weight in weights]

    def _fold_normalizations(self) -> set[str]:
        """Folds normalisations into the convolutions that they alone read; returns their names."""
        readers = collections.Counter(
            tensor for layer in self.model.layers for tensor in keras.tree.flatten(layer.input)
        )
        folded = set()
        for layer in self.model.layers:
            if not isinstance(layer, keras.layers.BatchNormalization):
                continue
            before = self.layer_of[layer.input]
            linear = keras.activations.linear
            if (
                type(before) is keras.layers.Conv2D
                and before.activation is linear
                and readers[layer.input] == 1
            ):
                kernel, bias = self.weights[before.name]
                scale, offset = self.weights[layer.name]
                self.weights[before.name] = [kernel * scale, bias * scale + offset]
                folded.add(layer.name)
        return folded

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
        needed, wanted = set(), [symbol]
        while wanted:
            tensor = wanted.pop()
            if tensor in values or tensor in needed:
                continue
            layer = self.layer_of[tensor]
            part = self.settled.get(layer.name)
            if part and not len(part.channels):
                values[tensor] = None
            else:
                needed.add(tensor)
                wanted += keras.tree.flatten(layer.input)
        for layer in self.model.layers:  # In the order of the graph.
            outputs = keras.tree.flatten(layer.output)
            if needed.isdisjoint(outputs):
                continue
            inputs = [values[each] for each in keras.tree.flatten(layer.input)]
            if inputs[0] is None and not isinstance(layer, keras.layers.Add):
                values[outputs[0]] = None  # No filter is left, down to the sum.
            else:
                results = keras.tree.flatten(_compute(layer, self, *inputs))
                values.update(zip(outputs, results, strict=True))
        return values[symbol]


def _gated_convolutions(model) -> dict[str, str]:
    """Returns the name of the convolution that each layer of gates switches."""
    segments = gate_map(model).segments
    pieces = [
        piece
        for layer in model.layers
        if isinstance(layer, GateSplit)
        for piece in keras.tree.flatten(layer.output)
    ]
    names = {id(piece): s.layer for piece, s in zip(pieces, segments, strict=True)}
    return {
        layer.name: names[id(layer.input[1])]
        for layer in model.layers
        if isinstance(layer, GateFilters)
    }


def _weights(layer) -> list[np.ndarray]:
    """Returns a layer's weights, a convolution's always with a bias, as scale and offset."""
    weights = [np.asarray(weight, np.float64) for weight in layer.get_weights()]
    if isinstance(layer, keras.layers.Conv2D) and not layer.use_bias:
        weights.append(np.zeros(layer.filters))
    elif isinstance(layer, keras.layers.BatchNormalization):
        weights = list(_affine(weights, layer.epsilon))
    return weights


def _affine(weights, epsilon):
    """Returns the scale and the offset that a batch normalisation applies in inference."""
    gamma, beta, mean, variance = weights
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale


@functools.singledispatch
def _compute(layer, network, *inputs):
    """Returns a layer's outputs in inference; this is for layers without weights."""
    return layer(*inputs)


@_compute.register(keras.layers.Conv2D)
def _convolution(layer, network, inputs):
    kernel, bias = network.weights[layer.name]
    outputs = tf.nn.conv2d(inputs, kernel, layer.strides, layer.padding.upper())
    return layer.activation(tf.nn.bias_add(outputs, bias))


@_compute.register(GateFilters)
def _gate(layer, network, inputs, gates):
    part = network.settled.get(network.convolution_of[layer.name])
    if part and not part.free.any():
        return inputs
    if part and len(part.channels) < gates.shape[-1]:
        gates = tf.gather(gates, part.channels, axis=3)
    if part and not part.free.all():
        # Settled gates become 1: their filters are always on, or zeros.
        gates = tf.maximum(gates, tf.constant(~part.free, tf.float32))
    return inputs * gates


@_compute.register(keras.layers.Add)
def _add(layer, network, residual, shortcut):
    if residual is None:
        return shortcut
    if residual.shape[-1] == shortcut.shape[-1]:
        return residual + shortcut
    # Scatters the channels to their places; in TensorFlow a 1x1 convolution is fastest.
    gate = network.layer_of[layer.input[0]]
    channels = network.settled[network.convolution_of[gate.name]].channels
    spread = np.zeros((1, 1, len(channels), shortcut.shape[-1]), np.float32)
    spread[0, 0, np.arange(len(channels)), channels] = 1.0
    return tf.nn.conv2d(residual, spread, 1, "SAME") + shortcut


@_compute.register(keras.layers.Dense)
def _dense(layer, network, inputs):
    kernel, bias = network.weights[layer.name]
    return layer.activation(tf.nn.bias_add(tf.matmul(inputs, kernel), bias))


@_compute.register(keras.layers.BatchNormalization)
def _normalization(layer, network, inputs):
    if layer.name in network.folded:
        return inputs
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


KNOWN = {
    *(keras.layers.Conv2D, keras.layers.BatchNormalization, BatchNormalization),
    *(keras.layers.Dense, SqueezeExcite, GateFilters, GateSplit, SemHash),
    *(keras.layers.Add, keras.layers.ReLU, keras.layers.Activation, keras.layers.ZeroPadding2D),
    *(keras.layers.MaxPooling2D, keras.layers.AveragePooling2D, keras.layers.Resizing),
    keras.layers.GlobalAveragePooling2D,
}
"""Layers that are computed here, or have no weights."""
