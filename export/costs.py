"""Measured times of layers, by which an export decides where gathering channels pays."""

import os
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from export.conditional import BLOCK, GATHER, GatePlace, compute_filters
from export.program import ON, Filters, Program
from gaternet_tf.documents import read_json, write_json
from gaternet_tf.errors import UserError

WARM_UP, ROUNDS = 2, 7
GRID = 8
"""Shares of gates on are rounded up to multiples of 1 / GRID, so that layers share times."""


class Costs:
    """Seconds of layers for one picture, measured once by shape.

    Args:
      path: JSON file with those of this or another machine; what is missing in it is measured here
        and added. None measures all.
    """

    def __init__(self, path: str | None = None):
        self.path = path
        self.seconds: dict[str, float] = {}
        if path and not os.path.isdir(os.path.dirname(path) or "."):
            raise UserError(f"--cost must be a file in a directory that exists, got '{path}'")
        if path and os.path.exists(path):
            self.seconds = read_json(pathlib.Path(path))
        self.measured = 0

    def of(self, step: Filters, place: tuple, inputs: int | None, how: str, outputs: int) -> float:
        """Returns the seconds of a layer of filters.

        Args:
          step: the layer.
          place: (height, width) of its input, () for a dense layer's.
          inputs: number of its inputs that are gathered; None for all.
          how: what is done with the gates of its outputs, or "" where there are none.
          outputs: number of these that are on.
        """
        key = (
            f"{step.kind} {'x'.join(map(str, step.kernel.shape))} stride {step.strides[0]} "
            f"dilation {step.dilations[0]} {step.padding} at {'x'.join(map(str, place))}, "
            f"inputs {inputs or 'all'}, outputs {how} {outputs}"
        )
        if key not in self.seconds:
            self.measured += 1
            self.seconds[key] = _seconds(step, place, inputs, how, outputs)
        return self.seconds[key]

    def save(self) -> None:
        """Writes the file, if there is one."""
        if self.path and self.measured:
            write_json(pathlib.Path(self.path), self.seconds)


def _seconds(step, place, inputs, how, outputs) -> float:
    channels, filters = step.kernel.shape[-2:]
    if step.kind == "depthwise":
        channels, filters = step.kernel.shape[2], step.kernel.shape[2]
    gates = [_gates(channels, inputs or 0), _gates(filters, outputs if how else filters)]
    on = outputs if step.kind == "depthwise" and how == GATHER else inputs
    count = channels if on is None else max(-(-on // BLOCK) * BLOCK, BLOCK)
    x = tf.Variable(tf.random.stateless_normal([1, *place, count], [0, 0]))

    @tf.function(autograph=False)
    def layer():
        y = compute_filters(step, x, gates[0] if inputs else None, how, gates[1] if how else None)
        return tf.reduce_max(y[..., :1])

    return measure(layer)


def _gates(count, on):
    """Returns `count` gates, of which the first `on` are on."""
    gates = np.zeros(count, np.float32)
    gates[:on] = 1
    return tf.Variable(gates)


def measure(function: Callable) -> float:
    """Returns the shortest time of a call in seconds, since noise only adds to it."""
    seconds = []
    for number in range(WARM_UP + ROUNDS):
        started = time.perf_counter()
        function().numpy()
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - started)
    return min(seconds)


def choose(
    program: Program, places: Sequence[GatePlace], rates: np.ndarray, costs: Costs
) -> dict[GatePlace, str]:
    """Returns what to do with each gate, so that the layers around all of them cost least.

    Args:
      program: with gates.
      places: those of `gate_places`.
      rates: float [gates], for which share of pictures each gate of the program is on.
      costs: of layers.
    """
    writes = {place.writer: place for place in places if place.writer}
    reads = {step: place for place in places if GATHER in place.options for step in place.readers}
    touched = {place: _touched(place) for place in places}
    steps = {step for each in touched.values() for step in each}

    def on(place) -> int:
        numbers = place.gate.places
        share = np.where(numbers == ON, 1.0, rates[np.maximum(numbers, 0)]).mean()
        return max(1, int(np.ceil(share * GRID) / GRID * len(numbers)))

    def cost(step, chosen) -> float:
        source, target = reads.get(step), writes.get(step)
        if step.kind == "depthwise":
            target = next(place for place in places if step in place.between)
        inputs = on(source) if source and chosen[source] == GATHER else None
        how = chosen[target] if target else ""
        if step.kind == "depthwise" and how != GATHER:
            how = ""
        outputs = on(target) if target and how == GATHER else 0
        return costs.of(step, program.shapes[step.inputs[0]][:-1], inputs, how, outputs)

    best: dict[GatePlace, str] = {}
    least = np.inf
    for start in (0, -1):
        chosen = {place: place.options[start] for place in places}
        for _ in range(3):  # Passes; each lowers the sum of all costs, or is the last.
            before = dict(chosen)
            for place in places:
                totals = {}
                for option in place.options:
                    trial = {**chosen, place: option}
                    totals[option] = sum(cost(step, trial) for step in touched[place])
                chosen[place] = min(totals, key=lambda option: totals[option])
            if chosen == before:
                break
        total = sum(cost(step, chosen) for step in steps)
        if total < least:
            best, least = chosen, total
    return best


def _touched(place) -> list[Filters]:
    """Returns the layers whose costs depend on what is done with a gate."""
    depthwise = [step for step in place.between if isinstance(step, Filters)]
    readers = place.readers if GATHER in place.options else []
    return [*([place.writer] if place.writer else []), *depthwise, *readers]
