"""GaterNet: gater and backbone joined into one functional Keras model."""

import keras

from gaternet_tf.errors import UserError
from gaternet_tf.layers import GateSplit, SemHash
from gaternet_tf.models.gater import dense, gate_preactivations
from gaternet_tf.models.resnet_cifar import (
    ATTENTION,
    WIDTH,
    resnet_features,
    resnet_gate_map,
    resnet_spec,
)
from gaternet_tf.seeds import derive_seed

NO_GATER = "none"
MIN_SIDE = 5
"""Pixels that a picture must have on each side, for Keras to convolve it in all stages."""


def build_gaternet(
    backbone: str = "resnet20",
    gater: str | None = "resnet20",
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    bottleneck: int = 8,
    gated_convs: str = "last",
    head_batch_norm: bool = True,
    seed: int = 0,
    synchronized_batch_norm: bool = False,
    width: int = WIDTH,
    attention: str = "none",
    gate_bias: float = 0.0,
) -> keras.Model:
    """Builds a GaterNet (paper section 3), or with `gater="none"` the plain backbone.

    Weights depend on `seed` and on the layer's name alone, so the plain backbone of a seed starts
    from the very weights that the gated one has.

    Args:
      backbone: `resnet20`, `resnet56`, `resnet110`, `resnet164` or any `resnetD` of a legal depth.
      gater: the gater's ResNet, named alike; "none" or None for no gates.
      input_shape: (height, width, channels) of a normalised image.
      num_classes: number of classes, 2 or more.
      bottleneck: units between the gater's features and its gates, the paper's `b`.
      gated_convs: "last" gates the last convolution of each residual unit, "all" every one.
      head_batch_norm: whether the gater's bottleneck is batch-normalised, as in the paper.
      seed: of the initial weights and of the gates' noise.
      synchronized_batch_norm: batch normalisation over all replicas of a strategy.
      width: base channels of the backbone; the gater keeps 16.
      attention: "se" puts squeeze-and-excitation where the gates would be; then without a gater.
      gate_bias: bias of the gates' pre-activations at the start; the paper's network has 0.

    Returns:
      A model from float images [batch, height, width, channels] to a dict of `logits`, float32
      [batch, num_classes], and `gates`, float32 [batch, gates] (absent without a gater).

    Raises:
      UserError: for an argument no network can be built from.
    """
    spec = resnet_spec(backbone, width)
    gates_of = resnet_gate_map(spec, gated_convs)
    gater_spec = None if gater in (None, NO_GATER) else resnet_spec(gater)
    if attention not in ATTENTION or (attention != "none" and gater_spec is not None):
        raise UserError(
            f"attention must be 'none', or 'se' with gater='none', whose gates it replaces; got "
            f"'{attention}' with gater='{gater}'"
        )
    if len(input_shape) != 3 or any(
        not isinstance(n, int) or n < least
        for n, least in zip(input_shape, (MIN_SIDE, MIN_SIDE, 1), strict=True)
    ):
        raise UserError(
            f"pictures must be {MIN_SIDE} x {MIN_SIDE} pixels or larger, and input_shape must be "
            f"(height, width, channels); got {input_shape}"
        )
    for name, value, least in (("num_classes", num_classes, 2), ("bottleneck", bottleneck, 1)):
        if value < least:
            raise UserError(f"{name} must be {least} or more, got {value}")

    images = keras.Input(input_shape, name="images")
    outputs, gates = {}, {}
    if gater_spec is not None:
        preactivations = gate_preactivations(
            images,
            gater_spec,
            len(gates_of),
            bottleneck,
            head_batch_norm,
            synchronized_batch_norm,
            seed,
            gate_bias,
        )
        outputs["gates"] = SemHash(seed=derive_seed(seed, "gates"), name="gates")(preactivations)
        pieces = GateSplit(gates_of.to_rows(), name="gate_split")(outputs["gates"])
        gates = {
            segment.name: piece for segment, piece in zip(gates_of.segments, pieces, strict=True)
        }
    features = resnet_features(
        images, spec, gates, "", synchronized_batch_norm, seed, attention=attention
    )
    outputs["logits"] = dense(num_classes, "logits", seed, dtype="float32")(features)
    return keras.Model(images, outputs, name=f"gaternet_{backbone.replace('-', '_')}")
