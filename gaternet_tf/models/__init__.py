"""The networks, one a file."""

from gaternet_tf.models.gate_map import Gate, GateMap, GateSegment, gate_map
from gaternet_tf.models.gaternet import NO_GATER, build_gaternet
from gaternet_tf.models.resnet_cifar import GATED_CONVS, resnet_spec

__all__ = [
    "GATED_CONVS",
    "NO_GATER",
    "Gate",
    "GateMap",
    "GateSegment",
    "build_gaternet",
    "gate_map",
    "resnet_spec",
]
