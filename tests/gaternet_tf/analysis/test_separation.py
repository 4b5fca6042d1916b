"""How well classes separate: on gates that know the class, and on gates that do not."""

import numpy as np
import pytest
from planted_analysis import record_of

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


def test_classes_that_the_gates_know_are_apart_and_the_picture_repeats():
    record = planted(120, informative=30)
    result = separated(record, perplexity=10)
    again = separated(record, perplexity=10)
    np.testing.assert_array_equal(result.points, again.points)
    assert result.document == again.document
    near, silhouette = result.document["neighbours"], result.document["silhouette"]
    assert near["accuracy"] == 1.0
    assert near["accuracy_shuffled"] < 0.75
    # Distances within a class are about 5 of 10 noisy gates, between classes 30 more.
    assert silhouette["mean"] == pytest.approx(1 - 5 / 35, abs=0.02)
    assert abs(silhouette["mean_shuffled"]) < 0.05
    cats = record.labels[result.sample] == 0
    middles = [result.points[cats].mean(axis=0), result.points[~cats].mean(axis=0)]
    spread = max(result.points[part].std(axis=0).max() for part in (cats, ~cats))
    assert np.linalg.norm(middles[0] - middles[1]) > 2 * spread


def test_gates_that_know_nothing_are_as_good_as_chance():
    result = separated(planted(200, informative=0), perplexity=500)
    near = result.document["neighbours"]
    assert abs(near["accuracy"] - 0.5) < 0.15
    assert abs(result.document["silhouette"]["mean"]) < 0.02


def test_fewer_images_than_the_perplexity_give_no_picture():
    result = separated(planted(30, informative=3), perplexity=30)
    assert result.points.shape == (0, 2)
    assert (
        "more than 30 different gate vectors, and there are 30"
        in result.document["t_sne"]["absent"]
    )
    assert "accuracy" in result.document["neighbours"]


def test_images_with_the_same_gates_stay_together():
    rng = np.random.default_rng(0)
    kinds = rng.random((6, 40)) < 0.5
    which = np.arange(6 * 150) % 6
    result = separated(record_of(kinds[which], which % 2, gate_map=GATES), perplexity=3)
    middles = np.stack([result.points[which == kind].mean(axis=0) for kind in range(6)])
    apart = np.linalg.norm(middles[:, None] - middles[None], axis=-1) + 1e9 * np.eye(6)
    for kind in range(6):
        radius = np.linalg.norm(result.points[which == kind] - middles[kind], axis=1).max()
        assert radius < apart[kind].min() / 2
    assert result.document["t_sne"]["kl_divergence"] >= 0
    assert result.document["distinct_gate_vectors"] == 6


def test_a_single_gate_that_changes_gives_no_picture():
    gates = np.zeros((50, 7))
    gates[:, 3] = np.arange(50) % 2
    result = separated(record_of(gates, labels=np.arange(50) % 2), perplexity=1)
    assert "more than 2 different gate vectors" in result.document["t_sne"]["absent"]
    assert result.document["neighbours"]["accuracy"] == 1.0


def test_a_class_of_two_images_has_a_shuffled_silhouette_for_every_seed():
    rng = np.random.default_rng(0)
    labels = np.zeros(300, int)
    labels[:2] = 1
    record = record_of(rng.random((300, 7)) < 0.5, labels)
    for seed in range(5):
        assert (
            "mean_shuffled" in separated(record, perplexity=500, seed=seed).document["silhouette"]
        )


def test_gates_that_never_change_separate_nothing():
    result = separated(record_of(np.ones((50, 7)), labels=np.arange(50) % 2))
    for name in ("t_sne", "neighbours", "silhouette"):
        assert "no gate depends on the input" in result.document[name]["absent"]


def test_too_few_images_or_classes_are_explained():
    record = record_of(np.eye(7)[:5], labels=np.zeros(5))
    result = separated(record)
    assert "nearest other images need" in result.document["neighbours"]["absent"]
    assert "at least 2 classes" in result.document["silhouette"]["absent"]


def test_a_sample_has_the_shares_of_the_classes():
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    sample = stratified_sample(labels, 99, seed=0)
    assert len(set(sample)) == 99
    assert np.bincount(labels[sample]).tolist() == [69, 20, 10]
    assert (np.diff(sample) > 0).all()
    np.testing.assert_array_equal(stratified_sample(labels, 1000, seed=0), np.arange(1000))
