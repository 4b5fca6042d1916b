"""Computes, picture by picture, only the filters that the picture's gates switch on.

Where a gated value is read by convolutions or dense layers alone, its channels can be *gathered*:
the rows of the kernels that its gates switch on, of the layer that writes it and of those that read
it. Elsewhere a gate multiplies the value or, where that is smaller, the kernel.
"""

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from export.program import (
    Affine,
    Call,
    Channelwise,
    Filters,
    Gate,
    Program,
    Step,
    compute_step,
    constant,
    keeps_zeros,
)

MULTIPLY, KERNEL, GATHER = "multiply", "kernel", "gather"
BLOCK = 8
"""Channels are gathered in multiples of so many, which convolutions compute fastest."""


@dataclasses.dataclass(eq=False)
class GatePlace:
    """A gate, what can be done with it, and the steps around it.

    Attributes:
      gate: its step.
      options: of `MULTIPLY`, `KERNEL` and `GATHER`.
      writer: the filters that it switches, or None where something else reads them, too.
      between: the channelwise steps from there to the readers.
      readers: the steps that read its channels.
    """

    gate: Gate
    options: list[str]
    writer: Filters | None
    between: list[Step]
    readers: list[Step]


def gate_places(program: Program) -> list[GatePlace]:
    """Returns the gates of a program, with what can be done with each."""
    readers = program.readers()
    makers = {value: step for step in program.steps for value in step.outputs}
    places = []
    for gate in (step for step in program.steps if isinstance(step, Gate)):
        between: list[Step] = []
        writer: Filters | None = None
        value = gate.inputs[0]
        while len(readers[value]) == 1 and (step := makers.get(value)):
            if isinstance(step, Filters) and _has_rows(step):
                writer = step
                break
            if not _is_channelwise(step):
                break
            between.append(step)
            value = step.inputs[0]
        options = [MULTIPLY]
        if writer and keeps_zeros([writer, *between]):
            options.append(KERNEL)
        found: list = []
        rest = list(readers[gate.output])
        for step in rest:  # Grows while it is read.
            if isinstance(step, Channelwise) and step.keeps_zeros:
                between.append(step)
                rest += readers[step.output]
            else:
                found.append(step)
        if writer and all(map(_has_rows, found)):
            options.append(GATHER)
        places.append(GatePlace(gate, options, writer, between, found))
    return places


def _has_rows(step) -> bool:
    """Returns whether a step is of filters that each read all channels of its input."""
    return isinstance(step, Filters) and step.kind != "depthwise" and step.groups == 1


def _is_channelwise(step) -> bool:
    if isinstance(step, Filters):
        return step.kind == "depthwise"
    return isinstance(step, Affine | Channelwise)


def compute_filters(step: Filters, x, inputs=None, how="", gates=None):
    """Returns the output of filters for one picture.

    Args:
      step: the layer.
      x: its input, [1, ...]; the channels that are on where it is gathered.
      inputs: gates [inputs] of a gathered input, else None.
      how: what is done with the gates of its outputs; "" for nothing.
      gates: gates [outputs] of its outputs.
    """
    if inputs is None and how in ("", MULTIPLY):
        y = step(x)
        return y * gates if how else y
    rows = None if inputs is None else channels_on(inputs)
    columns = channels_on(gates) if how == GATHER else None
    bias = constant(step.bias) if columns is None else gathered_vector(step.bias, columns)
    if step.kind == "depthwise":
        kernel = gathered_kernel(np.swapaxes(step.kernel, 2, 3), None, columns)
        return step.apply(x, tf.transpose(kernel, [0, 1, 3, 2]), bias)
    kernel = constant(step.kernel)
    if rows is not None or columns is not None:
        kernel = gathered_kernel(step.kernel, rows, columns)
    if how == KERNEL:
        kernel, bias = kernel * gates, bias * gates
    y = step.apply(x, kernel, bias)
    return y * gates if how == MULTIPLY else y


def gathered_kernel(kernel: np.ndarray, inputs=None, outputs=None):
    """Returns the part of a kernel [..., inputs, outputs] at some inputs and outputs.

    Args:
      kernel: of a layer of filters.
      inputs: int64 tensor of numbers, of which that of the inputs stands for zeros; None for all.
      outputs: the same for the outputs.
    """
    dimension = kernel.ndim - 2
    if inputs is not None:  # One row of zeros more.
        kernel = np.pad(kernel, [(0, 0)] * dimension + [(0, 1), (0, 0)])
    if outputs is None:
        return tf.gather(constant(kernel), inputs, axis=dimension)
    # What is gathered first lies together in memory.
    columns = np.moveaxis(np.pad(kernel, [(0, 0)] * (kernel.ndim - 1) + [(0, 1)]), -1, 0)
    part = tf.gather(constant(np.ascontiguousarray(columns)), outputs, axis=0)
    part = tf.transpose(part, [*range(1, kernel.ndim), 0])
    return part if inputs is None else tf.gather(part, inputs, axis=dimension)


