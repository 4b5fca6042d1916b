"""Whether classes separate: on gates that know the class, and on gates that do not."""

import numpy as np
import pytest
from planted_gates import record_of

from gaternet_tf.analysis.separation import separate, stratified_sample
from gaternet_tf.models.gate_map import GateMap, GateSegment

GATES = GateMap([GateSegment(1, 1, 2, 40)])


def planted(images, informative, seed=0):
    """Half cats, half dogs; `informative` gates are on for dogs, the others at random."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 2
    gates = rng.random((images, 40)) < 0.5
    gates[:, :informative] = labels[:, None] == 1
    return record_of(gates, labels, gate_map=GATES)


def separated(record, **options):
    return separate(record, record.rows(slice(None)).sum(axis=0), **options)


def test_classes_that_the_gates_know_are_told_apart():
    record = planted(120, informative=30)
    found = separated(record, perplexity=10)
    near, silhouette = found.document["neighbours"], found.document["silhouette"]
    assert near["accuracy"] == 1.0
    assert near["accuracy_shuffled"] < 0.75
    # Distances within a class are about 5 of 10 noisy gates, between classes 30 more.
    assert silhouette["mean"] == pytest.approx(1 - 5 / 35, abs=0.02)
    assert abs(silhouette["mean_shuffled"]) < 0.05
    cats = record.labels[found.sample] == 0
    middles = [found.points[cats].mean(axis=0), found.points[~cats].mean(axis=0)]
    spread = max(found.points[part].std(axis=0).max() for part in (cats, ~cats))
    assert np.linalg.norm(middles[0] - middles[1]) > 2 * spread


def test_gates_that_know_nothing_are_as_good_as_chance():
    found = separated(planted(200, informative=0), perplexity=10)
    near = found.document["neighbours"]
    assert abs(near["accuracy"] - 0.5) < 0.15
    assert abs(found.document["silhouette"]["mean"]) < 0.02


def test_the_same_seed_gives_the_same_picture():
    record = planted(60, informative=3)
    first, second = (separated(record, perplexity=5, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.points, second.points)
    assert first.document == second.document


def test_fewer_images_than_the_perplexity_is_a_marked_absence():
    found = separated(planted(30, informative=3), perplexity=30)
    assert found.points.shape == (0, 2)
    assert (
        "more than 30 different gate vectors, and there are 30" in found.document["t_sne"]["absent"]
    )
    assert "accuracy" in found.document["neighbours"]


def test_images_with_the_same_gates_stay_together():
    rng = np.random.default_rng(0)
    kinds = rng.random((6, 40)) < 0.5
    which = np.arange(6 * 150) % 6
    found = separated(record_of(kinds[which], which % 2, gate_map=GATES), perplexity=3)
    middles = np.stack([found.points[which == kind].mean(axis=0) for kind in range(6)])
    apart = np.linalg.norm(middles[:, None] - middles[None], axis=-1) + 1e9 * np.eye(6)
    for kind in range(6):
        radius = np.linalg.norm(found.points[which == kind] - middles[kind], axis=1).max()
        assert radius < apart[kind].min() / 2
    assert found.document["t_sne"]["kl_divergence"] >= 0
    assert found.document["distinct_gate_vectors"] == 6


def test_a_single_gate_that_changes_is_a_marked_absence():
    gates = np.zeros((50, 7))
    gates[:, 3] = np.arange(50) % 2
    found = separated(record_of(gates, labels=np.arange(50) % 2), perplexity=1)
    assert "more than 2 different gate vectors" in found.document["t_sne"]["absent"]
    assert found.document["neighbours"]["accuracy"] == 1.0


def test_a_class_of_two_images_has_a_shuffled_silhouette_for_every_seed():
    rng = np.random.default_rng(0)
    labels = np.zeros(300, int)
    labels[:2] = 1
    record = record_of(rng.random((300, 7)) < 0.5, labels)
    for seed in range(5):
        assert "mean_shuffled" in separated(record, seed=seed).document["silhouette"]


def test_gates_that_never_change_are_a_marked_absence():
    found = separated(record_of(np.ones((50, 7)), labels=np.arange(50) % 2))
    for name in ("t_sne", "neighbours", "silhouette"):
        assert "no gate depends on the input" in found.document[name]["absent"]


def test_few_images_and_one_class_are_marked_absences():
    record = record_of(np.eye(7)[:5], labels=np.zeros(5))
    found = separated(record)
    assert "nearest other images need" in found.document["neighbours"]["absent"]
    assert "at least 2 classes" in found.document["silhouette"]["absent"]


def test_a_sample_has_the_shares_of_the_classes():
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    sample = stratified_sample(labels, 99, seed=0)
    assert len(set(sample)) == 99
    assert np.bincount(labels[sample]).tolist() == [69, 20, 10]
    assert (np.diff(sample) > 0).all()
    np.testing.assert_array_equal(stratified_sample(labels, 1000, seed=0), np.arange(1000))
