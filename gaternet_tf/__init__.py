"""GaterNet for TensorFlow: CNN filters switched on and off for each image (CVPR 2019).

Importing the package registers its layers with Keras, so that a saved model loads.
"""

import sys

from gaternet_tf.version import __version__

# That is what Python says while it looks for the module of `python -m gaternet_tf.analysis`: a
# command answers --help, and chooses what TensorFlow logs, before TensorFlow is imported.
if sys.argv[:1] != ["-m"]:
    from gaternet_tf import layers, losses, models
    from gaternet_tf.errors import UserError
    from gaternet_tf.models import GateMap, build_gaternet, gate_map

__all__ = [
    "GateMap",
    "UserError",
    "__version__",
    "build_gaternet",
    "gate_map",
    "layers",
    "losses",
    "models",
]
