"""The mechanisms of the method, one a file."""

from gaternet_tf.layers.batch_normalization import BatchNormalization, batch_normalization
from gaternet_tf.layers.gate_split import GateSplit
from gaternet_tf.layers.gated_conv import GatedConv2D
from gaternet_tf.layers.semhash import SemHash
from gaternet_tf.layers.squeeze_excite import SqueezeExcite

__all__ = [
    "BatchNormalization",
    "GateSplit",
    "GatedConv2D",
    "SemHash",
    "SqueezeExcite",
    "batch_normalization",
]
