"""Multiply-accumulates of a network, and how many of them its gates could save in theory.

Counted are convolutions and dense layers, the gater's included; a convolution of k x k costs
`height * width * k * k * inputs * outputs` at its output's size, a transposed one at its input's.
A filter that is off saves its own `height * width * k * k * inputs` and nothing else: what follows
it still reads a full tensor. Other layers count as 0, whatever they compute inside. These are
figures on paper; the code here computes every filter and multiplies by the gate.
"""

import math

import keras
import numpy as np
from keras import layers

from gaternet_tf.layers import GatedConv2D, GateSplit, SemHash, SqueezeExcite

TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
PLAIN = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
COUNTED = (GatedConv2D, SqueezeExcite, *PLAIN, *DEPTHWISE, *SEPARABLE, *TRANSPOSED)


def layer_macs(model: keras.Model) -> dict[str, int]:
    """Multiply-accumulates for one image, by layer, in network order; layers without are absent.

    A model inside the model counts as one layer; a layer that is called twice counts once.

    Raises:
      ValueError: for a model that takes images of any size.
    """
    macs = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            macs[layer.name] = sum(layer_macs(layer).values())
        elif isinstance(layer, COUNTED):
            kernels = [weight for weight in layer.weights if weight.name.endswith("kernel")]
            macs[layer.name] = _places(layer) * sum(math.prod(kernel.shape) for kernel in kernels)
    return macs


def _places(layer) -> int:
    """Returns at how many places of an image a layer's kernels are applied."""
    if isinstance(layer, SqueezeExcite):
        return 1
    shape = layer.input.shape if isinstance(layer, TRANSPOSED) else layer.output.shape
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    size = shape[2:] if channels_first else shape[1:-1]
    if None in size:
        raise ValueError(
            "multiply-accumulates are those of images of one size, and layer "
            f"'{layer.name}' has shape {shape}; give keras.Input the size"
        )
    return math.prod(size)


def gate_macs(model: keras.Model) -> np.ndarray:
    """int64 [gates]: what an image saves by each gate that is off; empty without gates.

    Raises:
      ValueError: for gates that do not reach a `GatedConv2D` each through a `GateSplit`.
    """
    gated = {
        id(layer.input[1]): layer
        for layer in model.layers
        if isinstance(layer, GatedConv2D) and isinstance(layer.input, list)
    }
    splits = [layer for layer in model.layers if isinstance(layer, GateSplit)]
    pieces = [piece for split in splits for piece in keras.tree.flatten(split.output)]
    has_gates = any(isinstance(layer, SemHash) for layer in model.layers)
    if any(id(piece) not in gated for piece in pieces) or (has_gates and not pieces):
        raise ValueError(
            "what a gate saves is known where a GateSplit hands each GatedConv2D its gates, and "
            f"model '{model.name}' uses its gates in another way; leave them to these two layers"
        )
    macs = layer_macs(model)
    costs = [
        np.full(layer.filters, macs[layer.name] // layer.filters, np.int64)
        for layer in (gated[id(piece)] for piece in pieces)
    ]
    return np.concatenate([np.zeros(0, np.int64), *costs])
