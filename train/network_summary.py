"""A network's table, unit by unit: shapes, parameters, multiply-accumulates, gates."""

import math
import re
from collections.abc import Sequence

import keras
import numpy as np

from gaternet_tf.macs import layer_macs
from gaternet_tf.models import gate_map

COLUMNS = ("part", "output", "parameters", "MACs", "gates")
KINDS = ("always on", "always off", "input-dependent")


def summary_rows(
    model: keras.Model, gates_on: np.ndarray | None = None, images: int = 0
) -> list[list[str]]:
    """Returns a row for each residual unit, the stem, the classifier and the gater; headings first.

    Args:
      model: built by `build_gaternet`.
      gates_on: int [gates], number of images for which each gate is on; None for no such columns.
      images: number of images.

    Returns:
      Rows of text, the last one the total. Parameters are the trainable ones, MACs those of
      `gaternet_tf.macs`.
    """
    parts: dict[str, list] = {}
    for layer in model.layers:
        parts.setdefault(_part(layer.name), []).append(layer)
    macs = layer_macs(model)
    kinds = _kinds(model, gates_on, images)
    rows = [[*COLUMNS, *(KINDS if gates_on is not None else ())]]
    totals = np.zeros(len(rows[0]) - 2, np.int64)
    for part, layers in parts.items():
        if part == "input":
            continue
        numbers = [
            sum(math.prod(w.shape) for layer in layers for w in layer.trainable_weights),
            sum(macs.get(layer.name, 0) for layer in layers),
            *kinds.get(part, [0] * (len(totals) - 2)),
        ]
        totals += numbers
        rows.append([part, _shape(layers[-1]), *(f"{number:,}" for number in numbers)])
    rows.append(["total", "", *(f"{number:,}" for number in totals)])
    return rows


def _part(name):
    if name.startswith("gater_") or name in ("gates", "gate_split"):
        return "gater"
    if unit := re.match(r"stage\d+_unit\d+", name):
        return unit[0].replace("_", " ")
    return {"images": "input", "pool": "classifier", "logits": "classifier"}.get(name, name)


def _shape(layer):
    if isinstance(layer.output, list):
        # The gates, split among the convolutions.
        return str(sum(output.shape[-1] for output in layer.output))
    return " x ".join(map(str, layer.output.shape[1:]))


def _kinds(model, gates_on, images):
    """Returns [gates, always on, always off, input-dependent] by part."""
    kinds: dict[str, np.ndarray] = {}
    start = 0
    for segment in gate_map(model).segments:
        counts = [segment.channels]
        if gates_on is not None:
            on = gates_on[start : start + segment.channels]
            always = [int(np.sum(on == images)), int(np.sum(on == 0))]
            counts += [*always, segment.channels - sum(always)]
        start += segment.channels
        part = _part(segment.name)
        kinds[part] = kinds.get(part, np.zeros(len(counts), np.int64)) + counts
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
