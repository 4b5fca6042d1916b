"""Leaves out what settled gates make unnecessary, from a program.

A value is its computed channels and a constant for each other one. That goes through the network in
one pass: filters that are off are left out, what reads them gets fewer inputs, and constants go
into biases. What this does not know gets all channels back. A gate that is always on is no step any
more, and a branch without filters disappears.
"""

import dataclasses
import itertools

import numpy as np

from export.program import (
    OFF,
    ON,
    Affine,
    Call,
    Channelwise,
    Constant,
    Filters,
    Flatten,
    Gate,
    Merge,
    Program,
    Select,
    Spread,
    Step,
    keeps_zeros,
)

SPREADING, PASS = 2, 16
"""What putting channels to their places costs in multiply-accumulates of larger convolutions: for
each of its own, and for each channel that it writes. Measured at 28 x 28 places."""


@dataclasses.dataclass
class Layout:
    """The channels of a value that are computed, and what the others are everywhere.

    Attributes:
      kept: int64, their numbers, rising.
      constants: [channels]; 0 for those that are computed.
    """

    kept: np.ndarray
    constants: np.ndarray


def settle(
    program: Program, always_on: np.ndarray, always_off: np.ndarray, gates_given: bool = False
) -> Program:
    """Returns the program for pictures whose settled gates are as calibrated.

    Args:
      program: with gates.
      always_on: bool [gates], settled on.
      always_off: bool [gates], settled off.
      gates_given: whether all gates are given when the program is run; else the gater's last layer
        computes only those that are not settled, and the output `gates` has the settled ones.
    """
    return _Settling(program, always_on, always_off, gates_given).run()


