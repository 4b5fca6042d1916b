"""An analysis of planted gates: 80 images of three classes, two stages of three units."""

import numpy as np
from planted_gates import record_of

from gaternet_tf.analysis.files import Analysis
from gaternet_tf.analysis.separation import separate
from gaternet_tf.analysis.statistics import count, statistics_of
from gaternet_tf.models.gate_map import GateMap, GateSegment

IMAGES = 80
CLASSES = ("cat", "dog & $\\frac$ <b>", "</script><script>alert(1)</script>")
GATES = GateMap([GateSegment(stage, unit, 2, 4) for stage in (1, 2) for unit in (1, 2, 3)])


def changed():
    row = {"change": "mirrored", "images": IMAGES, "gates": 0.9, "input_dependent": 0.8}
    return {"flip": {**row, "images_unchanged": 0.1, "predictions": 0.95}}


def analysis_of(gates, perplexity=10.0, macs=1000, classes=CLASSES, **source):
    """An analysis as the command makes it, without a network; `source` changes parts of that."""
    rng = np.random.default_rng(0)
    labels = np.arange(len(gates)) % 3
    predictions = np.where(rng.random(len(gates)) < 0.8, labels, 0)
    costs = {} if macs is None else {"macs": macs, "gate_macs": np.full(24, 20)}
    record = record_of(gates, labels, predictions, GATES, classes, **costs)
    counts = count(record)
    document = statistics_of(record, counts)
    separation = separate(record, counts.on, perplexity)
    for rows in document["characteristic"]:
        for row in rows:
            row["images_on"], row["images_off"] = [0, 5], [7]
    shown = np.arange(len(gates))
    return Analysis(
        record,
        {
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
            **document,
            "separation": separation.document,
            "changed_pictures": changed(),
            "strength": "the pre-activation of the gate",
            "gate_map": GATES.to_rows(),
        },
        separation.sample,
        separation.points,
        shown,
        rng.integers(0, 256, (len(gates), 8, 8, 3)).astype(np.uint8),
    )


def planted_gates():
    rng = np.random.default_rng(1)
    gates = rng.random((IMAGES, 24)) < 0.5
    # Unit 1 of stage 1 never runs, and the last unit knows the first class.
    gates[:, :4] = False
    gates[:, 20:] = (np.arange(IMAGES) % 3 == 0)[:, None]
    return gates
