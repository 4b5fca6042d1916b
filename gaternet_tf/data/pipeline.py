"""`tf.data` pipelines: shuffled and augmented for training, in order for evaluation."""

import math

import numpy as np
import tensorflow as tf

from gaternet_tf.data.augmentation import Augmentation
from gaternet_tf.data.preprocessing import Preprocessing
from gaternet_tf.data.sources import Dataset
from gaternet_tf.seeds import derive_seed

CACHE_BYTES = 512 * 2**20
SHUFFLE_IMAGES = 50_000
STATISTICS_IMAGES = 10_000


def training_batches(
    dataset: Dataset,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    batch_size: int,
    epochs: range,
    seed: int,
    steps_per_epoch: int | None = None,
):
    """Batches of the training split for each of `epochs`, one epoch after the other.

    Order, crops and flips of an epoch depend on `seed` and on the epoch's number alone: epochs
    differ, a run repeats, and one resumed at epoch 7 sees what an unbroken one would have seen.
    The last examples of an epoch that do not fill a batch are left out of that epoch, so that no
    replica ever gets an empty batch. `steps_per_epoch` leaves out more of them.

    Returns:
      `tf.data` of (float32 [batch_size, height, width, channels], int64 [batch_size]).
    """
    images = dataset.training_images
    examples = _fitted(dataset, dataset.training_examples(), preprocessing)
    examples = _cached_if_small(examples, images, preprocessing)
    base_seed = derive_seed(seed, "data")

    def one_epoch(epoch):
        epoch_seed = tf.random.experimental.stateless_fold_in(
            tf.constant([base_seed, 0], tf.int64), epoch
        )
        # fold_in leaves the first half of a seed alike in all epochs: draw shuffle's one number.
        order_seed = tf.random.stateless_uniform([], epoch_seed, None, None, tf.int64)
        data = examples.shuffle(
            min(images, SHUFFLE_IMAGES), seed=order_seed, reshuffle_each_iteration=False
        )
        data = data.batch(batch_size, drop_remainder=True)
        if steps_per_epoch is not None:
            data = data.take(steps_per_epoch)
        return data.enumerate().map(
            lambda step, batch: (
                tf.random.experimental.stateless_fold_in(epoch_seed, step),
                *batch,
            )
        )

    def augment(batch_seed, batch, labels):
        return preprocessing.normalize(augmentation(batch, batch_seed)), labels

    data = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(one_epoch)
    data = data.map(augment, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return data.prefetch(tf.data.AUTOTUNE)


def evaluation_batches(dataset: Dataset, preprocessing: Preprocessing, batch_size: int):
    """Batches of the whole test split in stored order; the last one may be smaller."""
    examples = _fitted(dataset, dataset.examples(dataset.test_split), preprocessing)
    return _in_order(examples, preprocessing, batch_size)


def validation_batches(dataset: Dataset, preprocessing: Preprocessing, batch_size: int):
    """Batches of the images held out of training, in stored order; the last may be smaller."""
    examples = _fitted(dataset, dataset.validation_examples(), preprocessing)
    examples = _cached_if_small(examples, dataset.validation_images, preprocessing)
    return _in_order(examples, preprocessing, batch_size)


def _in_order(examples, preprocessing, batch_size):
    data = examples.batch(batch_size).map(
        lambda images, labels: (preprocessing.normalize(images), labels),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return data.prefetch(tf.data.AUTOTUNE)


def channel_statistics(dataset: Dataset, shape: tuple[int, int, int]):
    """(mean, std), one number a channel on the 0-to-1 scale, of the first training images."""
    raw = Preprocessing(*shape, mean=(0.0,) * shape[-1], std=(1.0,) * shape[-1])
    data = _fitted(dataset, dataset.training_examples(), raw).take(STATISTICS_IMAGES)
    count = 0
    total = squares = np.zeros(shape[-1])
    for images, _ in data.batch(1000):
        values = images.numpy().reshape(-1, shape[-1]) / 255.0
        count += len(values)
        total = total + values.sum(axis=0)
        squares = squares + (values**2).sum(axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    # A channel that never changes is left as it is instead of divided by 0.
    return (
        tuple(round(float(value), 4) for value in mean),
        tuple(round(float(value), 4) or 1.0 for value in std),
    )


def _fitted(dataset, examples, preprocessing):
    """Examples with the network's picture size."""
    if dataset.image_shape == preprocessing.shape:
        return examples
    return examples.map(
        lambda image, label: (preprocessing.fit(image), label),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _cached_if_small(examples, images, preprocessing):
    """Keeps a set in memory that takes little of it."""
    return examples.cache() if images * math.prod(preprocessing.shape) <= CACHE_BYTES else examples
