"""Training batches differ between epochs and repeat with the seed; evaluation sees everything."""

import numpy as np

from gaternet_tf.data import (
    Augmentation,
    Preprocessing,
    channel_statistics,
    evaluation_batches,
    training_batches,
)

BATCH = 128
STEPS = 1437 // BATCH
RAW = Preprocessing(8, 8, 1, (0.0,), (1.0,))


def two_epochs(digits, augmentation):
    data = training_batches(digits, RAW, augmentation, BATCH, range(2), 0)
    rows = [image.tobytes() for images, _ in data.as_numpy_iterator() for image in images]
    return rows[: STEPS * BATCH], rows[STEPS * BATCH :]


def test_epochs_differ_in_order_and_crops_but_not_in_images(digits):
    known = {
        (image / np.float32(255)).tobytes()
        for image, _ in digits.examples("train").as_numpy_iterator()
    }
    first, second = two_epochs(digits, Augmentation())
    assert set(first) <= known
    # 1,408 of 1,437 are drawn; but for a few equal pictures, no image twice.
    assert len(set(first)) > 1400
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10

    # The order depends on seed and epoch alone, so the crops can be lined up with the originals.
    crops, others = two_epochs(digits, Augmentation(padding=2))
    moved, again = dict(zip(first, crops, strict=True)), dict(zip(second, others, strict=True))
    both = moved.keys() & again.keys()
    # One in 25 gets the same of the 25 crops again.
    assert 0.01 < sum(moved[image] == again[image] for image in both) / len(both) < 0.1


def test_evaluation_sees_every_test_image_once_in_order(digits):
    batches = list(evaluation_batches(digits, RAW, 250))
    assert [len(labels) for _, labels in batches] == [250, 110]
    stored = [int(label) for _, label in digits.examples("test")]
    assert np.concatenate([labels for _, labels in batches]).tolist() == stored


def test_channel_statistics_equal_numpys(digits):
    images = np.stack([image for image, _ in digits.examples("train").as_numpy_iterator()]) / 255
    mean, std = channel_statistics(digits, RAW)
    np.testing.assert_allclose((*mean, *std), (images.mean(), images.std()), atol=5e-5)


def test_the_parts_of_several_machines_are_the_batches_of_one(digits):
    augmentation = Augmentation(padding=1, flip=True, resized_crop=True)

    def batches(**part):
        data = training_batches(digits, RAW, augmentation, 128, range(3, 4), 0, 4, **part)
        return list(data.as_numpy_iterator())

    halves = [batches(worker=worker, workers=2) for worker in range(2)]
    for whole, first, second in zip(batches(), *halves, strict=True):
        for index in range(2):
            joined = np.concatenate([first[index], second[index]])
            np.testing.assert_array_equal(joined, whole[index])


def test_a_resumed_run_sees_what_an_unbroken_one_would_and_another_seed_does_not(digits):
    def images(epochs, seed=0, **start):
        crops = Augmentation(padding=1, flip=True)
        data = training_batches(digits, RAW, crops, BATCH, epochs, seed, **start)
        return np.stack([images for images, _ in data])

    unbroken = images(range(3))
    assert len(unbroken) == 3 * STEPS
    resumed = images(range(1, 3), first_step=7)
    np.testing.assert_array_equal(unbroken[STEPS + 7 :], resumed)
    assert (resumed != images(range(1, 3), seed=1, first_step=7)).any()


def test_no_pipeline_is_autotuned(digits):
    # An iterator with a tuning thread may take up to a minute to end; see `untuned`.
    pipelines = [
        digits.files("test"),
        training_batches(digits, RAW, Augmentation(), BATCH, range(2), 0),
        evaluation_batches(digits, RAW, BATCH),
    ]
    assert [data.options().autotune.enabled for data in pipelines] == [False] * len(pipelines)
