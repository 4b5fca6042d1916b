"""The state dictionaries of the authors' released PyTorch code, to and from a Keras model.

Only names, layouts and numbers; `train.conversion` reads and writes the files.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import keras
import numpy as np

from gaternet_tf.errors import UserError
from gaternet_tf.models import gate_map

BACKBONE = "backbone_state_dict"
GATER = "gater_state_dict"
StateDicts = Mapping[str, Mapping[str, np.ndarray]]

THRESHOLD = math.log(0.59999 / 0.60001)
"""Their gate is on where `1.2 * sigmoid(z) - 0.1 > 0.49999`, that is for `z > -3.3e-5`; ours where
`z > 0`. The difference goes into the bias of the gater's last layer: a `z` of exactly 0 stays on.
"""
CONV_AXES = (3, 2, 0, 1)
"""Keras [height, width, in, out] as PyTorch's [out, in, height, width]."""
DENSE_AXES = (1, 0)
"""Keras [in, out] as PyTorch's [out, in]."""
NORMALIZATION = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
DENSE = {
    "logits": (BACKBONE, "fc"),
    "gater_fc1": (GATER, "resnet.newfc"),
    "gater_fc2": (GATER, "fnn.fc.0"),
}
COUNTER = ".num_batches_tracked"
LISTED = 5
"""Tensors that an error lists."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One variable of ours and its place in the authors' files."""

    variable: keras.Variable
    part: str
    key: str
    axes: tuple[int, ...] = (0,)
    shift: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the authors' layout."""
        return tuple(self.variable.shape[axis] for axis in self.axes)

    def read(self) -> np.ndarray:
        """Returns the variable's values, float32, in the authors' layout."""
        values = np.asarray(self.variable, np.float32) + np.float32(self.shift)
        return np.ascontiguousarray(values.transpose(self.axes))

    def assign(self, values: np.ndarray) -> None:
        """Sets the variable from values in the authors' layout."""
        back = values.astype(np.float32).transpose(np.argsort(self.axes))
        self.variable.assign(back - np.float32(self.shift))


def tensors(model: keras.Model) -> Iterator[Tensor]:
    """Yields the variables of a GaterNet with the authors' names, in network order.

    Raises:
      UserError: for a network that the authors' code cannot hold.
    """
    check_representable(model)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            part, convolution, normalization = _places(layer.name)
            yield Tensor(layer.kernel, part, f"{convolution}.weight", CONV_AXES)
            normalize = model.get_layer(f"{layer.name}_bn")
            for ours, theirs in NORMALIZATION.items():
                yield Tensor(getattr(normalize, ours), part, f"{normalization}.{theirs}")
        elif isinstance(layer, keras.layers.Dense):
            part, name = DENSE[layer.name]
            shift = THRESHOLD if layer.name == "gater_fc2" else 0.0
            yield Tensor(layer.kernel, part, f"{name}.weight", DENSE_AXES)
            yield Tensor(layer.bias, part, f"{name}.bias", shift=shift)


def check_representable(model: keras.Model) -> None:
    """Raises `UserError` unless the authors' code has a place for everything in `model`."""
    names = {layer.name for layer in model.layers}
    if "gates" not in names:
        problem = "has no gater (--gater=none)"
    elif "gater_fc1_normalization" in names:
        problem = "has a gater head with batch normalisation (train with --nohead_batch_norm)"
    elif "stage1_unit1_conv3" in names or "gater_stage1_unit1_conv3" in names:
        problem = "has bottleneck units of three convolutions"
    elif gate_map(model)[0].layer != "stage1_unit1_conv2":
        problem = "gates every convolution (--gated_convs=all)"
    else:
        return
    raise UserError(
        "the authors' code has ResNets of basic units, gated on the last convolution of each, "
        f"with a gater whose head has no batch normalisation, and this network {problem}"
    )


def state_dicts(model: keras.Model) -> dict[str, dict[str, np.ndarray]]:
    """Returns the two state dictionaries of a model, float32 arrays in the authors' order."""
    parts: dict[str, dict[str, np.ndarray]] = {BACKBONE: {}, GATER: {}}
    for tensor in tensors(model):
        parts[tensor.part][tensor.key] = tensor.read()
    return parts


def load_state_dicts(model: keras.Model, parts: StateDicts) -> None:
    """Sets every variable of `model` from the authors' state dictionaries.

    Keys may begin with `module.`, as `DataParallel` writes them, and batch normalisations may have
    a `num_batches_tracked`.

    Raises:
      UserError: unless the keys are those of the network and every shape fits; `model` is then
        unchanged.
    """
    wanted = {(tensor.part, tensor.key): tensor for tensor in tensors(model)}
    given = {
        (part, key.removeprefix("module.")): value
        for part, values in parts.items()
        for key, value in values.items()
        if not key.endswith(COUNTER)
    }
    problems = [
        *(f"no {_label(place)}" for place in wanted if place not in given),
        *(f"an unexpected {_label(place)}" for place in given if place not in wanted),
        *(
            f"{_label(place)} of shape {list(given[place].shape)}, must be {list(tensor.shape)}"
            for place, tensor in wanted.items()
            if place in given and given[place].shape != tensor.shape
        ),
    ]
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise UserError(
            "a checkpoint must have every tensor of its network and no other, and this one has "
            f"{'; '.join(problems[:LISTED])}{more}. --backbone and --gater must be those of the "
            "checkpoint"
        )
    for place, tensor in wanted.items():
        tensor.assign(given[place])


def _places(layer_name):
    """Returns (part, key of the convolution, key of its normalisation) of one of our layers."""
    part, prefix, name = BACKBONE, "", layer_name
    if name.startswith("gater_"):
        part, prefix, name = GATER, "resnet.", name.removeprefix("gater_")
    if name == "stem":
        return part, f"{prefix}conv", f"{prefix}bn"
    stage, unit, last = name.split("_")
    block = f"{prefix}{stage}.{unit.replace('unit', 'block')}"
    if last == "shortcut":
        return part, f"{block}.shortcut.conv", f"{block}.shortcut.bn"
    return part, f"{block}.{last}", f"{block}.{last.replace('conv', 'bn')}"


def _label(place):
    part, key = place
    return f"{part.removesuffix('_state_dict')} {key}"
