"""ResNets for small images (He et al. 2016)."""

import dataclasses
import re

import keras

from gaternet_tf.errors import UserError
from gaternet_tf.models.blocks import convolve, residual_unit

WIDTH = 16
"""Base channels: those of the stem and of stage 1."""
ATTENTION = ("none", "se")
GATED_CONVS = {"last": "last", "all": r"unit\d+_conv\d+$"}
"""What `gate_model` gates of these: the last convolution of each unit's branch, or all of it."""
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


def resnet_features(images, spec, prefix="", synchronized=False, seed=0, attention="none"):
    """Builds the network up to and with global average pooling.

    Args:
      images: KerasTensor [batch, height, width, channels].
      spec: a `ResNetSpec`.
      prefix: put before every layer's name.
      synchronized: whether batch normalisation uses the moments of all replicas.
      seed: the run's seed; every layer draws its own from it.
      attention: "se" scales the output of each unit's last convolution by squeeze-and-excitation,
        where a gate would be.

    Returns:
      KerasTensor [batch, spec.channels[-1]].
    """
    x = convolve(images, f"{prefix}stem", spec.width, 3, seed=seed, synchronized=synchronized)
    for stage, unit in spec.units():
        name = f"{prefix}stage{stage}_unit{unit}"
        x = residual_unit(x, name, spec.branch(stage, unit), seed, synchronized, attention)
    return keras.layers.GlobalAveragePooling2D(data_format="channels_last", name=f"{prefix}pool")(x)
