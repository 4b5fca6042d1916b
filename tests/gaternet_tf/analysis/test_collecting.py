"""Running over real pictures a network whose gates are known for each of them."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from gaternet_tf import UserError
from gaternet_tf.analysis import collecting
from gaternet_tf.analysis.collecting import (
    CHANGES,
    STRONGEST,
    agreement,
    collect,
    flip,
    noise,
    shift,
    thumbnails,
)
from gaternet_tf.analysis.networks import Network
from gaternet_tf.analysis.separation import stratified_sample
from gaternet_tf.data import Preprocessing
from gaternet_tf.macs import Macs
from gaternet_tf.models.gate_map import GateMap, GateSegment


def sums(images):
    """Left half, right half and a constant: the gates' strengths, float32 [n, 3]."""
    pixels = tf.cast(images[..., 0], tf.float32)
    left = tf.reduce_sum(pixels[:, :, :4], (1, 2))
    right = tf.reduce_sum(pixels[:, :, 4:], (1, 2))
    return tf.stack([left - right, right - left, tf.ones_like(left)], axis=1)


def predict(images):
    """One of two classes, by the first gate."""
    strengths = sums(images)
    return tf.one_hot(tf.cast(strengths[:, 0] > 0, tf.int32), 10) * 0.9, strengths


NETWORK = Network(
    predict=predict,
    gate_map=GateMap([GateSegment("one", "one", 2), GateSegment("two", "two", 1)]),
    labels=[str(number) for number in range(10)],
    preprocessing=Preprocessing(8, 8, 1, (0.0,), (1.0,)),
    dataset={},
    config={},
    macs=Macs([]),
    training=[],
    source={"path": "a network"},
    strength="a sum",
)


@pytest.fixture(scope="module", name="pictures")
def pictures_fixture(digits):
    return np.stack([image.numpy() for image, _ in digits.examples("test")])


@pytest.fixture(scope="module", name="collected")
def collected_fixture(digits):
    return collect(NETWORK, digits, "test", 50)


def test_gates_predictions_and_labels_in_stored_order(collected, pictures, digits):
    strengths = sums(pictures).numpy()
    record, _ = collected
    np.testing.assert_array_equal(record.rows(slice(None)), strengths > 0)
    np.testing.assert_array_equal(record.predictions, strengths[:, 0] > 0)
    np.testing.assert_array_equal(record.labels, digits.labels_of("test"))
    np.testing.assert_allclose(record.confidences, 0.9)


def test_the_pictures_that_switch_a_gate_most(collected, pictures):
    strengths = sums(pictures).numpy()
    _, (off, on) = collected
    for gate in (0, 1):
        best = np.sort(strengths[:, gate])[::-1][:STRONGEST]
        np.testing.assert_array_equal(strengths[on[:, gate], gate], best)
        least = np.sort(strengths[:, gate])[:STRONGEST]
        np.testing.assert_array_equal(strengths[off[:, gate], gate], least)
    # A gate that is never off has no picture that switches it off.
    assert (off[:, 2] == -1).all()


def test_agreement_under_small_changes(collected, pictures, digits, monkeypatch):
    record, _ = collected
    monkeypatch.setattr(collecting, "CHANGED_IMAGES", 120)
    chosen = stratified_sample(record.labels, 120, seed=0)
    before = sums(pictures[chosen]).numpy() > 0
    shares = agreement(NETWORK, digits, "test", 50, record, np.array([0, 1]), 0)
    assert list(shares) == ["flip", "shift", "noise"]
    for change in CHANGES:
        after = sums(change(tf.constant(pictures[chosen]), chosen, 0)).numpy() > 0
        same = before == after
        share = shares[change.__name__]
        assert share["gates"] == pytest.approx(same.mean())
        assert share["input_dependent"] == pytest.approx(same[:, :2].mean())
        assert share["images_unchanged"] == pytest.approx(same.all(axis=1).mean())
        assert share["predictions"] == pytest.approx(same[:, 0].mean())
    assert shares["flip"]["input_dependent"] < 0.2 < shares["shift"]["input_dependent"]


def test_changed_pictures_are_what_they_say(pictures):
    images = tf.constant(pictures[:3])
    np.testing.assert_array_equal(flip(images, None, 0), pictures[:3, :, ::-1])
    shifted = shift(images, None, 0).numpy()
    np.testing.assert_array_equal(shifted[:, :, 1:], pictures[:3, :, :-1])
    np.testing.assert_array_equal(shifted[:, :, 0], pictures[:3, :, 0])
    grey = np.full((2, 64, 64, 1), 128, np.uint8)
    noisy = noise(tf.constant(grey), np.array([5, 6]), 0).numpy().astype(float)
    assert noisy.std() == pytest.approx(8.0, rel=0.05)
    assert (noisy[0] != noisy[1]).any()


def test_small_pictures_are_those_asked_for(pictures, digits):
    chosen = np.array([3, 4, 359])
    np.testing.assert_array_equal(thumbnails(NETWORK, digits, "test", chosen), pictures[chosen])
    larger = dataclasses.replace(
        NETWORK, preprocessing=Preprocessing(64, 96, 3, (0,) * 3, (1,) * 3)
    )
    assert thumbnails(larger, digits, "test", chosen).shape == (3, 21, 32, 3)


def test_numbers_that_are_not_finite_are_refused(digits):
    def broken(images):
        probabilities, strengths = predict(images)
        return probabilities, tf.where(images[:, 4, 4] > 0, np.nan, strengths)

    network = dataclasses.replace(NETWORK, predict=broken)
    with pytest.raises(UserError, match="finite numbers, and that of 'a network' does not"):
        collect(network, digits, "test", 250)


def test_a_split_without_labels_is_refused(digits, monkeypatch):
    monkeypatch.setattr(type(digits), "is_labelled", lambda self, split: False)
    with pytest.raises(UserError, match="split 'test' of 'digits' has none"):
        collect(NETWORK, digits, "test", 250)
