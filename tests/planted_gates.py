"""Gate matrices where every number is known."""

import numpy as np

from gaternet_tf.analysis.record import GateRecord, pack
from gaternet_tf.models.gate_map import GateMap, GateSegment

TWO_UNITS = GateMap([GateSegment(1, 1, 2, 4), GateSegment(2, 1, 2, 3)])
PLANTED = np.array(
    [
        [1, 0, 1, 0, 0, 0, 0],
        [1, 0, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 1, 0],
        [1, 0, 0, 1, 0, 1, 0],
    ]
)


def record_of(
    gates, labels=None, predictions=None, gate_map=TWO_UNITS, classes=("cat", "dog"), **more
):
    """A record of these gates; of one class and rightly predicted unless said otherwise."""
    gates = np.asarray(gates, bool)
    labels = np.zeros(len(gates), np.int32) if labels is None else np.asarray(labels, np.int32)
    return GateRecord(
        packed=pack(gates),
        labels=labels,
        predictions=labels if predictions is None else np.asarray(predictions, np.int32),
        confidences=np.ones(len(gates), np.float32),
        gate_map=gate_map,
        classes=list(classes),
        **more,
    )
