"""`tf.data` pipelines: shuffled and augmented for training, in order for evaluation."""

import math

import numpy as np
import tensorflow as tf

from gaternet_tf.data.augmentation import Augmentation
from gaternet_tf.data.dataset import PARALLEL_CALLS, Dataset, select, untuned
from gaternet_tf.data.preprocessing import Preprocessing
from gaternet_tf.errors import UserError
from gaternet_tf.seeds import derive_seed

CACHE_BYTES = 512 * 2**20
"""Size of the pictures of the largest dataset kept in memory."""
SHUFFLE_BYTES = 2**30
"""Size of the shuffle buffer."""
PARALLEL_BATCHES = min(PARALLEL_CALLS, 8)
"""Batches cropped and normalised in parallel; each holds its pictures as float32."""
READY_BATCHES = 2
"""Batches to prefetch."""
STATISTICS_IMAGES = 10_000
"""Images that `channel_statistics` reads at most."""


def training_batches(
    dataset: Dataset,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    batch_size: int,
    epochs: range,
    seed: int,
    steps_per_epoch: int | None = None,
    first_step: int = 0,
    worker: int = 0,
    workers: int = 1,
):
    """Returns the batches of the training split for each of `epochs`, one epoch after the other.

    Order, crops and flips of an epoch depend on `seed` and on the epoch's number alone: epochs
    differ, a run repeats, and a run resumed at epoch 7 sees the batches that an unbroken one sees.
    Examples at the end of an epoch that do not fill a batch are left out of it, so that no replica
    ever gets an empty batch.

    Small datasets are decoded once and kept in memory. Of large ones, and where pictures are cut in
    their own size, the files are shuffled and then decoded.

    Args:
      dataset: the dataset.
      preprocessing: size and normalisation of the pictures.
      augmentation: random crops and flips.
      batch_size: images in a batch of all machines together.
      epochs: numbers of the epochs.
      seed: of order, crops and flips.
      steps_per_epoch: batches in an epoch; None for as many as the images fill.
      first_step: first batch of the first epoch, for a run stopped in the middle of it.
      worker: number of this machine, from 0.
      workers: number of machines; each gets its part of every batch.

    Returns:
      `tf.data` of (float32 [batch_size / workers, height, width, channels], int64 [batch_size /
      workers]).
    """
    images = dataset.training_images
    examples = dataset.training_files()
    example_bytes = math.prod(preprocessing.shape)
    cached = not augmentation.resized_crop and images * example_bytes <= CACHE_BYTES
    if cached:
        examples = _pictures(dataset, examples, preprocessing).cache()
    else:
        stored = dataset.builder.info.splits[dataset.train_split]
        example_bytes = max(1, stored.num_bytes // stored.num_examples)
    shuffled = min(images, SHUFFLE_BYTES // example_bytes)
    base_seed = derive_seed(seed, "data")
    part = batch_size // workers
    fold_in = tf.random.experimental.stateless_fold_in
    steps = steps_per_epoch or images // batch_size

    def decode(seed, file, label):
        image, label = dataset.decode(file, label)
        if augmentation.resized_crop:
            return preprocessing.scale(augmentation.cut(image, seed)), label
        return preprocessing.fit(image), label

    def one_epoch(epoch):
        epoch_seed = fold_in(tf.constant([base_seed, 0], tf.int64), epoch)
        # fold_in leaves the first half of a seed alike in all epochs: draw shuffle's one number.
        order_seed = tf.random.stateless_uniform([], epoch_seed, None, None, tf.int64)
        data = examples.shuffle(shuffled, seed=order_seed, reshuffle_each_iteration=False)
        start = tf.where(epoch == epochs.start, tf.constant(first_step, tf.int64), 0)
        data = data.skip(start * batch_size).take((steps - start) * batch_size)
        places = data.enumerate(start * batch_size)
        if workers > 1:
            places = places.filter(lambda place, _: place % batch_size // part == worker)
        if cached:
            data = places.map(lambda _, example: example)
        else:
            cut_seed = tf.random.experimental.stateless_split(epoch_seed, 2)[1]
            data = places.map(
                lambda place, example: decode(fold_in(cut_seed, place), *example),
                num_parallel_calls=PARALLEL_CALLS,
                deterministic=True,
            )
        return (
            data.batch(part, drop_remainder=True)
            .enumerate(start)
            .map(lambda step, batch: (fold_in(epoch_seed, step), *batch))
        )

    def augment(batch_seed, batch, labels):
        batch = augmentation(batch, batch_seed, worker * part, batch_size)
        return preprocessing.normalize(batch), labels

    data = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(one_epoch)
    data = data.map(augment, num_parallel_calls=PARALLEL_BATCHES, deterministic=True)
    return data.prefetch(READY_BATCHES).with_options(untuned())


def evaluation_batches(
    dataset: Dataset, preprocessing: Preprocessing, batch_size: int, split: str | None = None
):
    """Returns the batches of a split (the test split), in stored order; the last may be smaller.

    Raises:
      UserError: for a split that the dataset does not have.
    """
    return _normalized(picture_batches(dataset, preprocessing, batch_size, split), preprocessing)


def picture_batches(
    dataset: Dataset, preprocessing: Preprocessing, batch_size: int, split: str | None = None
):
    """Returns the same before normalisation: uint8 [batch, height, width, channels].

    Raises:
      UserError: for a split that the dataset does not have.
    """
    if split is not None and split not in dataset.splits:
        raise UserError(
            f"a split of '{dataset.name}' must be one of {', '.join(dataset.splits)}, got '{split}'"
        )
    pictures = _pictures(dataset, dataset.files(split or dataset.test_split), preprocessing)
    return pictures.batch(batch_size).prefetch(READY_BATCHES)


def some_pictures(dataset: Dataset, preprocessing: Preprocessing, split: str, chosen: np.ndarray):
    """Returns a `tf.data` of the pictures of a split with these indices, ascending.

    They are uint8 [height, width, channels].
    """
    mask = np.zeros(dataset.size(split), bool)
    mask[chosen] = True
    pictures = _pictures(dataset, select(dataset.files(split), mask), preprocessing)
    return pictures.map(lambda picture, _: picture)


def validation_batches(dataset: Dataset, preprocessing: Preprocessing, batch_size: int):
    """Returns the batches held out of training, in stored order; the last may be smaller."""
    pictures = _pictures(dataset, dataset.validation_files(), preprocessing)
    if dataset.validation_images * math.prod(preprocessing.shape) <= CACHE_BYTES:
        pictures = pictures.cache()
    return _normalized(pictures.batch(batch_size), preprocessing)


def _normalized(batches, preprocessing):
    data = batches.map(
        lambda images, labels: (preprocessing.normalize(images), labels),
        num_parallel_calls=PARALLEL_BATCHES,
        deterministic=True,
    )
    return data.prefetch(READY_BATCHES)


def channel_statistics(dataset: Dataset, preprocessing: Preprocessing):
    """Measures (mean, std) of the first training images, a number a channel on the 0-to-1 scale.

    Of `preprocessing` only the picture size is used.
    """
    channels = preprocessing.channels
    pictures = _pictures(dataset, dataset.training_files(), preprocessing).take(STATISTICS_IMAGES)
    count = 0
    total = squares = np.zeros(channels)
    for images, _ in pictures.batch(100):
        values = images.numpy().reshape(-1, channels) / 255.0
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


def _pictures(dataset, files, preprocessing):
    """Decodes files to pictures of the network's size, uint8, and their labels."""

    def picture(file, label):
        image, label = dataset.decode(file, label)
        return preprocessing.fit(image), label

    return files.map(picture, num_parallel_calls=PARALLEL_CALLS, deterministic=True)
