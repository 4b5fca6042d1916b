"""The mechanisms of the method, one a file."""

from gaternet_tf.layers.batch_normalization import BatchNormalization, batch_normalization
from gaternet_tf.layers.gate_filters import GateFilters
from gaternet_tf.layers.gate_split import GateSplit
from gaternet_tf.layers.semhash import SemHash
from gaternet_tf.layers.squeeze_excite import SqueezeExcite

__all__ = [
    "BatchNormalization",
    "GateFilters",
    "GateSplit",
    "SemHash",
    "SqueezeExcite",
    "batch_normalization",
]
