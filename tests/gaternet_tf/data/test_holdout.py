"""The validation split: stratified, seeded, and nothing is in both."""

import numpy as np
import pytest

from gaternet_tf import UserError
from gaternet_tf.data import (
    Augmentation,
    Preprocessing,
    hold_out,
    training_batches,
    validation_batches,
)
from gaternet_tf.data import stratification as module

RAW = Preprocessing(8, 8, 1, (0.0,), (1.0,))


def rows(examples):
    return sorted(image.numpy().tobytes() for image, _ in examples)


def pixels(batches):
    images = np.concatenate([images for images, _ in batches])
    return sorted(image.tobytes() for image in np.rint(images * 255).astype(np.uint8))


def test_every_image_trains_or_validates(digits):
    held = hold_out(digits, 0.1, seed=0)
    training, validation = (
        rows(held.training_files().map(held.decode)),
        rows(held.validation_files().map(held.decode)),
    )
    assert (len(training), len(validation)) == (held.training_images, held.validation_images)
    assert sorted(training + validation) == rows(digits.examples("train"))


def test_every_class_gives_its_share(digits):
    held = hold_out(digits, 0.2, seed=0)
    labels = digits.labels_of("train")
    np.testing.assert_array_equal(
        np.bincount(labels[held.held_out]), np.round(np.bincount(labels) * 0.2)
    )


def test_the_choice_repeats_with_the_seed_and_differs_between_seeds(digits):
    first, again, other = (hold_out(digits, 0.1, seed).held_out for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_large_set_is_not_read_for_it(digits, monkeypatch):
    monkeypatch.setattr(module, "STRATIFIED_IMAGES", 1000)
    monkeypatch.setattr(type(digits), "labels_of", None)
    assert hold_out(digits, 0.1, seed=0).validation_images == 144


def test_labels_are_in_the_order_of_the_examples(digits):
    in_order = [int(label) for _, label in digits.examples("train")]
    assert digits.labels_of("train").tolist() == in_order


def test_batches_are_of_the_right_part(digits):
    held = hold_out(digits, 0.1, seed=0)
    batches = list(validation_batches(held, RAW, 100))
    assert sum(len(labels) for _, labels in batches) == held.validation_images == 143
    assert pixels(batches) == rows(held.validation_files().map(held.decode))
    train = training_batches(held, RAW, Augmentation(), 32, range(1), 0)
    # No two of scikit-learn's digits are alike to the last pixel.
    assert not set(pixels(train)) & set(rows(held.validation_files().map(held.decode)))


def test_no_validation_holds_nothing_out(digits):
    none = hold_out(digits, 0.0, seed=0)
    assert (none.training_images, none.validation_images) == (1437, 0)
    assert list(none.validation_files()) == []


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(digits, share):
    with pytest.raises(UserError, match="share from 0 to below 1"):
        hold_out(digits, share, seed=0)
