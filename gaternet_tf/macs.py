"""Multiply-accumulates of a network, and how many of them its gates could save in theory.

Counted are convolutions and dense layers, the gater's included. A layer costs, for each image and
each time that it is called,

    places * kernel area * inputs that are on * outputs that are on

with the places of its output (of its input where it is transposed); each group of a grouped
convolution counts by itself, and each channel of a depthwise one. A filter that is off saves its
own work, that of the depthwise convolution between it and its gate for its channel, and what the
next convolutions or dense layers would compute with its channel as their input. It is no input any
more up to what adds or mixes channels: behind a sum, a concatenation or a normalisation all
channels are read. Other layers count as 0, whatever they compute inside. These are figures on
paper: training computes every filter and multiplies by the gate, and what exports save is measured.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import layers

from gaternet_tf.layers import GateFilters, GateSplit, SqueezeExcite
from gaternet_tf.models.gate_map import gate_map
from gaternet_tf.models.graph import (
    ZERO_KEEPING,
    ZERO_KEEPING_OPERATIONS,
    is_operation,
    require_functional,
    rides,
    symbols_of,
    tensors_in,
    walk,
)

TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
PLAIN = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.Dense)
DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
KEEPING = (
    *(layers.MaxPooling2D, layers.AveragePooling2D, layers.ZeroPadding2D, layers.Cropping2D),
    *(layers.GlobalMaxPooling2D, layers.GlobalAveragePooling2D, layers.UpSampling2D),
    *(layers.Flatten, layers.Multiply, layers.Dropout, layers.SpatialDropout2D),
    *(layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU),
)
"""Layers behind which a channel that is off is still 0."""
KEEPING_OPERATIONS = {*ZERO_KEEPING_OPERATIONS, "Multiply"}


@dataclasses.dataclass(frozen=True)
class Product:
    """Multiply-accumulates of a layer, `each * inputs * outputs`.

    `inputs` and `outputs` are how many there are, or `(start, stop)`: one for each of these gates.
    """

    layer: str
    each: int
    inputs: int | tuple[int, int]
    outputs: int | tuple[int, int]


class Macs:
    """Multiply-accumulates of an image, as a function of its gates.

    >>> macs = Macs([Product("conv", 100, 3, (0, 2)), Product("logits", 1, (0, 2), 10)])
    >>> macs.total, macs(np.array([[True, False], [False, False]])).tolist()
    (620, [310, 0])
    """

    def __init__(self, products: Sequence[Product]):
        self.products = tuple(products)

    @property
    def total(self) -> int:
        """Those of an image whose gates are all on."""
        return sum(self.by_layer().values())

    def by_layer(self) -> dict[str, int]:
        """The same by layer, in network order."""
        found: collections.Counter[str] = collections.Counter()
        for product in self.products:
            found[product.layer] += math.prod(
                n if isinstance(n, int) else n[1] - n[0]
                for n in (product.each, product.inputs, product.outputs)
            )
        return dict(found)

    def __call__(self, gates: np.ndarray) -> np.ndarray:
        """Returns int64 [images], from bools [images, gates] that say what is on."""
        # Numbers of gates on before each gate, so that those of any range are a difference.
        before = np.pad(np.cumsum(gates, axis=1, dtype=np.int64), [(0, 0), (1, 0)])

        def on(n):
            return n if isinstance(n, int) else before[:, n[1]] - before[:, n[0]]

        macs = np.zeros(len(gates), np.int64)
        for product in self.products:
            macs += product.each * on(product.inputs) * on(product.outputs)
        return macs

    def to_rows(self) -> list[list]:
        """Its products, JSON-ready; `from_rows` reads them back."""
        return [list(dataclasses.astuple(product)) for product in self.products]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence]) -> "Macs":
        """The function of the products that `to_rows` wrote."""
        return cls(
            [
                Product(name, each, *(n if isinstance(n, int) else (n[0], n[1]) for n in counts))
                for name, each, *counts in rows
            ]
        )


def layer_macs(model: keras.Model) -> dict[str, int]:
    """Multiply-accumulates for one image, by layer, in network order; layers without are absent.

    A model inside the model counts as one layer.

    Raises:
      ValueError: for a model that takes images of any size.
    """
    return macs_of(model).by_layer()


def macs_of(model: keras.Model) -> Macs:
    """Returns the multiply-accumulates of an image, as a function of its gates.

    Raises:
      ValueError: for a model that takes images of any size.
    """
    stops = np.cumsum([0, *(segment.channels for segment in gate_map(model).segments)]).tolist()
    places = list(itertools.pairwise(stops))
    filters = {
        segment.layer: place
        for segment, place in zip(gate_map(model).segments, places, strict=True)
    }
    products: list[Product] = []
    alive: list = []  # Kept, since the dictionaries are by the ids of tensors.
    # By the id of a tensor: the gates that are to come behind it, and those whose channels are 0.
    pending: dict[int, tuple[int, int]] = {}
    zeros: dict[int, tuple[int, int]] = {}

    def visit(operation, path, args, kwargs):
        outputs = operation.compute_output_spec(*args, **kwargs)
        tensors, results = tensors_in((args, kwargs)), tensors_in(outputs)
        alive.extend(results)
        read = [zeros[id(tensor)] for tensor in tensors if id(tensor) in zeros]
        ahead = None
        if len(tensors) == 1 and rides(operation):
            ahead = pending.get(id(tensors[0]))
        ahead = ahead or filters.get(operation.name)
        if isinstance(operation, GateSplit):
            zeros.update({id(piece): place for piece, place in zip(results, places, strict=True)})
        elif isinstance(operation, GateFilters):
            zeros[id(results[0])] = read[-1]
        elif read and _keeps_zeros(operation, tensors[0], results[0]):
            zeros[id(results[0])] = read[0]
        elif ahead:
            pending[id(results[0])] = ahead
        found = _products(operation, tensors, results, read[0] if read else None, ahead)
        products.extend(dataclasses.replace(product, layer=path[0]) for product in found)
        return outputs

    plain = require_functional(model)
    alive.append(symbols_of(plain))
    walk(plain, alive[0], visit)
    return Macs(products)


def _keeps_zeros(operation, tensor, result) -> bool:
    """Returns whether channels that are 0 are the same ones and 0 behind an operation."""
    if isinstance(operation, layers.Activation):
        return getattr(operation.activation, "__name__", "") in ZERO_KEEPING
    if isinstance(operation, layers.Reshape):
        return result.shape[-1] == tensor.shape[-1]
    return is_operation(operation, KEEPING, KEEPING_OPERATIONS)


def _products(layer, tensors, results, read, gates):
    """Yields the products of a layer that reads the channels of some gates, and has gates."""
    if isinstance(layer, SqueezeExcite):
        kernels = [weight for weight in layer.weights if weight.name.endswith("kernel")]
        yield Product(layer.name, sum(math.prod(kernel.shape) for kernel in kernels), 1, 1)
    elif isinstance(layer, SEPARABLE):
        *area, inputs, multiplier = layer.depthwise_kernel.shape
        each = multiplier * _places(layer, results[0])
        yield Product(layer.name, each * math.prod(area), read or inputs, 1)
        filters = layer.pointwise_kernel.shape[-1]
        yield Product(layer.name, each, read or inputs, gates or filters)
    elif isinstance(layer, (*PLAIN, *DEPTHWISE, *TRANSPOSED)):
        *area, inputs, outputs = layer.kernel.shape
        groups = getattr(layer, "groups", 1)
        if isinstance(layer, DEPTHWISE):
            inputs, outputs, groups = 1, inputs * outputs, inputs
        elif isinstance(layer, TRANSPOSED):
            inputs, outputs = outputs, inputs
        tensor = tensors[0] if isinstance(layer, TRANSPOSED) else results[0]
        each = _places(layer, tensor) * math.prod(area)
        if read:  # Of a flattened picture, a channel is an input at every place.
            each *= inputs * groups // (read[1] - read[0])
        if not read:
            yield Product(layer.name, each, inputs, gates or outputs)
        elif not gates:
            yield Product(layer.name, each, read, outputs // groups)
        else:
            for ours, theirs in zip(_split(read, groups), _split(gates, groups), strict=True):
                yield Product(layer.name, each, ours, theirs)


def _split(gates, parts):
    """Returns the gates of each of so many parts."""
    bounds = np.linspace(gates[0], gates[1], parts + 1, dtype=int).tolist()
    return itertools.pairwise(bounds)


def _places(layer, tensor) -> int:
    """Returns at how many places of a tensor a layer's kernels are applied."""
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    size = tensor.shape[2:] if channels_first else tensor.shape[1:-1]
    if None in size:
        raise ValueError(
            "multiply-accumulates are those of images of one size, and layer "
            f"'{layer.name}' has shape {tensor.shape}; give keras.Input the size"
        )
    return math.prod(size)
