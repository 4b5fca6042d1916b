"""A trained network as a list of steps with constant weights.

Keras' graph is read once; folding (`export.folding`), settling of gates (`export.settling`) and
computing filters picture by picture (`export.conditional`) rewrite the list, and running it makes
a TensorFlow graph. TensorFlow fuses a convolution with the bias and the activation that follow it,
and arranges constant weights in memory once.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from gaternet_tf.layers import BatchNormalization, GateFilters, GateSplit, SemHash, SqueezeExcite
from gaternet_tf.layers.semhash import hard_gates
from gaternet_tf.models.graph import (
    CHANNELWISE,
    RIDING_OPERATIONS,
    require_functional,
    symbols_of,
    tensors_in,
    walk,
)

FAR = 2.0**20
"""A number whose distance from 0 leaves little to rounding."""
ON, OFF = -1, -2
"""Places of gates that are the same for every picture."""
IDENTITIES = (
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.GaussianDropout,
)
"""Layers that do nothing in inference."""
POOLING = (
    *(layers.MaxPooling2D, layers.AveragePooling2D, layers.Cropping2D, layers.UpSampling2D),
    *(layers.GlobalMaxPooling2D, layers.GlobalAveragePooling2D),
)
"""Layers that treat channels apart, and leave a constant channel constant."""
ACTIVATIONS = (layers.ReLU, layers.LeakyReLU, layers.ELU)


@dataclasses.dataclass(eq=False)
class Step:
    """An operation of the network. Values are numbered.

    Attributes:
      name: of the layer.
      inputs: numbers of the values that it reads.
      outputs: numbers of those that it makes.
    """

    name: str
    inputs: list[int]
    outputs: list[int]

    @property
    def output(self) -> int:
        """The number of its first or only output."""
        return self.outputs[0]

    def __call__(self, *tensors):
        """Returns its output, or a structure of several."""
        raise NotImplementedError


@dataclasses.dataclass(eq=False)
class Filters(Step):
    """A convolution or a dense layer.

    Attributes:
      kind: "conv" (also for a dense layer on pictures, as a 1x1 convolution), "depthwise" or
        "dense".
      kernel: [height, width, inputs, outputs], [height, width, channels, 1] or [inputs, outputs].
      bias: [outputs].
      activation: function of the outputs, or None.
      strides, padding, dilations: as TensorFlow's.
      groups: number of equal parts of a convolution's inputs; each filter reads one part.
    """

    kind: str
    kernel: np.ndarray
    bias: np.ndarray
    activation: Callable | None = None
    strides: tuple[int, int] = (1, 1)
    padding: str = "VALID"
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def pads(self) -> bool:
        """Whether zeros may come in at the borders."""
        return self.kind != "dense" and self.padding == "SAME" and self.kernel.shape[:2] != (1, 1)

    def apply(self, x, kernel, bias):
        """Computes the filters with a kernel and a bias."""
        if self.kind == "dense":
            y = tf.matmul(x, kernel)
        elif self.kind == "depthwise":
            strides = (1, *self.strides, 1)
            y = tf.nn.depthwise_conv2d(x, kernel, strides, self.padding, dilations=self.dilations)
        else:
            y = tf.nn.conv2d(x, kernel, self.strides, self.padding, dilations=self.dilations)
        y = tf.nn.bias_add(y, bias)
        return self.activation(y) if self.activation else y

    def __call__(self, x):
        return self.apply(x, constant(self.kernel), constant(self.bias))


@dataclasses.dataclass(eq=False)
class Affine(Step):
    """`x * scale + offset` in each channel: batch normalisation and what scales pixels."""

    scale: np.ndarray
    offset: np.ndarray

    def __call__(self, x):
        return x * constant(self.scale) + constant(self.offset)


@dataclasses.dataclass(eq=False)
class Channelwise(Step):
    """A function that treats channels apart and leaves a constant channel constant.

    Attributes:
      function: of tensors with any number of channels.
      elementwise: whether it also treats places apart.
      keeps_zeros: whether 0 becomes 0.
      pads: whether it puts zeros at the borders.
    """

    function: Callable
    elementwise: bool = True
    keeps_zeros: bool = True
    pads: bool = False

    def __call__(self, x):
        return self.function(x)


@dataclasses.dataclass(eq=False)
class Gate(Step):
    """Multiplies channels by their gates: inputs are [batch, height, width, channels], all gates.

    Attributes:
      places: for each channel the place of its gate among all gates, `ON` or `OFF`.
    """

    places: np.ndarray


@dataclasses.dataclass(eq=False)
class Merge(Step):
    """A sum, a product (of two) or a concatenation (of channels); `kind` says which."""

    kind: str

    def __call__(self, *tensors):
        if self.kind == "concat":
            return tf.concat(tensors, -1)
        result, *others = tensors
        for tensor in others:
            result = result + tensor if self.kind == "sum" else result * tensor
        return result


@dataclasses.dataclass(eq=False)
class Flatten(Step):
    """[batch, height, width, channels] to [batch, features]; `places` is height * width."""

    places: int

    def __call__(self, x):
        return tf.reshape(x, [-1, self.places * x.shape[-1]])


@dataclasses.dataclass(eq=False)
class Select(Step):
    """Takes some channels."""

    channels: np.ndarray

    def __call__(self, x):
        return tf.gather(x, self.channels, axis=-1)


@dataclasses.dataclass(eq=False)
class Spread(Step):
    """Puts channels at their places among constant ones.

    Attributes:
      channels: the place of each input channel.
      constants: [outputs], what the other channels are.
    """

    channels: np.ndarray
    constants: np.ndarray

    def __call__(self, x):
        total = len(self.constants)
        rest = np.setdiff1d(np.arange(total), self.channels)
        if len(x.shape) == 4:  # In TensorFlow a 1x1 convolution is fastest.
            kernel = np.zeros((1, 1, len(self.channels), total))
            kernel[0, 0, np.arange(len(self.channels)), self.channels] = 1
            spread = tf.nn.conv2d(x, constant(kernel), 1, "VALID")
            offset = np.zeros(total)
            offset[rest] = self.constants[rest]
            return tf.nn.bias_add(spread, constant(offset)) if offset.any() else spread
        places = np.zeros(total, np.int64)
        places[self.channels] = np.arange(len(self.channels))
        places[rest] = len(self.channels) + np.arange(len(rest))
        row = tf.tile(constant(self.constants[rest])[None], [tf.shape(x)[0], 1])
        return tf.gather(tf.concat([x, row], 1), places, axis=1)


@dataclasses.dataclass(eq=False)
class Constant(Step):
    """A constant in each channel; the input is the network's, for the number of pictures.

    Attributes:
      value: [channels].
      shape: of a picture's value.
    """

    value: np.ndarray
    shape: tuple[int, ...]

    def __call__(self, images):
        return tf.broadcast_to(constant(self.value), [tf.shape(images)[0], *self.shape])


@dataclasses.dataclass(eq=False)
class Call(Step):
    """Any other operation of Keras, called as it is.

    Attributes:
      args, kwargs: in which symbolic tensors stand for the inputs.
    """

    operation: Any
    args: tuple
    kwargs: dict

    def __call__(self, *tensors):
        rest = iter(tensors)
        args, kwargs = keras.tree.map_structure(
            lambda each: next(rest) if isinstance(each, keras.KerasTensor) else each,
            (self.args, self.kwargs),
        )
        return self.operation(*args, **kwargs)


@dataclasses.dataclass(eq=False)
class Program:
    """A network's steps, in an order in which they can be run.

    Attributes:
      steps: all of them.
      input: number of the value that is the pictures, float32.
      outputs: numbers of the outputs by name.
      shapes: shape of each value in the network as it was read, without the batch.
    """

    steps: list[Step]
    input: int
    outputs: dict[str, int]
    shapes: dict[int, tuple]

    def readers(self) -> dict[int, list[Step]]:
        """Returns the steps that read each value; an output is read by None, too."""
        found: dict[int, list] = {value: [] for value in self.shapes}
        for step in self.steps:
            for value in step.inputs:
                found.setdefault(value, []).append(step)
        for value in self.outputs.values():
            found.setdefault(value, []).append(None)
        return found

    def pruned(self, given: Iterable[int] = ()) -> "Program":
        """Returns the program without steps that no output needs when some values are given."""
        needed, steps = set(self.outputs.values()), []
        for step in reversed(self.steps):
            if not needed.isdisjoint(step.outputs) and not set(step.outputs) <= set(given):
                needed.update(step.inputs)
                steps.append(step)
        return dataclasses.replace(self, steps=steps[::-1])

    def part(self, *names: str) -> "Program":
        """Returns the program of some outputs."""
        outputs = {name: self.outputs[name] for name in names}
        return dataclasses.replace(self, outputs=outputs).pruned()

    def without_gates(self) -> "Program":
        """Returns the plain network: all gates are on."""
        aliases: dict[int, int] = {}
        steps = []
        for step in self.steps:
            inputs = [aliases.get(value, value) for value in step.inputs]
            if isinstance(step, Gate):
                aliases[step.output] = inputs[0]
            else:
                steps.append(dataclasses.replace(step, inputs=inputs))
        outputs = {name: aliases.get(value, value) for name, value in self.outputs.items()}
        outputs.pop("gates", None)
        return dataclasses.replace(self, steps=steps, outputs=outputs).pruned()

    @tf.autograph.experimental.do_not_convert
    def __call__(self, images) -> dict:
        """Maps float32 [batch, height, width, channels], normalised, to the network's outputs."""
        return self.run({self.input: images})

    def run(self, values: Mapping[int, Any], compute: Callable | None = None) -> dict:
        """Returns the outputs by name, from the values that are given by their numbers.

        `compute` is called for each step with the gates of each gated value, the step and its
        inputs, and returns its output; by default it is `compute_step`.
        """
        values = dict(values)
        compute = compute or compute_step
        multipliers: dict[Step, Any] = {}
        for step in self.pruned(values).steps:
            if isinstance(step, Gate) and step not in multipliers:
                multipliers |= self.multipliers(values[step.inputs[1]], step.inputs[1])
            results = compute(multipliers, step, *(values[value] for value in step.inputs))
            values.update(zip(step.outputs, keras.tree.flatten(results), strict=True))
        return {name: values[value] for name, value in self.outputs.items()}

    def multipliers(self, gates, value) -> dict[Step, Any]:
        """Returns the gates of each gated value's channels, from one split of all gates."""
        steps = [each for each in self.steps if isinstance(each, Gate) and each.inputs[1] == value]
        places = np.concatenate([step.places for step in steps])
        count = gates.shape[-1]
        if not np.array_equal(places, np.arange(count)):
            if (places < 0).any():
                ends = tf.tile(tf.constant([[1.0, 0.0]]), [tf.shape(gates)[0], 1])
                gates = tf.concat([gates, ends], 1)
                places = np.where(places < 0, count - 1 - places, places)
            gates = tf.gather(gates, places, axis=1)
        sizes = [len(step.places) for step in steps]
        pieces = tf.split(gates[:, None, None, :], sizes, axis=3)
        return dict(zip(steps, pieces, strict=True))


