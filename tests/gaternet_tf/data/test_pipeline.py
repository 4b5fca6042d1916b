"""Training batches differ between epochs and repeat with the seed; evaluation sees everything."""

import numpy as np
import pytest

from gaternet_tf.data import (
    Augmentation,
    Preprocessing,
    channel_statistics,
    evaluation_batches,
    picture_batches,
    training_batches,
    validation_batches,
)

BATCH = 128
STEPS = 1437 // BATCH
RAW = Preprocessing(8, 8, 1, (0.0,), (1.0,))


def epochs(digits, numbers, seed=0, augmentation=Augmentation()):  # noqa: B008 - frozen
    data = training_batches(digits, RAW, augmentation, BATCH, numbers, seed)
    images = np.stack([batch.numpy() for batch, _ in data])
    return images.reshape(len(numbers), STEPS * BATCH, 8, 8, 1)


@pytest.fixture(scope="module")
def two_epochs(digits):
    return epochs(digits, range(2))


def rows(images):
    return [image.tobytes() for image in images]


def test_every_epoch_has_another_order_of_the_same_images(two_epochs, digits):
    known = {
        (image.numpy() / np.float32(255)).astype(np.float32).tobytes()
        for image, _ in digits.examples("train")
    }
    first, second = map(rows, two_epochs)
    assert set(first) <= known
    # 1,408 of 1,437 are drawn; but for a few equal pictures, no image twice.
    assert len(set(first)) > 1400
    assert first != second
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


def test_a_seed_repeats_the_run_and_another_does_not(two_epochs, digits):
    np.testing.assert_array_equal(two_epochs, epochs(digits, range(2)))
    assert (two_epochs != epochs(digits, range(2), seed=1)).any()


def test_the_same_image_is_cropped_differently_in_each_epoch(two_epochs, digits):
    # The order depends on seed and epoch alone, so the crops can be lined up with the originals.
    cropped = epochs(digits, range(2), augmentation=Augmentation(padding=2))
    moved = []
    for plain, crops in zip(two_epochs, cropped, strict=True):
        by_image = {}
        for image, crop in zip(rows(plain), rows(crops), strict=True):
            by_image[image] = crop
        moved.append(by_image)
    both = moved[0].keys() & moved[1].keys()
    assert len(both) > 1300
    same = sum(moved[0][image] == moved[1][image] for image in both)
    # One in 25 gets the same of the 25 crops again.
    assert 0.01 < same / len(both) < 0.1


def test_training_batches_are_always_full(digits):
    data = training_batches(digits, RAW, Augmentation(), 1000, range(2), 0)
    assert [len(labels) for _, labels in data] == [1000, 1000]


def test_evaluation_sees_every_test_image_once_in_order(digits):
    batches = list(evaluation_batches(digits, RAW, 250))
    assert [len(labels) for _, labels in batches] == [250, 110]
    stored = [int(label) for _, label in digits.examples("test")]
    assert np.concatenate([labels for _, labels in batches]).tolist() == stored


def test_channel_statistics_equal_numpys(digits):
    images = np.stack([image.numpy() for image, _ in digits.examples("train")]) / 255
    mean, std = channel_statistics(digits, RAW)
    np.testing.assert_allclose((*mean, *std), (images.mean(), images.std()), atol=5e-5)


def test_pictures_of_another_size_are_fitted(digits):
    larger = Preprocessing(12, 10, 3, (0.0,) * 3, (1.0,) * 3)
    images, _ = next(iter(evaluation_batches(digits, larger, 4)))
    assert images.shape == (4, 12, 10, 3)


@pytest.mark.parametrize("resized_crop", [False, True])
def test_the_parts_of_several_machines_are_the_batches_of_one(digits, resized_crop):
    augmentation = Augmentation(padding=1, flip=True, resized_crop=resized_crop)

    def batches(**part):
        data = training_batches(digits, RAW, augmentation, 128, range(3, 4), 0, **part)
        return list(data.as_numpy_iterator())

    halves = [batches(worker=worker, workers=2) for worker in range(2)]
    assert len(halves[0]) == STEPS
    for whole, first, second in zip(batches(), *halves, strict=True):
        for index in range(2):
            joined = np.concatenate([first[index], second[index]])
            np.testing.assert_array_equal(joined, whole[index])


def test_a_resumed_run_sees_what_an_unbroken_one_would(digits):
    def images(epochs, **start):
        crops = Augmentation(padding=1, flip=True)
        data = training_batches(digits, RAW, crops, BATCH, epochs, 0, **start)
        return np.stack([images for images, _ in data])

    unbroken = images(range(4))
    assert len(unbroken) == 4 * STEPS
    resumed = images(range(2, 4), first_step=7)
    np.testing.assert_array_equal(unbroken[2 * STEPS + 7 :], resumed)


def test_no_pipeline_is_autotuned(digits):
    # An iterator with a tuning thread may take up to a minute to end; see `untuned`.
    pipelines = [
        digits.files("test"),
        training_batches(digits, RAW, Augmentation(), BATCH, range(2), 0),
        evaluation_batches(digits, RAW, BATCH),
        picture_batches(digits, RAW, BATCH),
        validation_batches(digits, RAW, BATCH),
    ]
    assert [data.options().autotune.enabled for data in pipelines] == [False] * len(pipelines)
