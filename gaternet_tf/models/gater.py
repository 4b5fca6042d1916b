"""The gater: a small CNN that sees the whole image and answers with one number per gate."""

import keras

from gaternet_tf.layers import batch_normalization
from gaternet_tf.models.resnet_cifar import ResNetSpec, resnet_features
from gaternet_tf.seeds import derive_seed


def dense(units, name, seed, bias=0.0, **kwargs):
    """A dense layer with a constant bias and a kernel seeded by the layer's own name."""
    return keras.layers.Dense(
        units,
        kernel_initializer=keras.initializers.GlorotUniform(seed=derive_seed(seed, name)),
        bias_initializer=keras.initializers.Constant(bias),
        name=name,
        **kwargs,
    )


def gate_preactivations(
    images,
    spec: ResNetSpec,
    num_gates: int,
    bottleneck: int,
    head_batch_norm: bool = True,
    synchronized: bool = False,
    seed: int = 0,
    gate_bias: float = 0.0,
):
    """Builds `g' = FC2(ReLU(BatchNorm(FC1(E(x)))))` (paper section 3).

    Args:
      images: KerasTensor [batch, height, width, channels].
      spec: the ResNet whose pooled features are `E(x)`.
      num_gates: outputs of FC2.
      bottleneck: outputs of FC1, the paper's `b`.
      head_batch_norm: False leaves the normalisation out, as the authors' released code does.
      synchronized: whether batch normalisation uses the moments of all replicas.
      seed: the run's seed.
      gate_bias: FC2's bias at the start; above 0 more gates are on then than off.

    Returns:
      Pre-activations `g'`, KerasTensor [batch, num_gates].
    """
    x = resnet_features(images, spec, prefix="gater_", synchronized=synchronized, seed=seed)
    x = dense(bottleneck, "gater_fc1", seed)(x)
    if head_batch_norm:
        x = batch_normalization(synchronized, name="gater_fc1_normalization")(x)
    x = keras.layers.ReLU(name="gater_fc1_relu")(x)
    return dense(num_gates, "gater_fc2", seed, gate_bias)(x)
