"""The numbers of the paper's section on gates, from a gate record alone.

A gate is always on or always off if it is so for every image of the record, else it is
input-dependent. Of those, it is nearly constant if it is on for fewer than 1 % or for more than
99 % of the images (fewer than 100 or more than 9900 of the paper's 10,000).
"""

import dataclasses

import numpy as np

from gaternet_tf.analysis.record import GateRecord
from gaternet_tf.models.gate_map import GateSegment

BINS = 50
CHARACTERISTIC = 5
"""Gates listed for each class."""
CHUNK = 1000
"""Images whose gates are unpacked at a time."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts over all images of a record.

    Attributes:
      on: int64 [gates], number of images that each gate is on for.
      on_by_class: int32 [classes, gates], the same for the images of each class.
      on_per_image: int64 [images], gates on.
      macs_per_image: int64 [images], multiply-accumulates without what off gates save.
      last_layer_off: number of images for which all gates of a unit's last gated layer are off, by
        unit.
    """

    on: np.ndarray
    on_by_class: np.ndarray
    on_per_image: np.ndarray
    macs_per_image: np.ndarray
    last_layer_off: dict[str, int]

    @property
    def dependent(self) -> np.ndarray:
        """Indices of the input-dependent gates."""
        return np.flatnonzero((self.on > 0) & (self.on < len(self.on_per_image)))


def count(record: GateRecord) -> Counts:
    """Counts in a single pass, a thousand images at a time."""
    on_by_class = np.zeros((len(record.classes), len(record.gate_map)), np.int32)
    on_per_image = np.zeros(record.images, np.int64)
    macs = np.zeros(record.images, np.int64)
    units = _units(record)
    last_layer_off = dict.fromkeys(units, 0)
    for start in range(0, record.images, CHUNK):
        part = slice(start, start + CHUNK)
        gates, labels = record.rows(part), record.labels[part]
        on_per_image[part] = gates.sum(axis=1, dtype=np.int64)
        macs[part] = record.macs(gates)
        for unit, (_, last) in units.items():
            last_layer_off[unit] += int(np.sum(~gates[:, last].any(axis=1)))
        for number in np.unique(labels):
            on_by_class[number] += gates[labels == number].sum(axis=0, dtype=np.int32)
    on = on_by_class.sum(axis=0, dtype=np.int64)
    return Counts(on, on_by_class, on_per_image, macs, last_layer_off)


def statistics_of(record: GateRecord, counts: Counts) -> dict:
    """Computes all numbers but those of `separation` and of changed pictures, JSON-ready.

    Numbers that do not exist are `{"absent": reason}`.
    """
    right = record.predictions == record.labels
    on = counts.on_per_image
    classes = range(len(record.classes))
    return {
        "images": record.images,
        "classes": list(record.classes),
        "accuracy": float(right.mean()),
        "gates": kinds(counts.on, record.images),
        "gate_rate": float(counts.on.sum() / record.images / len(record.gate_map)),
        "units": _unit_rows(record, counts),
        "layers": _layer_rows(record, counts),
        "images_per_input_dependent_gate": histogram(counts.on[counts.dependent], 0, record.images),
        "gates_on": {
            "all": spread(on),
            "histogram": histogram(on, on.min(), on.max()),
            "right": spread(on[right]),
            "wrong": spread(on[~right]),
            "by_class": [spread(on[record.labels == number]) for number in classes],
        },
        "distinct_gate_vectors": len({row.tobytes() for row in record.packed}),
        "macs": _macs(record, counts),
        "gate_rate_by_class": _rates_by_class(record, counts),
        "characteristic": [_characteristic(record, counts, number) for number in classes],
    }


def kinds(on: np.ndarray, images: int) -> dict[str, int]:
    """Counts the gates of each kind, from the number of images that each is on for, [gates]."""
    dependent = (on > 0) & (on < images)
    rarely = dependent & (100 * on < images)
    mostly = dependent & (100 * on > 99 * images)
    return {
        "total": len(on),
        "always_on": int(np.sum(on == images)),
        "always_off": int(np.sum(on == 0)),
        "input_dependent": int(dependent.sum()),
        "nearly_always_off": int(rarely.sum()),
        "nearly_always_on": int(mostly.sum()),
        "between": int(np.sum(dependent & ~rarely & ~mostly)),
    }


def _layer_rows(record, counts):
    """Returns `kinds` and the gate rate of each gated layer, in network order."""
    return [
        {
            "name": segment.layer,
            "unit": segment.unit,
            **kinds(counts.on[place], record.images),
            "gate_rate": float(counts.on[place].mean() / record.images),
        }
        for segment, place in _layers(record)
    ]


