"""Measures batch normalisation's moments anew, with the hard gates of inference.

In training half of the samples have soft gates and all have noise, and the moving statistics are
those of such activations; inference sees hard gates without noise.
"""

import keras
import tensorflow as tf

from gaternet_tf.layers import GatedConv2D, SemHash


def normalizations(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """All batch normalisations of a GaterNet model, those inside gated convolutions included."""
    return [
        layer.normalization if isinstance(layer, GatedConv2D) else layer
        for layer in model.layers
        if isinstance(layer, GatedConv2D | keras.layers.BatchNormalization)
    ]


def recalibrate(model: keras.Model, batches, count: int) -> int:
    """Sets every moving mean and variance to its average over batches run with hard gates.

    Args:
      model: a GaterNet model; only its moving statistics change.
      batches: iterable of (images [batch, height, width, channels], labels).
      count: batches to use; fewer if there are fewer.

    Returns:
      The number of batches used.
    """
    layers = normalizations(model)
    gates = [layer for layer in model.layers if isinstance(layer, SemHash)]
    before = [(layer, layer.momentum) for layer in layers]
    settings = [(layer, layer.noise_stddev, layer.hard_share) for layer in gates]
    statistics = [v for layer in layers for v in (layer.moving_mean, layer.moving_variance)]
    sums = [tf.Variable(tf.zeros(variable.shape)) for variable in statistics]

    @tf.function(reduce_retracing=True)
    def accumulate(images):
        model(images, training=True)
        for total, variable in zip(sums, statistics, strict=True):
            total.assign_add(tf.cast(variable.value, tf.float32))

    used = 0
    try:
        for layer in layers:
            layer.momentum = 0.0  # A moving statistic is then the last batch's.
        for layer in gates:
            layer.noise_stddev, layer.hard_share = 0.0, 1.0
        for images, _ in batches:
            if used == count:
                break
            accumulate(images)
            used += 1
    finally:
        for layer, momentum in before:
            layer.momentum = momentum
        for layer, noise, share in settings:
            layer.noise_stddev, layer.hard_share = noise, share
    if used:
        for total, variable in zip(sums, statistics, strict=True):
            variable.assign(total / used)
    return used
