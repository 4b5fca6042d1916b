"""The sparsity loss and the gate rate against hand computation."""

import numpy as np
import pytest

from gaternet_tf.losses import GateRate, SmoothedCrossentropy, SparsityLoss

GATES = np.array([[1, 0, 0.5, 0.25], [1, 1, 1, 1], [0, 0, 0, 0]], np.float32)


@pytest.mark.parametrize("weight", [0.0, 0.1, 2.0])
def test_loss_is_lambda_times_the_l1_norm_over_the_number_of_gates(weight):
    loss = float(SparsityLoss(weight)(np.zeros(3), GATES))
    assert loss == pytest.approx(weight * (1.75 + 4 + 0) / 4 / 3, abs=1e-7)


def test_a_wider_gate_vector_is_not_punished_more():
    loss = SparsityLoss(0.5)
    wide = np.tile(GATES, (1, 10))
    assert float(loss(np.zeros(3), GATES)) == pytest.approx(float(loss(np.zeros(3), wide)))


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_a_weight_that_is_no_penalty_is_refused(weight):
    with pytest.raises(ValueError, match="0 or more"):
        SparsityLoss(weight)


def test_gate_rate_counts_gates_above_one_half_over_all_updates():
    metric = GateRate()
    metric.update_state(np.zeros(3), GATES)
    assert float(metric.result()) == pytest.approx(5 / 12)
    metric.update_state(np.zeros(3), np.ones([3, 4], np.float32))
    assert float(metric.result()) == pytest.approx(17 / 24)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_is_that_of_the_definition(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 7)).astype(np.float32) * 3
    labels = rng.integers(0, 7, 5)
    target = np.full((5, 7), smoothing / 7)
    target[np.arange(5), labels] += 1 - smoothing
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = -(target * np.log(chances)).sum(axis=1).mean()
    loss = SmoothedCrossentropy(smoothing)
    assert float(loss(labels, logits)) == pytest.approx(wanted, rel=1e-5)
    assert float(loss(labels[:, None], logits)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_a_smoothing_that_is_none_is_refused(smoothing):
    with pytest.raises(ValueError, match="from 0 to below 1"):
        SmoothedCrossentropy(smoothing)


def test_a_warm_up_scales_the_sparsity_loss():
    loss = SparsityLoss(0.5)
    full = float(loss(np.zeros(3), GATES))
    loss.scale.assign(0.25)
    assert float(loss(np.zeros(3), GATES)) == pytest.approx(full / 4)
