"""What the residual networks share: a convolution with its normalisation, and a residual unit."""

from collections.abc import Sequence

import keras
from keras import layers

from gaternet_tf.layers import SqueezeExcite, batch_normalization
from gaternet_tf.seeds import derive_seed


def convolution(name, filters, kernel_size, strides=1, seed=0) -> layers.Conv2D:
    """Returns a convolution without bias, which pads by itself only where it is not strided.

    Its kernel (He normal, not truncated, fan-out) draws its own seed from the run's and its name.
    """
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="valid" if strides > 1 else "same",
        data_format="channels_last",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(
            scale=2.0,
            mode="fan_out",
            distribution="untruncated_normal",
            seed=derive_seed(seed, name),
        ),
        name=name,
    )


def convolve(x, name, filters, kernel_size, strides=1, relu=True, seed=0, synchronized=False):
    """Builds a convolution without bias, batch normalisation and ReLU.

    A strided convolution pads `(kernel_size - 1) / 2` pixels on *every* side, where TensorFlow's
    own "same" would pad only right and bottom.

    Args:
      x: KerasTensor [batch, height, width, channels].
      name: of the convolution, and the start of the other layers' names.
      filters: number of filters.
      kernel_size: odd side of the kernel, pixels.
      strides: step in both directions, pixels.
      relu: whether a ReLU follows.
      seed: the run's seed.
      synchronized: whether batch normalisation uses the moments of all replicas.

    Returns:
      KerasTensor [batch, ceil(height / strides), ceil(width / strides), filters].
    """
    if strides > 1 and kernel_size > 1:
        x = layers.ZeroPadding2D(kernel_size // 2, data_format="channels_last", name=f"{name}_pad")(
            x
        )
    x = convolution(name, filters, kernel_size, strides, seed)(x)
    x = batch_normalization(synchronized, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def residual_unit(
    x, name, branch: Sequence[tuple[int, int, int]], seed=0, synchronized=False, attention="none"
):
    """Builds a residual unit, post-activation (He et al. 2016).

    Args:
      x: KerasTensor [batch, height, width, channels].
      name: start of its layers' names.
      branch: (filters, kernel size, strides) of each convolution.
      seed: the run's seed.
      synchronized: whether batch normalisation uses the moments of all replicas.
      attention: "se" scales the branch by squeeze-and-excitation before the sum.
    """
    residual = x
    for number, (filters, kernel_size, strides) in enumerate(branch, start=1):
        # The last convolution's ReLU comes after the sum.
        relu = number < len(branch)
        layer_name = f"{name}_conv{number}"
        residual = convolve(
            residual, layer_name, filters, kernel_size, strides, relu, seed, synchronized
        )
    if attention == "se":
        se_name = f"{name}_se"
        residual = SqueezeExcite(seed=derive_seed(seed, se_name), name=se_name)(residual)
    shortcut = x
    strides = max(strides for _, _, strides in branch)
    if x.shape[-1] != residual.shape[-1] or strides > 1:
        shortcut = convolve(
            x, f"{name}_shortcut", residual.shape[-1], 1, strides, False, seed, synchronized
        )
    x = layers.Add(name=f"{name}_add")([residual, shortcut])
    return layers.ReLU(name=f"{name}_relu")(x)