def compute_step(multipliers: Mapping[Step, Any], step: Step, *tensors):
    """Returns the output of a step; a gate multiplies."""
    if isinstance(step, Gate):
        return tensors[0] * multipliers[step]
    return step(*tensors)


def keeps_zeros(steps: Sequence[Step]) -> bool:
    """Returns whether channels stay 0 behind filters and channelwise steps without offsets."""
    for step in steps:
        if isinstance(step, Channelwise) and not step.keeps_zeros:
            return False
        if isinstance(step, Filters) and (step.kind == "depthwise" or step.activation):
            probe = step.bias if step.kind == "depthwise" else np.zeros(1)
            probe = probe if step.activation is None else step.activation(constant(probe[None]))
            if np.any(probe):
                return False
        if isinstance(step, Affine) and step.offset.any():
            return False
    return True


def constant(array: np.ndarray):
    """Returns a float32 constant."""
    return tf.constant(array.astype(np.float32))


def read_program(model: keras.Model) -> Program:
    """Returns the steps of a functional model of one picture, in inference."""
    return _Reader().read(require_functional(model))


class _Reader:
    """Reads a Keras graph; what it knows becomes a step of its own kind, the rest a `Call`."""

    def __init__(self):
        self.numbers = itertools.count()
        self.steps: list[Step] = []
        self.shapes: dict[int, tuple] = {}
        self.alive: list = []  # Kept, since the dictionaries are by the ids of tensors.
        self.value: dict[int, int] = {}
        self.start: dict[int, int] = {}

    def read(self, model) -> Program:
        symbols = symbols_of(model)
        inputs = [self._value(tensor) for tensor in tensors_in(symbols)]
        outputs = walk(model, symbols, self._visit)
        named = {name: self.value[id(tensor)] for name, tensor in outputs.items()}
        return Program(self.steps, inputs[0], named, self.shapes)

    def _value(self, tensor) -> int:
        """Returns the number of a symbolic tensor."""
        if id(tensor) not in self.value:
            self.alive.append(tensor)
            self.value[id(tensor)] = self._new(tensor.shape)
        return self.value[id(tensor)]

    def _new(self, shape) -> int:
        number = next(self.numbers)
        self.shapes[number] = tuple(shape[1:])
        return number

    def _visit(self, operation, path, args, kwargs):
        outputs = operation.compute_output_spec(*args, **kwargs)
        tensors, results = tensors_in((args, kwargs)), tensors_in(outputs)
        self.alive += results
        inputs = [self._value(tensor) for tensor in tensors]
        name = "_".join(path)
        forced = kwargs.get("training")
        if isinstance(operation, GateSplit):
            start = 0
            for piece in results:
                self.value[id(piece)], self.start[id(piece)] = inputs[0], start
                start += piece.shape[-1]
        elif (type(operation) in IDENTITIES and not forced) or _is_linear(operation):
            self.value[id(results[0])] = inputs[0]
        elif isinstance(operation, GateFilters):
            start = self.start[id(tensors[1])]
            places = start + np.arange(tensors[1].shape[-1])
            self.steps.append(Gate(name, inputs, [self._value(results[0])], places))
        elif forced or not (known := list(self._known(operation, name, tensors, inputs, results))):
            if getattr(operation, "_call_has_training_arg", False):
                kwargs = {"training": False, **kwargs}
            numbers = [self._value(result) for result in results]
            self.steps.append(Call(name, inputs, numbers, operation, args, kwargs))
        else:
            known[-1].outputs[:] = [self._value(results[0])]
            self.steps += known
        return outputs

    def _known(self, layer, name, tensors, inputs, results):
        """Yields the steps of a layer that is known here; the last one's output is set later."""
        kind: Any = type(layer)
        shape: tuple = tensors[0].shape if tensors else ()
        function = _channelwise_function(layer)
        if not _is_channels_last(layer):
            return
        single = (layers.Conv2D, layers.Dense, layers.DepthwiseConv2D)
        if kind in single and len(shape) in (2, 4) and _is_known(layer):
            yield _filters(layer, name, inputs, [-1], len(shape))
        elif kind is layers.SeparableConv2D and _is_known(layer):
            between = self._new((*results[0].shape[:-1], shape[-1]))
            yield Filters(
                *(name, inputs, [between], "depthwise", _array(layer.depthwise_kernel)),
                *(np.zeros(shape[-1]), None, layer.strides, layer.padding.upper()),
                layer.dilation_rate,
            )
            kernel, bias = _array(layer.pointwise_kernel), _bias(layer)
            yield Filters(name, [between], [-1], "conv", kernel, bias, _activation(layer))
        elif kind is SqueezeExcite:
            pooled = self._new((None, 1, 1, shape[-1]))
            small = self._new((None, 1, 1, layer.squeeze.units))
            scale = self._new((None, 1, 1, shape[-1]))
            yield Channelwise(name, inputs, [pooled], _keeping_mean, elementwise=False)
            yield _filters(layer.squeeze, name, [pooled], [small], 4)
            yield _filters(layer.excite, name, [small], [scale], 4)
            yield Merge(name, [*inputs, scale], [-1], "product")
        elif kind in (layers.BatchNormalization, BatchNormalization) and _is_last(
            layer.axis, shape
        ):
            factor = 1 / np.sqrt(_array(layer.moving_variance) + layer.epsilon)
            factor = factor * _array(layer.gamma) if layer.scale else factor
            offset = -_array(layer.moving_mean) * factor
            offset = offset + _array(layer.beta) if layer.center else offset
            yield Affine(name, inputs, [-1], factor, offset)
        elif kind is layers.Rescaling or (
            kind is layers.Normalization and (not layer.axis or _is_last(layer.axis, shape))
        ):
            # Both are affine in each channel, which what they make of 0 and of FAR tells.
            pictures = np.zeros((2, *[1] * (len(shape) - 2), shape[-1]), np.float32)
            pictures[1] = FAR
            zero, far = _array(layer(pictures)).reshape(2, -1)
            yield Affine(name, inputs, [-1], (far - zero) / FAR, zero)
        elif function:
            keeps = not np.any(function(tf.zeros(1)))
            yield Channelwise(name, inputs, [-1], function, keeps_zeros=keeps)
        elif kind is SemHash:
            yield Channelwise(name, inputs, [-1], hard_gates)
        elif kind in POOLING:
            yield Channelwise(name, inputs, [-1], layer, elementwise=False)
        elif kind is layers.ZeroPadding2D:
            yield Channelwise(name, inputs, [-1], layer, elementwise=False, pads=True)
        elif kind is layers.Reshape and len(shape) == 2 and results[0].shape[1:3] == (1, 1):
            yield Channelwise(name, inputs, [-1], _as_place, elementwise=False)
        elif kind is layers.Flatten and len(shape) == 4:
            yield Flatten(name, inputs, [-1], shape[1] * shape[2])
        elif _is(layer, layers.Add) and _are_alike(tensors, results):
            yield Merge(name, inputs, [-1], "sum")
        elif kind is layers.Concatenate and _is_last(layer.axis, shape):
            yield Merge(name, inputs, [-1], "concat")
        elif _is(layer, layers.Multiply) and _is_scaling(tensors):
            picture_first = _places(tensors[0]) >= _places(tensors[1])
            yield Merge(name, inputs if picture_first else inputs[::-1], [-1], "product")


