"""Multiply-accumulates of a network, and how many of them its gates could save in theory.

Counted are convolutions and dense layers, the gater's included; a convolution of k x k costs
`height * width * k * k * inputs * outputs` at its output's size. A filter that is off saves its own
`height * width * k * k * inputs` and nothing else: what follows it still reads a full tensor. These
are figures on paper; the code here computes every filter and multiplies by the gate.
"""

import math

import keras
import numpy as np

from gaternet_tf.layers import GatedConv2D, SqueezeExcite
from gaternet_tf.models import gate_map


def layer_macs(model: keras.Model) -> dict[str, int]:
    """Multiply-accumulates for one image, by layer, in network order; layers without are absent."""
    macs = {}
    for layer in model.layers:
        if isinstance(layer, GatedConv2D):
            _, height, width, _ = layer.output.shape
            macs[layer.name] = height * width * math.prod(layer.convolution.kernel.shape)
        elif isinstance(layer, keras.layers.Dense):
            macs[layer.name] = math.prod(layer.kernel.shape)
        elif isinstance(layer, SqueezeExcite):
            kernels = (layer.squeeze.kernel, layer.excite.kernel)
            macs[layer.name] = sum(math.prod(kernel.shape) for kernel in kernels)
    return macs


def gate_macs(model: keras.Model) -> np.ndarray:
    """int64 [gates]: what an image saves by each gate that is off; empty without gates."""
    by_layer = layer_macs(model)
    costs = [
        np.full(segment.channels, by_layer[segment.name] // segment.channels, np.int64)
        for segment in gate_map(model).segments
    ]
    return np.concatenate(costs) if costs else np.zeros(0, np.int64)
