"""ResNets for ImageNet (He et al. 2016), with the stride in the 3x3 convolution of a bottleneck."""

from keras import layers

from gaternet_tf.models.blocks import convolve, residual_unit

UNITS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Residual units of each stage, by depth."""
BOTTLENECK_FROM = 50
WIDTHS = (64, 128, 256, 512)


def resnet_imagenet_features(images, depth, prefix="", synchronized=False, seed=0):
    """Builds ResNet-18, -34, -50, -101 or -152 up to and with global average pooling.

    Args:
      images: KerasTensor [batch, height, width, channels].
      depth: a key of `UNITS`.
      prefix: put before every layer's name.
      synchronized: whether batch normalisation uses the moments of all replicas.
      seed: the run's seed; every layer draws its own from it.

    Returns:
      KerasTensor [batch, 512], from depth 50 on [batch, 2048].
    """
    common = {"seed": seed, "synchronized": synchronized}
    x = convolve(images, f"{prefix}stem", 64, 7, 2, **common)
    x = layers.ZeroPadding2D(1, data_format="channels_last", name=f"{prefix}stem_pool_pad")(x)
    x = layers.MaxPooling2D(3, 2, data_format="channels_last", name=f"{prefix}stem_pool")(x)
    for stage, (units, width) in enumerate(zip(UNITS[depth], WIDTHS, strict=True), start=1):
        for unit in range(1, units + 1):
            strides = 2 if stage > 1 and unit == 1 else 1
            if depth >= BOTTLENECK_FROM:
                branch = [(width, 1, 1), (width, 3, strides), (4 * width, 1, 1)]
            else:
                branch = [(width, 3, strides), (width, 3, 1)]
            x = residual_unit(x, f"{prefix}stage{stage}_unit{unit}", branch, **common)
    return layers.GlobalAveragePooling2D(data_format="channels_last", name=f"{prefix}pool")(x)
