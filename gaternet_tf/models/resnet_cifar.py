"""ResNets for small images (He et al. 2016), with a place for a gate on each convolution."""

import dataclasses
import re

import keras

from gaternet_tf.errors import UserError
from gaternet_tf.layers import GatedConv2D, SqueezeExcite
from gaternet_tf.models.gate_map import GateMap, GateSegment
from gaternet_tf.seeds import derive_seed

WIDTH = 16
"""Base channels: those of the stem and of stage 1."""
ATTENTION = ("none", "se")
GATED_CONVS = ("last", "all")
BOTTLENECK_FROM = 164
"""Depths that are both 6n+2 and 9n+2 are basic below this one, as in the papers they come from."""


@dataclasses.dataclass(frozen=True)
class ResNetSpec:
    """Everything that tells one ResNet from another.

    `width` are the outputs of the stem; `channels` those of the units of stages 1 to 3; `widths`
    those of the convolutions inside them, which differ from `channels` in bottleneck units only.
    """

    depth: int
    bottleneck: bool
    units_per_stage: int
    width: int
    channels: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def convolutions(self) -> int:
        """Convolutions in the branch of one residual unit."""
        return 3 if self.bottleneck else 2

    def branch(self, stage: int, unit: int) -> list[tuple[int, int, int]]:
        """(filters, kernel size, strides) of each convolution in a unit's branch."""
        width, channels = self.widths[stage - 1], self.channels[stage - 1]
        strides = 2 if stage > 1 and unit == 1 else 1
        if self.bottleneck:
            return [(width, 1, 1), (width, 3, strides), (channels, 1, 1)]
        return [(width, 3, strides), (channels, 3, 1)]

    def units(self):
        """(stage, unit), both from 1, in network order."""
        for stage in range(1, len(self.channels) + 1):
            for unit in range(1, self.units_per_stage + 1):
                yield stage, unit


def resnet_spec(name: str, width: int = WIDTH) -> ResNetSpec:
    """Returns the specification of `resnetD`, `resnetD-basic` or `resnetD-bottleneck`.

    Basic units of two 3x3 convolutions give depths 6n+2, bottleneck units 9n+2. Where a depth
    is both (20, 38, 56, ...), `resnetD` means basic below 164 and bottleneck from 164 on.
    The bottleneck net keeps 16 channels in stage 1, which alone yields the paper's 7200 gates.
    `width` scales all channels; those of the paper are at 16.

    Raises:
      UserError: for another name, a depth that no such net has, or no width.
    """
    if width < 1:
        raise UserError(f"a ResNet's width must be 1 or more base channels, got {width}")
    match = re.fullmatch(r"resnet([1-9][0-9]{0,4})(-basic|-bottleneck)?", name)
    if match is None:
        raise UserError(
            "a network must be named resnetD, resnetD-basic or resnetD-bottleneck, for example "
            f"resnet20, resnet56, resnet110 or resnet164; got '{name}'"
        )
    depth, kind = int(match[1]), match[2]
    basic = depth >= 8 and (depth - 2) % 6 == 0
    bottleneck = depth >= 11 and (depth - 2) % 9 == 0
    if kind == "-basic" or (
        kind is None and basic and not (bottleneck and depth >= BOTTLENECK_FROM)
    ):
        legal, is_bottleneck, units = basic, False, (depth - 2) // 6
    else:
        legal, is_bottleneck, units = bottleneck, True, (depth - 2) // 9
    if not legal:
        raise UserError(
            "a ResNet's depth must be 6n+2 with basic units (8, 14, 20, 26, 32, ...) or 9n+2 with "
            f"bottleneck units (11, 20, 29, 38, 47, ...); got '{name}'"
        )
    channels = (width, 2 * width, 4 * width)
    if is_bottleneck:
        inner = (max(1, round(width / 4)), 2 * width, 4 * width)
        return ResNetSpec(depth, True, units, width, (width, 8 * width, 16 * width), inner)
    return ResNetSpec(depth, False, units, width, channels, channels)


def resnet_gate_map(spec: ResNetSpec, gated_convs: str) -> GateMap:
    """Returns the gates of a ResNet: on the `last` convolution of each unit's branch, or on `all`.

    Raises:
      UserError: when `gated_convs` is neither.
    """
    if gated_convs not in GATED_CONVS:
        raise UserError(f"gated_convs must be 'last' or 'all', got '{gated_convs}'")
    return GateMap(
        [
            GateSegment(stage, unit, convolution, filters)
            for stage, unit in spec.units()
            for convolution, (filters, _, _) in enumerate(spec.branch(stage, unit), start=1)
            if gated_convs == "all" or convolution == spec.convolutions
        ]
    )


def resnet_features(
    images, spec, gates=None, prefix="", synchronized=False, seed=0, attention="none"
):
    """Builds the network up to and with global average pooling.

    Args:
      images: KerasTensor [batch, height, width, channels].
      spec: a `ResNetSpec`.
      gates: dict from the name of a gated layer (without prefix) to its gates, [batch, filters];
        None or empty for the plain network.
      prefix: put before every layer's name.
      synchronized: whether batch normalisation uses the moments of all replicas.
      seed: the run's seed; every layer draws its own from it.
      attention: "se" scales the output of each unit's last convolution by squeeze-and-excitation,
        where a gate would be.

    Returns:
      KerasTensor [batch, spec.channels[-1]].
    """
    gates = gates or {}

    def convolve(x, name, filters, kernel_size, strides=1, activation=None):
        layer = GatedConv2D(
            filters,
            kernel_size,
            strides,
            activation,
            synchronized=synchronized,
            seed=derive_seed(seed, prefix + name),
            name=prefix + name,
        )
        return layer(x, gates=gates[name]) if name in gates else layer(x)

    def residual_unit(x, stage, unit):
        name = f"stage{stage}_unit{unit}"
        branch = spec.branch(stage, unit)
        residual = x
        for number, (filters, kernel_size, strides) in enumerate(branch, start=1):
            # The last convolution's ReLU comes after the sum, so its gate comes before both.
            activation = None if number == len(branch) else "relu"
            layer_name = f"{name}_conv{number}"
            residual = convolve(residual, layer_name, filters, kernel_size, strides, activation)
        if attention == "se":
            excite_name = f"{prefix}{name}_se"
            excite = SqueezeExcite(seed=derive_seed(seed, excite_name), name=excite_name)
            residual = excite(residual)
        shortcut = x
        if x.shape[-1] != residual.shape[-1]:
            strides = max(strides for _, _, strides in branch)
            shortcut = convolve(x, f"{name}_shortcut", residual.shape[-1], 1, strides)
        total = keras.layers.Add(name=f"{prefix}{name}_add")([residual, shortcut])
        return keras.layers.ReLU(name=f"{prefix}{name}_relu")(total)

    x = convolve(images, "stem", spec.width, 3, activation="relu")
    for stage, unit in spec.units():
        x = residual_unit(x, stage, unit)
    return keras.layers.GlobalAveragePooling2D(data_format="channels_last", name=f"{prefix}pool")(x)