def _filters(layer, name, inputs, outputs, rank) -> Filters:
    """Returns the step of a convolution or dense layer on inputs of this rank."""
    if isinstance(layer, layers.Dense):
        kind, kernel = ("dense", _array(layer.kernel))
        if rank == 4:
            kind, kernel = "conv", kernel[None, None]
        return Filters(name, inputs, outputs, kind, kernel, _bias(layer), _activation(layer))
    depthwise = isinstance(layer, layers.DepthwiseConv2D)
    return Filters(
        *(name, inputs, outputs, "depthwise" if depthwise else "conv", _array(layer.kernel)),
        *(_bias(layer), _activation(layer), layer.strides, layer.padding.upper()),
        layer.dilation_rate,
        1 if depthwise else layer.groups,
    )


def _is_known(layer) -> bool:
    """Returns whether a layer of filters can be computed here."""
    depthwise = isinstance(layer, layers.DepthwiseConv2D | layers.SeparableConv2D)
    if depthwise and (
        layer.depth_multiplier > 1 or max(layer.strides) > 1 < max(layer.dilation_rate)
    ):
        return False  # TensorFlow's depthwise convolution would stride after dilating.
    return _activation(layer) is None or _name(layer) in CHANNELWISE


def _is(operation, kind) -> bool:
    """Returns whether an operation is a layer of just this kind, or that of `keras.ops`."""
    if isinstance(operation, keras.Layer):
        return type(operation) is kind
    return type(operation).__name__ == kind.__name__