class _Settling:
    """One pass over a program. New values have the numbers of the old ones that they stand for."""

    def __init__(self, program, always_on, always_off, gates_given):
        self.old = program
        self.on, self.off = always_on, always_off
        self.gates = program.outputs["gates"]
        self.gates_given = gates_given
        self.readers = program.readers()
        self.makers = {value: step for step in program.steps for value in step.outputs}
        self.numbers = itertools.count(max(program.shapes) + 1)
        self.shapes = dict(program.shapes)
        self.steps: list[Step] = []
        self.new: dict[Step, Step] = {}
        self.layouts: dict[int, Layout | None] = {program.input: None}
        self.value: dict[int, int] = {program.input: program.input}
        self.full: dict[int, int] = {}
        self.places = np.arange(len(always_on))
        self.dropped = self._droppable()
        off, self.dropped = self.dropped, self._keep_for_sums(self.dropped)
        # Filters that are computed in vain.
        self.zeros = {step: off[step] & ~self.dropped[step] for step in off}

    def run(self) -> Program:
        handlers = {
            Filters: self._filters,
            Affine: self._affine,
            Channelwise: self._channelwise,
            Gate: self._gate,
            Merge: self._merge,
            Flatten: self._flatten,
            Call: self._call,
        }
        if self.gates_given:
            self.layouts[self.gates], self.value[self.gates] = None, self.gates
        for step in self.old.pruned([self.gates] if self.gates_given else ()).steps:
            handlers[type(step)](step)
        outputs = {
            name: self._whole(value)
            for name, value in self.old.outputs.items()
            if not (name == "gates" and self.gates_given)
        }
        return dataclasses.replace(
            self.old, steps=self.steps, outputs=outputs, shapes=self.shapes
        ).pruned()

    def _droppable(self) -> dict[Step, np.ndarray]:
        """Returns the filters that gates leave out, bool [filters] by layer."""
        dropped: dict[Step, np.ndarray] = {}
        for gate in self.old.steps:
            if isinstance(gate, Gate) and self.off[gate.places].any():
                dropped.update(
                    dict.fromkeys(self._chain(gate.inputs[0])[-1:], self.off[gate.places])
                )
        last = self.makers.get(self.gates)
        if not self.gates_given and isinstance(last, Channelwise):
            chain = self._chain(last.inputs[0])
            if len(chain) == 1:
                free = ~(self.on | self.off)
                dropped[chain[0]] = ~free
                self.places = np.cumsum(free) - 1
        return dropped

    def _keep_for_sums(self, dropped) -> dict[Step, np.ndarray]:
        """Takes filters back that sums need: what they add gets the same channels.

        Filters of zeros cost less than putting channels to their places, unless there are many.
        Filters that are all left out add nothing.
        """
        group = {value: value for value in self.old.shapes}  # To the root of a union-find.

        def root(value):
            while group[value] != value:
                value = group[value]
            return value

        for step in self.old.steps:
            for value in _alike(step):
                group[root(value)] = root(step.output)
        sums = {root(s.output) for s in self.old.steps if isinstance(s, Merge) and s.kind == "sum"}
        kept: dict[int, np.ndarray] = {}
        for step in self.old.steps:
            place = root(step.output)
            if place in sums and not _alike(step):
                off = dropped.get(step, np.zeros(self.old.shapes[step.output][-1], bool))
                kept[place] = kept.get(place, False) | ~off
        taken = dict(dropped)
        for step, off in dropped.items():
            place = root(step.output)
            if place in sums and not off.all():
                union = kept[place].sum()
                before = self._chain(step.inputs[0])[-1:]
                inputs = (~dropped[before[0]]).sum() if before and before[0] in dropped else None
                inputs = inputs or step.kernel.shape[-2]
                zeros = (kept[place] & off).sum() * inputs * np.prod(step.kernel.shape[:-2])
                if zeros <= SPREADING * (~off).sum() * union + PASS * union:
                    taken[step] = off & ~kept[place]
        return taken

    def _chain(self, value) -> list[Step]:
        """Returns the steps of which a value is made channel by channel, backwards to filters.

        Nothing else reads anything between. It is empty where that does not end at filters.
        """
        chain: list[Step] = []
        while len(self.readers[value]) == 1 and value in self.makers:
            step = self.makers[value]
            if isinstance(step, Filters) and step.kind != "depthwise":
                return [*chain, step] if step.groups == 1 else []
            if not isinstance(step, Filters | Affine | Channelwise | Gate):
                break
            chain.append(step)
            value = step.inputs[0]
        return []

    def _add(self, old, inputs, layout, **changes):
        """Adds the step that stands for an old one."""
        step = dataclasses.replace(old, inputs=inputs, outputs=list(old.outputs), **changes)
        self.steps.append(step)
        self.new[old] = step
        self._set(old.output, old.output, layout)

    def _set(self, value, number, layout):
        channels = self.old.shapes[value][-1]
        if layout is not None and len(layout.kept) == channels:
            layout = None
        self.value[value], self.layouts[value] = number, layout
        if layout is not None:
            self.shapes[number] = (*self.old.shapes[value][:-1], len(layout.kept))

    def _insert(self, kind, value, inputs, layout, *settings) -> int:
        """Adds a new step behind an old value; returns the number of what it makes."""
        number = next(self.numbers)
        shape = self.old.shapes[value]
        count = shape[-1] if layout is None else len(layout.kept)
        self.shapes[number] = (*shape[:-1], count)
        maker = self.makers.get(value)
        self.steps.append(kind(maker.name if maker else "input", inputs, [number], *settings))
        return number

    def _whole(self, value) -> int:
        """Returns the number of a value with all its channels."""
        layout = self.layouts[value]
        if layout is None:
            return self.value[value]
        if value not in self.full:
            if len(layout.kept):
                x = [self.value[value]]
                number = self._insert(Spread, value, x, None, layout.kept, layout.constants)
            else:
                x, shape = [self.old.input], self.old.shapes[value]
                number = self._insert(Constant, value, x, None, layout.constants, shape)
            self.full[value] = number
        return self.full[value]

    def _read(self, value, needs_zeros=False) -> tuple[int, Layout | None]:
        """Returns a value's number and layout; all channels where others are not 0 but must be."""
        layout = self.layouts[value]
        if layout is not None and needs_zeros and layout.constants.any():
            return self._whole(value), None
        return self.value.get(value, -1), layout

    def _filters(self, step):
        x, layout = self._read(step.inputs[0], step.pads)
        if layout is not None and step.groups > 1:
            x, layout = self._whole(step.inputs[0]), None
        kernel, bias = step.kernel, step.bias
        if step.kind == "depthwise":
            if layout is None:
                return self._add(step, [x], None)
            constants = _constant(step, layout.constants * kernel.sum((0, 1, 3)) + bias)
            out = _layout(layout.kept, constants)
            if not len(layout.kept):
                return self._set(step.output, -1, out)
            kept = layout.kept
            return self._add(step, [x], out, kernel=kernel[:, :, kept], bias=bias[kept])
        if layout is not None:
            inputs = layout.constants[:, None] * kernel
            bias = bias + inputs.reshape(-1, kernel.shape[-1]).sum(0)
            kernel = kernel[..., layout.kept, :]
        kept = np.arange(kernel.shape[-1])
        if step in self.dropped:
            kept = np.flatnonzero(~self.dropped[step])
        if step in self.zeros:
            kernel, bias = kernel * ~self.zeros[step], bias * ~self.zeros[step]
        if not len(kept) or (layout is not None and not len(layout.kept)):
            # What a gate switches off is 0, whatever comes in between.
            constants = _constant(step, bias)
            if step in self.dropped:
                constants[self.dropped[step]] = 0
            return self._set(step.output, -1, _layout(np.arange(0), constants))
        out = _layout(kept, np.zeros(kernel.shape[-1]))
        return self._add(step, [x], out, kernel=kernel[..., kept], bias=bias[kept])

    def _affine(self, step):
        x, layout = self._read(step.inputs[0])
        if layout is None:
            return self._add(step, [x], None)
        out = _layout(layout.kept, layout.constants * step.scale + step.offset)
        if not len(layout.kept):
            return self._set(step.output, -1, out)
        scale, offset = step.scale[layout.kept], step.offset[layout.kept]
        return self._add(step, [x], out, scale=scale, offset=offset)

    def _channelwise(self, step):
        x, layout = self._read(step.inputs[0], step.pads)
        if layout is not None:
            constants = layout.constants
            if step.elementwise:
                constants = _of(step.function, constants)
            if step.output == self.gates:
                constants = self.on.astype(float)
            layout = _layout(layout.kept, constants)
            if not len(layout.kept):
                return self._set(step.output, -1, layout)
        return self._add(step, [x], layout)

    def _gate(self, step):
        value, gates = step.inputs
        on, off = self.on[step.places], self.off[step.places]
        x, layout = self._read(value)
        if layout is not None and (~(on | off) & (layout.constants != 0)).any():
            x, layout = self._whole(value), None
        places = np.where(on, ON, np.where(off, OFF, self.places[step.places]))
        chain = self._chain(value)
        if chain and chain[-1] in self.zeros and keeps_zeros(chain):
            places = np.where(self.zeros[chain[-1]], ON, places)
        if layout is not None:
            places = places[layout.kept]
            layout = _layout(layout.kept, layout.constants * on)
        if (places == ON).all():
            return self._set(step.output, x, layout)
        if (places < 0).all():  # Only where filters that are off could not be left out.
            scale = (places == ON).astype(float)
            number = self._insert(Affine, step.output, [x], layout, scale, np.zeros(len(scale)))
            return self._set(step.output, number, layout)
        return self._add(step, [x, self.value[gates]], layout, places=places)

    def _merge(self, step):
        {"sum": self._sum, "concat": self._concat, "product": self._product}[step.kind](step)

    def _sum(self, step):
        channels = self.old.shapes[step.output][-1]
        layouts = [self.layouts[value] for value in step.inputs]
        if all(layout is None for layout in layouts):
            return self._add(step, [self.value[value] for value in step.inputs], None)
        whole = np.arange(channels)
        union = np.unique(
            np.concatenate([whole if each is None else each.kept for each in layouts])
        )
        constants = sum(each.constants for each in layouts if each is not None)
        out = _layout(union, constants)
        if not len(union):
            return self._set(step.output, -1, out)
        numbers, offset = [], np.zeros(len(union))
        for value, layout in zip(step.inputs, layouts, strict=True):
            if layout is not None and not len(layout.kept):
                offset += layout.constants[union]
            else:
                numbers.append(self._widened(value, union))
        number = numbers[0]
        if len(numbers) > 1:
            self._add(step, numbers, out)
            number = step.output
        if offset.any():
            ones = np.ones(len(union))
            number = self._insert(Affine, step.output, [number], out, ones, offset)
        return self._set(step.output, number, out)

    def _widened(self, value, union) -> int:
        """Returns the number of a value with these channels."""
        layout = self.layouts[value]
        if layout is None or np.array_equal(layout.kept, union):
            return self.value[value]
        places = np.searchsorted(union, layout.kept)
        settings = (Spread, value, [self.value[value]], _layout(union, layout.constants), places)
        return self._insert(*settings, layout.constants[union])

    def _concat(self, step):
        kept, constants, numbers, start = [], [], [], 0
        for value in step.inputs:
            layout, channels = self.layouts[value], self.old.shapes[value][-1]
            if layout is None:
                layout = Layout(np.arange(channels), np.zeros(channels))
            kept.append(start + layout.kept)
            constants.append(layout.constants)
            start += channels
            if len(layout.kept):
                numbers.append(self.value[value])
        out = _layout(np.concatenate(kept), np.concatenate(constants))
        if len(numbers) > 1:
            self._add(step, numbers, out)
        else:
            self._set(step.output, numbers[0] if numbers else -1, out)

    def _product(self, step):
        x, layout = self._read(step.inputs[0], needs_zeros=True)
        other = self._whole(step.inputs[1])
        if layout is None:
            return self._add(step, [x, other], None)
        if not len(layout.kept):
            return self._set(step.output, -1, layout)
        value = step.inputs[1]
        chain = self._chain(value)
        if self.layouts[value] is None and chain:
            for each in filter(None, map(self.new.get, chain)):
                _narrow(each, layout.kept)
        else:
            other = self._insert(Select, value, [other], layout, layout.kept)
        return self._add(step, [x, other], layout)

    def _flatten(self, step):
        x, layout = self._read(step.inputs[0])
        if layout is not None:
            channels = len(layout.constants)
            kept = (channels * np.arange(step.places)[:, None] + layout.kept).ravel()
            layout = _layout(kept, np.tile(layout.constants, step.places))
            if not len(kept):
                return self._set(step.output, -1, layout)
        return self._add(step, [x], layout)

    def _call(self, step):
        self._add(step, [self._whole(value) for value in step.inputs], None)
        for value in step.outputs:
            self.value[value], self.layouts[value] = value, None


