"""GaterNets and plain networks by name."""

import re

import keras

from gaternet_tf.errors import UserError
from gaternet_tf.models.backbones import copy_classifier, find_backbone, source_of
from gaternet_tf.models.gater import dense
from gaternet_tf.models.gating import gate_model
from gaternet_tf.models.resnet_cifar import ATTENTION, WIDTH

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
    gater_size: int | None = None,
    weights: str | None = None,
) -> keras.Model:
    """Builds a GaterNet (paper section 3), or with `gater="none"` the plain backbone.

    It is `gate_model` of the plain network. New weights depend on `seed` and on the layer's name
    alone, so the plain backbone of a seed starts from the very weights that the gated one has.

    Args:
      backbone: `resnet20`, `resnet164`, `imagenet-resnet50`, `densenet-bc-100-12`,
        `keras:MobileNetV2`, a .keras file, ...; see `find_backbone`.
      gater: the gater's network, named alike; "none" or None for no gates.
      input_shape: (height, width, channels) of a normalised image.
      num_classes: number of classes, 2 or more.
      bottleneck: units between the gater's features and its gates, the paper's `b`.
      gated_convs: what is gated, see `gate_model`; of a ResNet for small images "all" are the
        convolutions in the branches of its units, without stem and shortcuts.
      head_batch_norm: whether the gater's bottleneck is batch-normalised, as in the paper.
      seed: of the initial weights and of the gates' noise.
      synchronized_batch_norm: batch normalisation over all replicas of a strategy.
      width: base channels of a backbone that is a ResNet for small images.
      attention: "se" puts squeeze-and-excitation where its gates would be; then without a gater.
      gate_bias: bias of the gates' pre-activations at the start; the paper's network has 0.
      gater_size: side in pixels to which the gater's picture is scaled; None leaves its size.
      weights: "imagenet" for those of keras.applications; "none" for new weights of a .keras file.

    Returns:
      A model from float images [batch, height, width, channels] to a dict of `logits`, float32
      [batch, num_classes], and `gates`, float32 [batch, gates] (absent without a gater).

    Raises:
      UserError: for an argument no network can be built from.
    """
    network = find_backbone(backbone, width, attention)
    gated = gater not in (None, NO_GATER)
    if attention not in ATTENTION or (attention != "none" and gated):
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
    if num_classes < 2:
        raise UserError(f"num_classes must be 2 or more, got {num_classes}")
    images = keras.Input(input_shape, name="images")
    features = network.features(
        images, seed=seed, synchronized=synchronized_batch_norm, weights=weights
    )
    logits = dense(num_classes, "logits", seed, dtype="float32")(features)
    name = re.sub(r"\W+", "_", backbone)
    plain = keras.Model(images, {"logits": logits}, name=name)
    if source := source_of(backbone, weights, num_classes):
        copy_classifier(source, plain.get_layer("logits"))
    if not gated:
        return plain
    return gate_model(
        plain,
        gater,
        network.all_convs if gated_convs == "all" else gated_convs,
        bottleneck,
        head_batch_norm,
        gate_bias,
        gater_size,
        seed=seed,
        synchronized_batch_norm=synchronized_batch_norm,
    )
