"""The gater: a small CNN that sees the whole image and answers with one number per gate."""

import keras
from keras import layers

from gaternet_tf.errors import UserError
from gaternet_tf.layers import batch_normalization
from gaternet_tf.models.backbones import features_of, find_backbone, load_plain
from gaternet_tf.seeds import derive_seed

GATER_PREFIX = "gater_"


def is_gater(name: str) -> bool:
    """Returns whether a layer of this name belongs to the gater of a GaterNet."""
    return name.startswith(GATER_PREFIX) or name in ("gates", "gate_split")


def dense(units, name, seed, bias=0.0, **kwargs):
    """A dense layer with a constant bias and a kernel seeded by the layer's own name."""
    return layers.Dense(
        units,
        kernel_initializer=keras.initializers.GlorotUniform(seed=derive_seed(seed, name)),
        bias_initializer=keras.initializers.Constant(bias),
        name=name,
        **kwargs,
    )


def gate_preactivations(
    images,
    gater: str | keras.Model,
    num_gates: int,
    bottleneck: int = 8,
    head_batch_norm: bool = True,
    synchronized: bool = False,
    seed: int = 0,
    gate_bias: float = 0.0,
    size: int | None = None,
):
    """Builds `g' = FC2(ReLU(BatchNorm(FC1(E(x)))))` (paper section 3).

    Args:
      images: KerasTensor [batch, height, width, channels].
      gater: `E`, a name that `find_backbone` knows or a CNN; see `gater_features`.
      num_gates: outputs of FC2.
      bottleneck: outputs of FC1, the paper's `b`.
      head_batch_norm: False leaves the normalisation out, as the authors' released code does.
      synchronized: whether batch normalisation uses the moments of all replicas.
      seed: the run's seed.
      gate_bias: FC2's bias at the start; above 0 more gates are on then than off.
      size: side in pixels to which the pictures are scaled first; None leaves theirs.

    Returns:
      Pre-activations `g'`, KerasTensor [batch, num_gates].
    """
    if bottleneck < 1:
        raise UserError(f"bottleneck must be 1 or more, got {bottleneck}")
    if not keras.backend.is_float_dtype(images.dtype):
        images = keras.ops.cast(images, "float32")
    if size is not None:
        resize = layers.Resizing(size, size, data_format="channels_last", name="gater_resize")
        images = resize(images)
    if isinstance(gater, str) and gater.endswith(".keras"):
        gater = load_plain(gater)
    if isinstance(gater, str):
        x = find_backbone(gater).features(
            images, prefix=GATER_PREFIX, seed=seed, synchronized=synchronized
        )
    else:
        x = features_of(gater, images, GATER_PREFIX, pooled=True)
    x = dense(bottleneck, "gater_fc1", seed)(x)
    if head_batch_norm:
        x = batch_normalization(synchronized, name="gater_fc1_normalization")(x)
    x = layers.ReLU(name="gater_fc1_relu")(x)
    return dense(num_gates, "gater_fc2", seed, gate_bias)(x)
