"""DenseNet-BC for small images (Huang et al. 2017)."""

from keras import layers

from gaternet_tf.layers import batch_normalization
from gaternet_tf.models.blocks import convolution

BLOCKS = 3
COMPRESSION = 0.5


def densenet_features(images, depth, growth, prefix="", synchronized=False, seed=0):
    """Builds DenseNet-BC up to and with global average pooling.

    Each layer is BN, ReLU, 1x1 convolution to `4 * growth`, BN, ReLU, 3x3 convolution to `growth`,
    and a concatenation; between the three blocks are BN, ReLU, a 1x1 convolution to half of the
    channels and average pooling.

    Args:
      images: KerasTensor [batch, height, width, channels].
      depth: 6n+4, for n layers a block.
      growth: channels that each layer adds.
      prefix: put before every layer's name.
      synchronized: whether batch normalisation uses the moments of all replicas.
      seed: the run's seed; every layer draws its own from it.

    Returns:
      KerasTensor [batch, features].
    """

    def normalize(x, name):
        x = batch_normalization(synchronized, name=f"{prefix}{name}_bn")(x)
        return layers.ReLU(name=f"{prefix}{name}_relu")(x)

    def convolve(x, name, filters, kernel_size):
        return convolution(prefix + name, filters, kernel_size, seed=seed)(x)

    x = convolve(images, "stem", 2 * growth, 3)
    for block in range(1, BLOCKS + 1):
        for number in range(1, (depth - 4) // 6 + 1):
            name = f"block{block}_unit{number}"
            y = convolve(normalize(x, f"{name}_conv1"), f"{name}_conv1", 4 * growth, 1)
            y = convolve(normalize(y, f"{name}_conv2"), f"{name}_conv2", growth, 3)
            x = layers.Concatenate(name=f"{prefix}{name}_concat")([x, y])
        if block < BLOCKS:
            name = f"transition{block}"
            x = convolve(normalize(x, name), f"{name}_conv", int(COMPRESSION * x.shape[-1]), 1)
            x = layers.AveragePooling2D(
                2, data_format="channels_last", name=f"{prefix}{name}_pool"
            )(x)
    x = normalize(x, "last")
    return layers.GlobalAveragePooling2D(data_format="channels_last", name=f"{prefix}pool")(x)