def _channelwise_function(operation) -> Callable | None:
    """Returns what an operation does in each channel and place, if it is such a one."""
    if type(operation) is layers.Activation:
        return operation.activation if _name(operation) in CHANNELWISE else None
    if isinstance(operation, keras.Layer):
        return operation if type(operation) in ACTIVATIONS else None
    return operation if type(operation).__name__ in RIDING_OPERATIONS else None


def _name(operation) -> str:
    return getattr(getattr(operation, "activation", None), "__name__", "")


def _is_linear(operation) -> bool:
    return type(operation) is layers.Activation and _name(operation) == "linear"


def _activation(layer) -> Callable | None:
    return None if layer.activation is keras.activations.linear else layer.activation


def _bias(layer) -> np.ndarray:
    kernel = getattr(layer, "pointwise_kernel", None)
    kernel = layer.kernel if kernel is None else kernel
    outputs = kernel.shape[-2 if isinstance(layer, layers.DepthwiseConv2D) else -1]
    return _array(layer.bias) if layer.use_bias else np.zeros(outputs)


def _array(weight) -> np.ndarray:
    return np.asarray(weight, np.float64)


def _is_last(axis, shape) -> bool:
    return np.ravel(axis).tolist() in ([-1], [len(shape) - 1])


def _is_channels_last(layer) -> bool:
    return getattr(layer, "data_format", "channels_last") == "channels_last"


def _are_alike(tensors: Sequence, results) -> bool:
    """Returns whether nothing is broadcast."""
    return len(tensors) > 1 and all(tensor.shape == results[0].shape for tensor in tensors)


def _places(tensor) -> int:
    return int(np.prod(tensor.shape[1:-1]))


def _is_scaling(tensors: Sequence) -> bool:
    """Returns whether pictures are multiplied by one number for each channel."""
    return (
        len(tensors) == 2
        and all(len(tensor.shape) == 4 for tensor in tensors)
        and tensors[0].shape[-1] == tensors[1].shape[-1]
        and min(map(_places, tensors)) == 1
    )


def _keeping_mean(x):
    return tf.reduce_mean(x, (1, 2), keepdims=True)


def _as_place(x):
    return x[:, None, None, :]
