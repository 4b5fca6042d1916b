"""Improved SemHash: binary gates that can be trained (paper section 3; Kaiser and Bengio 2018)."""

import math

import keras
import tensorflow as tf

LN_11 = math.log(11.0)
"""`saturating_sigmoid` is exactly 0 below `-LN_11` and exactly 1 above it."""


def saturating_sigmoid(z):
    """`max(0, min(1, 1.2 * sigmoid(z) - 0.1))`, elementwise; any shape, floating dtype."""
    return tf.clip_by_value(1.2 * tf.sigmoid(z) - 0.1, 0.0, 1.0)


def saturating_sigmoid_slope(z):
    """The derivative of `saturating_sigmoid`: 0 where `|z| > ln 11`, else `1.2 * s * (1 - s)`.

    Written out instead of left to `clip_by_value`, whose answer at the edges depends on how
    `1.2 * sigmoid(z) - 0.1` happened to be rounded.
    """
    sigmoid = tf.sigmoid(z)
    return tf.where(tf.abs(z) > LN_11, tf.zeros_like(z), 1.2 * sigmoid * (1.0 - sigmoid))


def hard_gates(z):
    """`1[z > 0]` in the dtype of `z`: what inference uses, and the forward pass of hard samples."""
    return tf.cast(z > 0, z.dtype)


@tf.custom_gradient
def semhash(z, hard):
    """Gates of one training step from noisy pre-activations.

    Forward: `1[z > 0]` for the samples marked hard, `saturating_sigmoid(z)` for the others.
    Backward: the slope of `saturating_sigmoid` for both.

    Args:
      z: noisy pre-activations, float [batch, ..., gates].
      hard: bool [batch, 1, ..., 1], which samples get binary gates.

    Returns:
      Gates in [0, 1], dtype and shape of `z`.
    """
    gates = tf.where(hard, hard_gates(z), saturating_sigmoid(z))

    def gradient(upstream):
        return upstream * saturating_sigmoid_slope(z), None

    return gates, gradient


def replica_seed(generator: keras.random.SeedGenerator):
    """Draws the next stateless seed, int32 [2], different on every replica of a strategy.

    A SeedGenerator's state is mirrored: by itself it gives each replica the same numbers, and a
    global batch would hold the same noise several times over.
    """
    seed = tf.bitcast(tf.cast(tf.convert_to_tensor(generator.next()), tf.uint32), tf.int32)
    context = tf.distribute.get_replica_context()
    replica = 0 if context is None else context.replica_id_in_sync_group
    return tf.random.experimental.stateless_fold_in(seed, replica)


@keras.saving.register_keras_serializable(package="gaternet_tf")
class SemHash(keras.layers.Layer):
    """Turns gate pre-activations `g'` into gates (paper section 3).

    Training: `g'e = g' + e` with `e ~ N(0, 1)` for each gate; one fair coin a *sample* decides
    between `g_beta = 1[g'e > 0]` and `g_alpha = saturating_sigmoid(g'e)`; both pass the gradient
    of `g_alpha` back. Inference: `1[g' > 0]`, with neither noise nor coin.

    Noise, sigmoid and threshold are computed, and gates returned, in float32 under every dtype
    policy: in half precision a pre-activation near 0 could change sides.

    Call arguments: `inputs` float [batch, ..., gates]; `training` bool. Returns float32 of the same
    shape.

    >>> gates = SemHash(seed=0)(tf.constant([[-3.0, 0.0, 0.5]]))
    >>> gates.numpy().tolist()
    [[0.0, 0.0, 1.0]]

    Args:
      seed: int or None. The same seed gives the same noise, call after call; on several replicas
        each draws its own. None takes a random one.
      noise_stddev: standard deviation of `e`; the paper's 1.
      hard_share: probability that a sample of a training batch gets binary gates; the paper's 1/2.
      **kwargs: those of `keras.layers.Layer`.

    Raises:
      ValueError: for a negative `noise_stddev` or a `hard_share` outside [0, 1].
    """

    def __init__(self, seed=None, noise_stddev=1.0, hard_share=0.5, **kwargs):
        super().__init__(autocast=False, **kwargs)
        if noise_stddev < 0:
            raise ValueError(f"noise_stddev must be 0 or more, got {noise_stddev}")
        if not 0 <= hard_share <= 1:
            raise ValueError(f"hard_share must be between 0 and 1, got {hard_share}")
        self.seed = seed
        self.noise_stddev = noise_stddev
        self.hard_share = hard_share
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(min_ndim=2)

    def call(self, inputs, training=None):
        z = tf.cast(inputs, tf.float32)
        if not training:
            return hard_gates(z)
        noise_seed, coin_seed = tf.unstack(
            tf.random.experimental.stateless_split(replica_seed(self.seed_generator), 2)
        )
        noise = tf.random.stateless_normal(tf.shape(z), noise_seed, stddev=self.noise_stddev)
        one_per_sample = [tf.shape(z)[0], *[1] * (len(z.shape) - 1)]
        coin = tf.random.stateless_uniform(one_per_sample, coin_seed)
        return semhash(z + noise, coin < self.hard_share)

    def compute_output_spec(self, inputs, training=None):
        return keras.KerasTensor(inputs.shape, dtype="float32")

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "seed": self.seed,
            "noise_stddev": self.noise_stddev,
            "hard_share": self.hard_share,
        }
