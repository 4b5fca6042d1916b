"""The networks, one a file."""

from gaternet_tf.models.backbones import find_backbone
from gaternet_tf.models.gate_map import Gate, GateMap, GateSegment, gate_map
from gaternet_tf.models.gater import GATER_PREFIX
from gaternet_tf.models.gaternet import NO_GATER, build_gaternet
from gaternet_tf.models.gating import gate_model
from gaternet_tf.models.resnet_cifar import GATED_CONVS, resnet_spec

__all__ = [
    "GATED_CONVS",
    "GATER_PREFIX",
    "NO_GATER",
    "Gate",
    "GateMap",
    "GateSegment",
    "build_gaternet",
    "find_backbone",
    "gate_map",
    "gate_model",
    "resnet_spec",
]