def _alike(step) -> list[int]:
    """Returns the inputs of a step that have the same channels as its output."""
    is_filters = isinstance(step, Filters) and step.kind == "depthwise"
    if isinstance(step, Merge) and step.kind == "sum":
        return step.inputs
    if isinstance(step, Merge) and step.kind == "product":
        return step.inputs[:1]
    return step.inputs[:1] if is_filters or isinstance(step, Affine | Channelwise | Gate) else []


def _layout(kept, constants) -> Layout:
    constants = np.array(constants, float)
    constants[kept] = 0
    return Layout(kept, constants)


def _of(function, constants):
    """Returns what a function of channels makes of constants."""
    return np.asarray(function(constants.astype(np.float32)[None]), float)[0]


def _constant(filters, bias):
    """Returns what filters make of constant inputs, that are in the bias already."""
    return _of(filters.activation, bias) if filters.activation else np.array(bias)


def _narrow(step, kept):
    """Leaves out all channels of a step but these."""
    if isinstance(step, Filters) and step.kind == "depthwise":
        step.kernel, step.bias = step.kernel[:, :, kept], step.bias[kept]
    elif isinstance(step, Filters):
        step.kernel, step.bias = step.kernel[..., kept], step.bias[kept]
    elif isinstance(step, Affine):
        step.scale, step.offset = step.scale[kept], step.offset[kept]
    elif isinstance(step, Gate):
        step.places = step.places[kept]
