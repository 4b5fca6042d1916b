"""How well classes separate: on gates that know the class, and on gates that do not."""

import numpy as np
import pytest
from planted_analysis import record_of

from gaternet_tf.analysis.separation import separate, stratified_sample
from gaternet_tf.analysis.statistics import count
from gaternet_tf.models.gate_map import GateMap, GateSegment

GATES = GateMap([GateSegment("conv", "conv", 40)])
NO_PICTURE = 500
"""A perplexity that takes no time, since no record here has as many images."""


def planted(images, informative):
    """Half cats, half dogs; `informative` gates are on for dogs, the others at random."""
    labels = np.arange(images) % 2
    gates = np.random.default_rng(0).random((images, 40)) < 0.5
    gates[:, :informative] = labels[:, None] == 1
    return record_of(gates, labels, gate_map=GATES)


def separated(record, perplexity=NO_PICTURE, **options):
    return separate(record, count(record).dependent, perplexity, **options)


def test_classes_that_the_gates_know_are_apart():
    _, _, document = separated(planted(120, informative=30))
    near, silhouette = document["neighbours"], document["silhouette"]
    assert near["accuracy"] == 1.0
    assert near["accuracy_shuffled"] < 0.75
    # Distances within a class are about 5 of 10 noisy gates, between classes 30 more.
    assert silhouette["mean"] == pytest.approx(1 - 5 / 35, abs=0.02)
    assert abs(silhouette["mean_shuffled"]) < 0.05


def test_the_picture_repeats():
    record = planted(40, informative=3)
    first, again = separated(record, 10.0), separated(record, 10.0)
    np.testing.assert_array_equal(first[1], again[1])
    assert first[2] == again[2]


def test_images_with_the_same_gates_stay_together():
    kinds = np.random.default_rng(0).random((6, 40)) < 0.5
    which = np.arange(6 * 150) % 6
    record = record_of(kinds[which], which % 2, gate_map=GATES)
    _, points, document = separated(record, perplexity=3)
    middles = np.stack([points[which == kind].mean(axis=0) for kind in range(6)])
    apart = np.linalg.norm(middles[:, None] - middles[None], axis=-1) + 1e9 * np.eye(6)
    for kind in range(6):
        radius = np.linalg.norm(points[which == kind] - middles[kind], axis=1).max()
        assert radius < apart[kind].min() / 2
    assert document["distinct_gate_vectors"] == 6


def test_numbers_that_do_not_exist_are_explained():
    _, points, document = separated(planted(30, informative=3), perplexity=30)
    assert points.shape == (0, 2)
    assert "more than 30 different gate vectors, and there are 30" in document["t_sne"]["absent"]
    assert "accuracy" in document["neighbours"]
    _, _, constant = separated(record_of(np.ones((50, 7)), labels=np.arange(50) % 2))
    for name in ("t_sne", "neighbours", "silhouette"):
        assert "no gate depends on the input" in constant[name]["absent"]
    _, _, few = separated(record_of(np.eye(7)[:5], labels=np.zeros(5)))
    assert "nearest other images need" in few["neighbours"]["absent"]
    assert "at least 2 classes" in few["silhouette"]["absent"]


def test_a_sample_has_the_shares_of_the_classes():
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    sample = stratified_sample(labels, 99, seed=0)
    assert len(set(sample)) == 99
    assert np.bincount(labels[sample]).tolist() == [69, 20, 10]
    assert (np.diff(sample) > 0).all()
    np.testing.assert_array_equal(stratified_sample(labels, 1000, seed=0), np.arange(1000))