def gathered_vector(vector: np.ndarray, channels):
    """Returns the part of a vector at some channels, of which that of its length stands for 0."""
    return tf.gather(constant(np.append(vector, 0.0)), channels)


def channels_on(gates):
    """Returns the numbers of the gates [gates] that are on, filled up with their count."""
    on = tf.reshape(tf.where(gates > 0), [-1])
    count = tf.size(on, tf.int64)
    missing = tf.maximum(-count % BLOCK, BLOCK - count)
    return tf.concat([on, tf.fill([missing], tf.size(gates, tf.int64))], 0)


class ConditionalNetwork:
    """A program that computes some gates' channels only for the pictures that need them.

    Args:
      program: with gates.
      chosen: what is done with each gate.
      batch: largest number of pictures that are computed one by one; above it all of a batch are
        computed together, with gates that multiply.
    """

    def __init__(self, program: Program, chosen: Mapping[GatePlace, str], batch: int):
        self.program = program
        # Batch normalisation as in training looks at the whole batch.
        calls = [step for step in program.steps if isinstance(step, Call)]
        normalized = [s for s in calls if isinstance(s.operation, keras.layers.BatchNormalization)]
        whole = any(step.kwargs.get("training") for step in normalized)
        self.batch = 0 if whole else batch
        self.chosen = {place: how for place, how in chosen.items() if how != MULTIPLY}
        self.passing = {place.gate for place in self.chosen}
        self.writers = {place.writer: place.gate for place in self.chosen}
        self.how = {place.writer: how for place, how in self.chosen.items()}
        gathered = [place for place, how in self.chosen.items() if how == GATHER]
        self.readers = {step: place.gate for place in gathered for step in place.readers}
        self.between = {step: place.gate for place in gathered for step in place.between}

    @tf.autograph.experimental.do_not_convert
    def __call__(self, images) -> dict:
        """Maps float32 [batch, height, width, channels], normalised, to the network's outputs."""
        if not self.chosen or not self.batch:
            return self.program(images)
        program, all_gates = self.program, next(iter(self.passing)).inputs[1]
        outputs = dict(program.outputs)
        gates = {"gates": outputs.pop("gates"), "all": all_gates}
        found = dataclasses.replace(program, outputs=gates)(images)
        rest = dataclasses.replace(program, outputs=outputs)
        specs = {
            name: tf.TensorSpec(program.shapes[value], tf.float32)
            for name, value in outputs.items()
        }
        results = tf.cond(
            tf.shape(images)[0] <= self.batch,
            lambda: tf.map_fn(
                lambda each: self._one(rest, all_gates, *each),
                (images, found["all"]),
                fn_output_signature=specs,
            ),
            lambda: rest.run({program.input: images, all_gates: found["all"]}),
        )
        return {**results, "gates": found["gates"]}

    def _one(self, program, all_gates, image, gates):
        """Returns the outputs of a picture [height, width, channels] with its gates [gates]."""
        pieces = program.multipliers(gates[None], all_gates)
        pieces = {gate: tf.reshape(piece, [-1]) for gate, piece in pieces.items()}

        def compute(multipliers, step, x, *others):
            if step in self.passing:
                return x
            inside = self.between.get(step)
            if inside and isinstance(step, Affine):
                channels = channels_on(pieces[inside])
                scale, offset = (gathered_vector(v, channels) for v in (step.scale, step.offset))
                return x * scale + offset
            if inside and isinstance(step, Filters):
                return compute_filters(step, x, None, GATHER, pieces[inside])
            if step in self.readers or step in self.writers:
                inputs, outputs = (
                    pieces.get(each.get(step)) for each in (self.readers, self.writers)
                )
                return compute_filters(step, x, inputs, self.how.get(step, ""), outputs)
            return compute_step(multipliers, step, x, *others)

        outputs = program.run({program.input: image[None], all_gates: gates[None]}, compute)
        return {name: output[0] for name, output in outputs.items()}
