"""Improved SemHash against an independent statement of its equations in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gaternet_tf.layers import SemHash
from gaternet_tf.layers.semhash import saturating_sigmoid, semhash
from train.distribution import choose_strategy

LN_11 = np.log(11.0)
POINTS = np.array([-50, -LN_11 - 1e-3, -LN_11, -1.3, -1e-6, 0, 1e-6, 0.7, LN_11, LN_11 + 1e-3, 50])


def numpy_soft(z):
    return np.maximum(0.0, np.minimum(1.0, 1.2 / (1.0 + np.exp(-z)) - 0.1))


def numpy_slope(z):
    s = 1.0 / (1.0 + np.exp(-z))
    return np.where(np.abs(z) > LN_11, 0.0, 1.2 * s * (1.0 - s))


def gates_and_gradient(z, hard):
    z = tf.constant(z[None], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(z)
        gates = semhash(z, tf.constant([[hard]]))
    return gates[0].numpy(), tape.gradient(gates, z)[0].numpy()


def test_saturating_sigmoid_equals_numpy_and_saturates():
    values = saturating_sigmoid(tf.constant(POINTS, tf.float32)).numpy()
    np.testing.assert_allclose(values, numpy_soft(POINTS), atol=1e-6)
    assert values[0] == values[1] == 0.0
    assert values[-1] == values[-2] == 1.0
    assert values[5] == 0.5


def test_soft_path_equals_numpy():
    gates, gradient = gates_and_gradient(POINTS, hard=False)
    np.testing.assert_allclose(gates, numpy_soft(POINTS), atol=1e-6)
    np.testing.assert_allclose(gradient, numpy_slope(POINTS), atol=1e-6)


def test_hard_path_is_a_step_with_the_soft_gradient():
    gates, gradient = gates_and_gradient(POINTS, hard=True)
    np.testing.assert_array_equal(gates, (POINTS > 0).astype(np.float32))
    np.testing.assert_allclose(gradient, numpy_slope(POINTS), atol=1e-6)


@pytest.mark.parametrize("hard", [False, True])
def test_gradient_at_and_beyond_ln_11(hard):
    _, gradient = gates_and_gradient(POINTS, hard)
    at_edge = 1.2 * (11 / 12) * (1 / 12)
    np.testing.assert_allclose(gradient[[2, 8]], at_edge, rtol=1e-5)
    np.testing.assert_array_equal(gradient[[0, 1, 9, 10]], 0.0)


@settings(deadline=None)
@given(st.floats(-1e4, 1e4, width=32), st.booleans())
def test_gates_stay_between_0_and_1_and_gradients_between_0_and_their_maximum(z, hard):
    gates, gradient = gates_and_gradient(np.array([z]), hard)
    assert 0.0 <= gates[0] <= 1.0
    assert 0.0 <= gradient[0] <= 0.3 + 1e-6


def test_inference_is_binary_repeatable_and_off_at_zero():
    layer = SemHash(seed=1)
    z = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)
    z[:, 0] = 0.0
    gates = layer(z, training=False).numpy()
    np.testing.assert_array_equal(gates, (z > 0).astype(np.float32))
    np.testing.assert_array_equal(gates, layer(z).numpy())


@pytest.mark.parametrize("shape", [(30,), (6, 5), (3, 2, 5)])
def test_half_of_the_samples_are_hard(shape):
    # 4,000 fair coins: the share is within 0.025 of one half with probability 0.998.
    gates = SemHash(seed=3)(tf.zeros([4000, *shape]), training=True).numpy().reshape(4000, 30)
    is_binary = ((gates == 0) | (gates == 1)).mean(axis=1)
    hard = is_binary == 1.0
    assert abs(hard.mean() - 0.5) < 0.025
    # The coin is the sample's: of 30 soft gates with noise N(0, 1) only one in 60 saturates.
    assert is_binary[~hard].max() < 0.5


def test_noise_is_standard_normal_for_every_gate():
    gates = SemHash(seed=4, hard_share=0.0)(tf.zeros([2000, 50]), training=True).numpy()
    # Invert the saturating sigmoid where it is not flat: |noise| < ln 11.
    assert abs((gates == 0).mean() - stats.norm.cdf(-LN_11)) < 0.001
    assert abs((gates == 1).mean() - stats.norm.cdf(-LN_11)) < 0.001
    s = (gates[(gates > 0) & (gates < 1)] + 0.1) / 1.2
    noise = np.log(s / (1 - s))
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - stats.truncnorm(-LN_11, LN_11).std()) < 0.01
    assert np.abs(np.corrcoef(gates[:, :5].T) - np.eye(5)).max() < 0.1


def test_training_repeats_with_the_seed_and_differs_from_call_to_call():
    z = tf.zeros([64, 8])
    first, second = SemHash(seed=5), SemHash(seed=5)
    calls = [first(z, training=True).numpy() for _ in range(2)]
    np.testing.assert_array_equal(calls[0], second(z, training=True).numpy())
    np.testing.assert_array_equal(calls[1], second(z, training=True).numpy())
    assert (calls[0] != calls[1]).mean() > 0.4
    assert (calls[0] != SemHash(seed=6)(z, training=True).numpy()).mean() > 0.4


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_computes_gates_in_float32(policy):
    z = np.array([[1e-9, -1e-9, 0.0, 3.0, -3.0]], np.float32).repeat(200, axis=0)
    layer = SemHash(seed=7, dtype=keras.DTypePolicy(policy))
    assert layer(z).dtype == tf.float32
    # 1e-9 is 0 in float16; a threshold there would switch the first gate off.
    np.testing.assert_array_equal(layer(z).numpy()[0], [1, 0, 0, 1, 0])
    np.testing.assert_array_equal(
        layer(z, training=True).numpy(), SemHash(seed=7)(z, training=True).numpy()
    )
    with tf.GradientTape() as tape:
        half = tf.cast(tf.constant([[-1.0, 0.5]]), keras.DTypePolicy(policy).compute_dtype)
        tape.watch(half)
        gates = SemHash(seed=7, noise_stddev=0.0, hard_share=1.0)(half, training=True)
    np.testing.assert_array_equal(gates.numpy(), [[0.0, 1.0]])
    gradient = tf.cast(tape.gradient(gates, half), tf.float32).numpy()
    np.testing.assert_allclose(gradient, numpy_slope(np.array([[-1.0, 0.5]])), rtol=0.01)


def test_replicas_draw_their_own_noise_and_coins():
    def draw():
        strategy = choose_strategy("mirrored")
        with strategy.scope():
            layer = SemHash(seed=8)
            layer.build([None, 40])
        step = tf.function(lambda: layer(tf.zeros([300, 40]), training=True))
        return [gates.numpy() for gates in strategy.experimental_local_results(strategy.run(step))]

    first, second = draw()
    assert (first != second).mean() > 0.5
    hard = [((gates == 0) | (gates == 1)).all(axis=1) for gates in (first, second)]
    assert 0.3 < (hard[0] != hard[1]).mean() < 0.7
    for once, again in zip((first, second), draw(), strict=True):
        np.testing.assert_array_equal(once, again)


def test_gates_without_samples_are_refused():
    with pytest.raises(ValueError, match="expected min_ndim=2, found ndim=1"):
        SemHash()(keras.KerasTensor([30]))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"noise_stddev": -1}, "0 or more"), ({"hard_share": 1.5}, "between 0 and 1")],
)
def test_hyper_parameters_are_checked(arguments, word):
    with pytest.raises(ValueError, match=word):
        SemHash(**arguments)
