"""One training step: golden numbers, losses and gradients by hand, one replica against two."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gaternet_tf import build_gaternet
from gaternet_tf.losses import SparsityLoss
from train.distribution import choose_strategy
from train.recipe import compile_model, set_weight_decay, with_targets

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(16, 8, 8, 1)).astype(np.float32)
LABELS = RNG.integers(0, 10, 16)
"""One batch, large enough that each of two replicas has more than one image."""


def build(replicas=1):
    model = build_gaternet(
        "resnet8", "resnet8", (8, 8, 1), seed=1, synchronized_batch_norm=replicas > 1
    )
    # Every sample soft, nothing random left.
    model.get_layer("gates").noise_stddev = 0.0
    model.get_layer("gates").hard_share = 0.0
    return model


def step(strategy, weight_decay=1e-2):
    """Trains on one batch; returns all weights by path, and the logs."""
    replicas = strategy.num_replicas_in_sync
    with strategy.scope():
        model = build(replicas)
        set_weight_decay(model, weight_decay)
        compile_model(model, keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True), 0.1)
    # Eagerly a single step is much faster; two replicas need the graph.
    model.run_eagerly = replicas == 1
    batches = with_targets(tf.data.Dataset.from_tensors((IMAGES, LABELS)), model)
    history = model.fit(batches, shuffle=False, verbose=0)
    logs = {key: values[-1] for key, values in history.history.items()}
    return {variable.path: variable.numpy() for variable in model.weights}, logs


@pytest.fixture(scope="module")
def one_replica():
    return step(tf.distribute.get_strategy())


def test_golden_step(one_replica):
    _, logs = one_replica
    golden = {"loss": 7.3465, "logits_loss": 2.50485, "gates_loss": 0.050761}
    for key, value in golden.items():
        assert logs[key] == pytest.approx(value, rel=1e-3), (
            f"the first training step of a seeded ResNet-8 gives another {key} than before. If "
            f"initialisation or loss were changed on purpose, put these numbers here: {logs}"
        )


def test_one_and_two_replicas_take_the_same_step(one_replica):
    weights, logs = one_replica
    two_weights, two_logs = step(choose_strategy("mirrored"))
    assert weights.keys() == two_weights.keys()
    for path, value in weights.items():
        np.testing.assert_allclose(two_weights[path], value, rtol=2e-4, atol=2e-5, err_msg=path)
    for key, value in logs.items():
        assert two_logs[key] == pytest.approx(value, rel=1e-4), key


def test_a_step_moves_every_trainable_weight(one_replica):
    weights, _ = one_replica
    for variable in build().trainable_variables:
        assert (weights[variable.path] != variable.numpy()).any(), variable.path


def test_reported_losses_equal_an_independent_recomputation(one_replica):
    _, logs = one_replica
    model = build()
    outputs = {key: value.numpy() for key, value in model(IMAGES, training=True).items()}
    logits = outputs["logits"].astype(np.float64)
    log_sum = np.log(np.exp(logits).sum(axis=1))
    task = np.mean(log_sum - logits[np.arange(16), LABELS])
    sparsity = 0.1 * np.mean(np.abs(outputs["gates"]).sum(axis=1) / 112)
    kernels = [v.numpy() for v in model.trainable_variables if v.name == "kernel"]
    decay = 0.5 * 1e-2 * sum(np.sum(kernel**2) for kernel in kernels)
    assert logs["logits_loss"] == pytest.approx(task, rel=1e-4)
    assert logs["gates_loss"] == pytest.approx(sparsity, rel=1e-4)
    assert logs["loss"] == pytest.approx(task + sparsity + decay, rel=1e-4)
    assert logs["logits_accuracy"] == np.mean(logits.argmax(axis=1) == LABELS)
    assert logs["gates_gate_rate"] == pytest.approx(np.mean(outputs["gates"] > 0.5), abs=1e-6)


def test_lambda_scales_the_gradient_of_the_sparsity_loss():
    model = build()
    bias = model.get_layer("gater_fc2").bias
    inner = keras.Model(model.input, [model.get_layer("gater_fc2").output, model.output["gates"]])
    with tf.GradientTape(persistent=True) as tape:
        z, gates = inner(IMAGES, training=True)
        one, three = (SparsityLoss(scale)(LABELS, gates) for scale in (1.0, 3.0))
    # d(lambda/c * sum g)/d(bias_i), by hand: the mean slope of the saturating sigmoid over c.
    z = z.numpy().astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-z))
    slope = np.where(np.abs(z) > np.log(11), 0, 1.2 * sigmoid * (1 - sigmoid)).mean(axis=0) / 112
    np.testing.assert_allclose(tape.gradient(one, bias.value), slope, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(tape.gradient(three, bias.value), 3 * slope, rtol=2e-3, atol=1e-6)


def test_weight_decay_is_pytorchs_and_spares_batch_norm_and_biases():
    strategy = tf.distribute.get_strategy()
    start = {variable.path: variable.numpy() for variable in build().weights}
    without, _ = step(strategy, weight_decay=0.0)
    decayed, _ = step(strategy, weight_decay=0.5)
    for path, value in decayed.items():
        # The first Nesterov step is learning rate * (1 + momentum) * gradient.
        expected = 0.1 * 1.9 * 0.5 * start[path] if path.endswith("kernel") else 0.0
        np.testing.assert_allclose(without[path] - value, expected, atol=1e-5, err_msg=path)
