"""Datasets, all read through TFDS, and the preprocessing of their pictures."""

from gaternet_tf.data.augmentation import Augmentation
from gaternet_tf.data.dataset import Dataset, hold_out
from gaternet_tf.data.defaults import defaults_of
from gaternet_tf.data.pipeline import (
    channel_statistics,
    evaluation_batches,
    picture_batches,
    some_pictures,
    training_batches,
    validation_batches,
)
from gaternet_tf.data.preprocessing import Preprocessing
from gaternet_tf.data.sources import open_dataset

__all__ = [
    "Augmentation",
    "Dataset",
    "Preprocessing",
    "channel_statistics",
    "defaults_of",
    "evaluation_batches",
    "hold_out",
    "open_dataset",
    "picture_batches",
    "some_pictures",
    "training_batches",
    "validation_batches",
]
