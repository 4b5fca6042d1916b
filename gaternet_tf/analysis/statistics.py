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


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts over all images of a record.

    Attributes:
      on: int64 [gates], on how many images each gate is on.
      on_by_class: int32 [classes, gates], the same for the images of each class.
      images_by_class: int64 [classes].
      on_per_image: int64 [images], gates on.
      macs_per_image: float64 [images], multiply-accumulates without off filters.
      skipped: {(stage, unit): number of images for which the unit's branch is off}.
    """

    on: np.ndarray
    on_by_class: np.ndarray
    images_by_class: np.ndarray
    on_per_image: np.ndarray
    macs_per_image: np.ndarray
    skipped: dict[tuple[int, int], int]


def count(record: GateRecord) -> Counts:
    """Counts in a single pass, a thousand images at a time."""
    classes = len(record.classes)
    on_by_class = np.zeros((classes, record.gates), np.int32)
    on_per_image = np.zeros(record.images, np.int64)
    macs = np.full(record.images, float(record.macs))
    branches = _branches(record)
    skipped = dict.fromkeys(branches, 0)
    for part, gates in record.chunks():
        on_per_image[part] = gates.sum(axis=1, dtype=np.int64)
        macs[part] -= (1.0 - gates) @ record.gate_macs
        for unit, place in branches.items():
            skipped[unit] += int(np.sum(~gates[:, place].any(axis=1)))
        order = np.argsort(record.labels[part], kind="stable")
        present, starts = np.unique(record.labels[part][order], return_index=True)
        on_by_class[present] += np.add.reduceat(gates[order], starts, axis=0, dtype=np.int32)
    return Counts(
        on=on_by_class.sum(axis=0, dtype=np.int64),
        on_by_class=on_by_class,
        images_by_class=np.bincount(record.labels, minlength=classes),
        on_per_image=on_per_image,
        macs_per_image=macs,
        skipped=skipped,
    )


def statistics_of(record: GateRecord, counts: Counts) -> dict:
    """Computes all numbers but those of `separation` and of changed pictures, JSON-ready.

    Numbers that do not exist are `{"absent": reason}`.
    """
    right = record.predictions == record.labels
    dependent = (counts.on > 0) & (counts.on < record.images)
    return {
        "images": record.images,
        "classes": list(record.classes),
        "accuracy": float(right.mean()),
        "gates": kinds(counts.on, record.images),
        "gate_rate": float(counts.on.sum() / record.images / record.gates),
        "units": units(record, counts),
        "convolutions": convolutions(record, counts),
        "images_per_input_dependent_gate": histogram(counts.on[dependent], 0, record.images),
        "gates_on": {
            "all": spread(counts.on_per_image),
            "histogram": histogram(
                counts.on_per_image, counts.on_per_image.min(), counts.on_per_image.max()
            ),
            "right": spread(counts.on_per_image[right]),
            "wrong": spread(counts.on_per_image[~right]),
            "by_class": [
                spread(counts.on_per_image[record.labels == number])
                for number in range(len(record.classes))
            ],
        },
        "distinct_gate_vectors": len({row.tobytes() for row in record.packed}),
        "macs": _macs(record, counts),
        "gate_rate_by_class": _rates_by_class(record, counts),
        "characteristic": [
            characteristic(record, counts, number) for number in range(len(record.classes))
        ],
    }


def kinds(on: np.ndarray, images: int) -> dict[str, int]:
    """Counts the gates of each kind; `on` [gates] is on how many of `images` each gate is on."""
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


def convolutions(record: GateRecord, counts: Counts) -> list[dict]:
    """Returns `kinds` and the gate rate of each gated convolution, in network order."""
    return [
        {
            "name": segment.name,
            "stage": segment.stage,
            "unit": segment.unit,
            "convolution": segment.convolution,
            **kinds(counts.on[place], record.images),
            "gate_rate": float(counts.on[place].mean() / record.images),
        }
        for segment, place in _places(record)
    ]


def units(record: GateRecord, counts: Counts) -> list[dict]:
    """Returns the same of each residual unit.

    `images_off` is the number of images for which the unit's branch is off, that is all gates of
    its last convolution; `never_runs` whether that is all of them.
    """
    members: dict[tuple[int, int], list[slice]] = {}
    for segment, place in _places(record):
        members.setdefault((segment.stage, segment.unit), []).append(place)
    rows = []
    for (stage, unit), places in members.items():
        on = np.concatenate([counts.on[place] for place in places])
        off = counts.skipped[stage, unit]
        rows.append(
            {
                "name": f"stage{stage}_unit{unit}",
                "stage": stage,
                "unit": unit,
                **kinds(on, record.images),
                "gate_rate": float(on.mean() / record.images),
                "images_off": off,
                "never_runs": off == record.images,
            }
        )
    return rows


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
    """Computes the mutual information of each gate and membership in a class, in bits.

    Args:
      on_in_class: on how many of the class' images each gate is on, [gates].
      class_images: how many images the class has.
      on: on how many of all images each gate is on, [gates].
      images: how many images there are.

    Returns:
      float64 [gates].
    """
    joint = np.stack(
        [
            np.stack([on_in_class, class_images - on_in_class]),
            np.stack([on - on_in_class, images - class_images - (on - on_in_class)]),
        ]
    ).astype(np.float64)
    joint /= images
    expected = joint.sum(axis=0, keepdims=True) * joint.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(joint > 0, joint * np.log2(joint / expected), 0.0)
    return np.maximum(bits.sum(axis=(0, 1)), 0.0)


def characteristic(record: GateRecord, counts: Counts, number: int) -> list[dict]:
    """Returns the gates with most mutual information about a class; none for an absent class."""
    images = int(counts.images_by_class[number])
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
    members: dict[tuple[int, int], list[int]] = {}
    for segment, place in _places(record):
        gates = range(place.start, place.stop)
        members.setdefault((segment.stage, segment.unit), []).extend(gates)
    on = np.stack([counts.on_by_class[:, gates].mean(axis=1) for gates in members.values()], axis=1)
    return [
        (row / images).tolist() if images else None
        for row, images in zip(on, counts.images_by_class, strict=True)
    ]


def _macs(record, counts):
    saved = counts.macs_per_image
    low, high = saved.min(), saved.max()
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    return {
        "total": record.macs,
        "without_off_filters": {
            "min": float(low),
            "max": float(high),
            "mean": float(saved.mean()),
            "std": float(saved.std()),
        },
        "histogram": {
            "edges": edges.tolist(),
            "counts": np.histogram(saved, edges)[0].tolist(),
        },
    }


def _places(record) -> list[tuple[GateSegment, slice]]:
    """Returns each gated convolution and the place of its gates."""
    places, start = [], 0
    for segment in record.gate_map.segments:
        places.append((segment, slice(start, start + segment.channels)))
        start += segment.channels
    return places


def _branches(record) -> dict[tuple[int, int], slice]:
    """Returns the place of the gates of each unit's last gated convolution, its branch's output."""
    return {(segment.stage, segment.unit): place for segment, place in _places(record)}
