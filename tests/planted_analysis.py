"""Gate matrices whose numbers are known, and a whole analysis of one."""

import numpy as np

from gaternet_tf.analysis.record import GateRecord, pack
from gaternet_tf.analysis.separation import separate
from gaternet_tf.analysis.statistics import count, statistics_of
from gaternet_tf.macs import Macs, Product
from gaternet_tf.models.gate_map import GateMap, GateSegment

TWO_UNITS = GateMap([GateSegment("a_conv", "a", 4), GateSegment("b_conv", "b", 3)])
UNITS = [f"stage{stage}_unit{unit}" for stage in (1, 2) for unit in (1, 2, 3)]
SIX_UNITS = GateMap([GateSegment(f"{unit}_conv2", unit, 4) for unit in UNITS])
CLASSES = ("cat", "dog & $\\frac$ <b>", "</script><script>alert(1)</script>")
IMAGES = 80


def record_of(gates, labels=None, predictions=None, gate_map=TWO_UNITS, classes=("cat", "dog")):
    """A record of these gates, each of 10 MACs; of one class and rightly predicted by default."""
    gates = np.asarray(gates, bool)
    labels = np.zeros(len(gates), np.int32) if labels is None else np.asarray(labels, np.int32)
    return GateRecord(
        packed=pack(gates),
        labels=labels,
        predictions=labels if predictions is None else np.asarray(predictions, np.int32),
        confidences=np.ones(len(gates), np.float32),
        gate_map=gate_map,
        classes=list(classes),
        macs=Macs(
            [
                Product("plain", 1000 - 10 * len(gate_map), 1, 1),
                Product("gated", 10, 1, (0, len(gate_map))),
            ]
        ),
    )


def planted_gates():
    """Gates of 80 images: the first unit never runs, the last unit knows the first class."""
    gates = np.random.default_rng(1).random((IMAGES, 24)) < 0.5
    gates[:, :4] = False
    gates[:, 20:] = (np.arange(IMAGES) % 3 == 0)[:, None]
    return gates


def planted_analysis(gates=None, classes=CLASSES, **source):
    """Document and arrays as `analyse` makes them, without a network.

    `source` changes parts of the document's source.
    """
    rng = np.random.default_rng(0)
    planted = planted_gates() if gates is None else gates
    labels = np.arange(len(planted)) % 3
    predictions = np.where(rng.random(len(planted)) < 0.8, labels, 0)
    record = record_of(planted, labels, predictions, SIX_UNITS, classes)
    counts = count(record)
    statistics = statistics_of(record, counts)
    perplexity = 10.0 if gates is None else 30.0
    sample, points, separation = separate(record, counts.dependent, perplexity)
    for rows in statistics["characteristic"]:
        for row in rows:
            row["images_on"], row["images_off"] = [0, 5], [7]
    changed = {"change": "mirrored", "images": IMAGES, "gates": 0.9, "input_dependent": 0.8}
    document = {
        "source": {
            "kind": "run",
            "path": "runs/planted",
            "dataset": {"name": "planted", "version": "1.0.0"},
            "git_commit": f"{'0123456789abcdef' * 3:.40}-dirty",
            "backbone": "resnet20",
            "gater": "resnet20",
            "sparsity": 0.1,
            **source,
        },
        "dataset": {"name": "planted", "version": "1.0.0", "split": "test"},
        "training": [
            {"epoch": n, "task_loss": 2 / n, "accuracy": 1 - 0.5 / n, "gate_rate": 0.5}
            | {"val_task_loss": 2.1 / n, "val_accuracy": 1 - 0.6 / n, "val_gate_rate": 0.4}
            for n in range(1, 4)
        ],
        **statistics,
        "separation": separation,
        "changed_pictures": {"flip": {**changed, "images_unchanged": 0.1, "predictions": 0.95}},
        "strength": "the pre-activation of the gate",
    }
    arrays = {
        "labels": record.labels,
        "predictions": record.predictions,
        "confidences": record.confidences,
        "sample": sample,
        "points": points,
        "shown": np.arange(len(planted)),
        "thumbnails": rng.integers(0, 256, (len(planted), 8, 8, 3)).astype(np.uint8),
    }
    return document, arrays