def _unit_rows(record, counts):
    """Returns the same of each unit, with its `last_layer_off` of `Counts`."""
    return [
        {
            "name": unit,
            **kinds(counts.on[place], record.images),
            "gate_rate": float(counts.on[place].mean() / record.images),
            "last_layer_off": counts.last_layer_off[unit],
        }
        for unit, (place, _) in _units(record).items()
    ]


def histogram(values: np.ndarray, low: int, high: int) -> dict:
    """Counts whole numbers from `low` to `high` in at most 50 bins of the same whole width.

    Returns:
      `edges`, the first number of each bin and one past the last bin's last, and `counts`.
    """
    width = max(1, -(-(int(high) - int(low) + 1) // BINS))
    edges = np.arange(int(low), int(high) + width + 1, width)
    numbers, _ = np.histogram(values, edges)
    # numpy counts the last edge into the last bin; no value is that large.
    return {"edges": edges.tolist(), "counts": numbers.tolist()}


def spread(values: np.ndarray) -> dict:
    """Returns `images`, `min`, `max`, `mean` and `std` (of n) of numbers; absent for none."""
    if not len(values):
        return {"absent": "no such image"}
    return {
        "images": len(values),
        "min": int(values.min()),
        "max": int(values.max()),
        "mean": float(values.mean()),
        "std": float(values.std()),
    }


def mutual_information(
    on_in_class: np.ndarray, class_images: int, on: np.ndarray, images: int
) -> np.ndarray:
    """Computes the mutual information of each gate and membership in a class, in bits, [gates].

    `on_in_class` and `on` are the numbers of the class' and of all images that each gate is on for,
    [gates].
    """
    others_on = on - on_in_class
    joint = np.array(
        [
            [on_in_class, class_images - on_in_class],
            [others_on, images - class_images - others_on],
        ]
    )
    joint = joint / images
    expected = joint.sum(axis=0, keepdims=True) * joint.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(joint > 0, joint * np.log2(joint / expected), 0.0)
    return np.maximum(bits.sum(axis=(0, 1)), 0.0)


def _characteristic(record, counts, number):
    """Returns the gates with most mutual information about a class; none for an absent class."""
    images = int(np.sum(record.labels == number))
    others = record.images - images
    if not images or not others:
        return []
    inside = counts.on_by_class[number].astype(np.int64)
    bits = mutual_information(inside, images, counts.on, record.images)
    best = np.argsort(-bits, kind="stable")[:CHARACTERISTIC]
    return [
        {
            "gate": int(gate),
            **dataclasses.asdict(record.gate_map[int(gate)]),
            "mutual_information": float(bits[gate]),
            "rate_in_class": float(inside[gate] / images),
            "rate_elsewhere": float((counts.on[gate] - inside[gate]) / others),
        }
        for gate in best
        if bits[gate] > 0
    ]


def _rates_by_class(record, counts):
    """Returns the gate rate of each unit, [classes][units]; None for a class without images."""
    places = [place for place, _ in _units(record).values()]
    on = np.stack([counts.on_by_class[:, place].mean(axis=1) for place in places], axis=1)
    images_by_class = np.bincount(record.labels, minlength=len(on))
    return [
        (row / images).tolist() if images else None
        for row, images in zip(on, images_by_class, strict=True)
    ]


def _macs(record, counts):
    left = counts.macs_per_image
    low, high = left.min(), left.max()
    # Costs are whole multiples of what one place of one filter takes, so they lie on a grid.
    step = int(np.gcd.reduce(left - low)) or max(1, record.macs.total // 100)
    steps = histogram((left - low) / step, 0, (high - low) / step)
    steps["edges"] = [int(low) + step * edge for edge in steps["edges"]]
    return {
        "total": record.macs.total,
        "without_off_filters": {
            "min": float(low),
            "max": float(high),
            "mean": float(left.mean()),
            "std": float(left.std()),
        },
        "histogram": {**steps, "step": step},
    }


def _layers(record) -> list[tuple[GateSegment, slice]]:
    """Returns each gated layer and the place of its gates."""
    segments = record.gate_map.segments
    stops = np.cumsum([segment.channels for segment in segments]).tolist()
    return [
        (segment, slice(stop - segment.channels, stop))
        for segment, stop in zip(segments, stops, strict=True)
    ]


def _units(record) -> dict[str, tuple[np.ndarray, slice]]:
    """Returns the places of each unit's gates and of those of its last gated layer."""
    places: dict[str, list[slice]] = {}
    for segment, place in _layers(record):
        places.setdefault(segment.unit, []).append(place)
    # Layers of one unit need not be neighbours.
    return {unit: (np.r_[tuple(slices)], slices[-1]) for unit, slices in places.items()}
