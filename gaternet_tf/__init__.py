"""GaterNet for TensorFlow: CNN filters switched on and off for each image (CVPR 2019).

Importing the package registers its layers with Keras, so that a saved model loads.
"""

import os
import sys

from gaternet_tf.version import __version__

COMMANDS = ("train", "export", "serving", "benchmarks", "gaternet_tf")


def _runs_a_command() -> bool:
    """Whether this process is a command of this project, such as `python -m train.main`.

    Commands import TensorFlow themselves, when they know that they need it.
    """
    if sys.argv[:1] == ["-m"]:
        return True  # Python is looking for the module to run, in this package or beside it.
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or not spec.origin or spec.name.partition(".")[0] not in COMMANDS:
        return False
    beside = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return os.path.commonpath([beside, os.path.abspath(spec.origin)]) == beside


if not _runs_a_command():
    wrong_backend = (
        "gaternet_tf needs Keras on TensorFlow, and Keras' backend is {}; set "
        "KERAS_BACKEND=tensorflow before Keras is imported, or change ~/.keras/keras.json"
    )
    try:
        import keras

        if keras.backend.backend() != "tensorflow":
            raise ImportError(wrong_backend.format(keras.backend.backend()))
        from gaternet_tf import callbacks, layers, losses, models
        from gaternet_tf.errors import UserError
        from gaternet_tf.models import GateMap, build_gaternet, gate_map, gate_model
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package in ("jax", "torch", "openvino"):
            raise ImportError(wrong_backend.format(package)) from None
        if package not in ("keras", "tensorflow"):
            raise
        raise ModuleNotFoundError(
            f"gaternet_tf needs Keras on TensorFlow, and {package} is not installed; run "
            "pip install '.[train]' in its checkout",
            name=package,
        ) from None

__all__ = [
    "GateMap",
    "UserError",
    "__version__",
    "build_gaternet",
    "callbacks",
    "gate_map",
    "gate_model",
    "layers",
    "losses",
    "models",
]
