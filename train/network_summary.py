"""A network's table, unit by unit: shapes, parameters, multiply-accumulates, gates."""

import math
from collections.abc import Sequence

import keras
import numpy as np

from gaternet_tf.layers import GateFilters
from gaternet_tf.macs import layer_macs
from gaternet_tf.models import gate_map
from gaternet_tf.models.gater import is_gater
from gaternet_tf.models.graph import FILTERS, GraphWalk, symbols_of

COLUMNS = ("part", "output", "parameters", "MACs", "gates")
BEYOND = (keras.layers.ZeroPadding2D, GateFilters)
KINDS = ("always on", "always off", "input-dependent")


def summary_rows(
    model: keras.Model, gates_on: np.ndarray | None = None, images: int = 0
) -> list[list[str]]:
    """Returns a row for each unit of the backbone, the classifier and the gater; headings first.

    Args:
      model: a GaterNet, or a plain network.
      gates_on: int [gates], number of images for which each gate is on; None for no such columns.
      images: number of images.

    Returns:
      Rows of text, the last one the total. Parameters are the trainable ones, MACs those of
      `gaternet_tf.macs`.
    """
    macs = layer_macs(model)
    kinds = _kinds(model, gates_on, images)
    rows = [[*COLUMNS, *(KINDS if gates_on is not None else ())]]
    totals = np.zeros(len(rows[0]) - 2, np.int64)
    for part, operations in _parts(model).items():
        if not operations:
            continue
        numbers = [
            sum(
                math.prod(w.shape)
                for each in operations
                for w in getattr(each, "trainable_weights", ())
            ),
            sum(macs.get(each.name, 0) for each in operations),
            *kinds.get(part, [0] * (len(totals) - 2)),
        ]
        totals += numbers
        rows.append(
            [part.replace("_", " "), _shape(operations), *(f"{number:,}" for number in numbers)]
        )
    rows.append(["total", "", *(f"{number:,}" for number in totals)])
    return rows


def _parts(model) -> dict[str, list[keras.Operation]]:
    """Returns what each unit of the backbone, the classifier and the gater consist of.

    What has no filters is in the unit that its own name starts with, unless a layer has that name
    too, or else in that of what it reads, the latest one of several. The classifier is all behind
    the last feature map.
    """
    walk = GraphWalk()
    walk.run(model, symbols_of(model))
    gater = [each for each in model.operations if is_gater(each.name)]
    backbone = [
        each
        for each in model.operations
        if not isinstance(each, keras.layers.InputLayer) and not is_gater(each.name)
    ]
    classifier: list[keras.Operation] = []
    while backbone and len(keras.tree.flatten(backbone[-1].output)[0].shape) < 4:
        classifier.insert(0, backbone.pop())
    units = {
        each.name: walk.filters[each.name].unit for each in backbone if each.name in walk.filters
    }
    prefixes = {*units.values()} - {each.name for each in backbone}
    parts: dict[str, list[keras.Operation]] = {}
    part_of: dict[str, str] = {}
    for operation in backbone:
        name = operation.name
        sources = [t._keras_history.operation.name for t in keras.tree.flatten(operation.input)]
        read = [part_of[source] for source in sources if source in part_of]
        named = [unit for unit in prefixes if name.startswith(f"{unit}_")]
        if name in units:
            part = units[name]
        elif named:
            part = max(named, key=len)
        elif isinstance(operation, FILTERS):
            part = name
        else:
            part = max(read, key=list(parts).index, default=next(iter(units.values()), name))
        part_of[name] = part
        parts.setdefault(part, []).append(operation)
    return {**parts, "classifier": classifier, "gater": gater}


def _shape(operations):
    """Returns the output's shape, of neither padding for the next unit nor a gate further on."""
    output = [each for each in operations if not isinstance(each, BEYOND)][-1].output
    if isinstance(output, list):
        # The gates, split among the layers.
        return str(sum(each.shape[-1] for each in output))
    return " x ".join(map(str, output.shape[1:]))


def _kinds(model, gates_on, images):
    """Returns [gates, always on, always off, input-dependent] by unit."""
    kinds: dict[str, np.ndarray] = {}
    start = 0
    for segment in gate_map(model).segments:
        counts = [segment.channels]
        if gates_on is not None:
            on = gates_on[start : start + segment.channels]
            always = [int(np.sum(on == images)), int(np.sum(on == 0))]
            counts += [*always, segment.channels - sum(always)]
        start += segment.channels
        kinds[segment.unit] = kinds.get(segment.unit, np.zeros(len(counts), np.int64)) + counts
    return kinds


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table for a terminal, two columns to the left and the numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
