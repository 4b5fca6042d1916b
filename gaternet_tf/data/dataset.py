"""A classification dataset on disk, its splits, and the images held out of its training split."""

import dataclasses
import os

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from gaternet_tf.data.defaults import TEST_SHARE, Defaults
from gaternet_tf.data.folder import Folder
from gaternet_tf.data.preprocessing import decode_rgb
from gaternet_tf.errors import UserError
from gaternet_tf.seeds import derive_seed

PARALLEL_CALLS = os.cpu_count() or 1
"""Number of pictures decoded in parallel."""
LABELS_READ = 16
"""Number of examples read to see whether a split has labels."""
STRATIFIED_IMAGES = 200_000
"""Above this many images, reading all labels takes long, and a plain random choice is as good."""


def untuned() -> tf.data.Options:
    """Returns options without tf.data's autotuning, which every pipeline here uses.

    With autotuning, TensorFlow 2.21 often makes an iterator that ends wait for its tuning thread:
    for as long as the iterator has lived, up to a minute. Our pipelines end at every evaluation.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification dataset on disk.

    Attributes:
      name: as given to `open_dataset`.
      version: of the TFDS builder.
      data_dir: directory of the prepared copy.
      train_split: name of the training split.
      test_split: name of the test split.
      image_shape: (height, width, channels); height and width are None where pictures differ.
      labels: names of the classes.
      defaults: how the dataset is preprocessed and augmented by default.
      builder: the TFDS builder.
      test_mask: bool [stored training images], true for those that are the test split of a dataset
        published without one; None where the test split is stored.
      validation_mask: bool [training images], true for those held out for validation; None for
        none.
    """

    name: str
    version: str
    data_dir: str
    train_split: str
    test_split: str
    image_shape: tuple[int | None, int | None, int]
    labels: tuple[str, ...]
    defaults: Defaults
    builder: tfds.core.DatasetBuilder = dataclasses.field(repr=False)
    test_mask: np.ndarray | None = dataclasses.field(default=None, repr=False)
    validation_mask: np.ndarray | None = dataclasses.field(default=None, repr=False)

    @property
    def training_images(self) -> int:
        """Number of images to train on."""
        return self.size(self.train_split) - self.validation_images

    @property
    def validation_images(self) -> int:
        """Number of images held out of training."""
        return 0 if self.validation_mask is None else int(self.validation_mask.sum())

    @property
    def splits(self) -> list[str]:
        """Names of the splits, sorted."""
        return sorted({*self.builder.info.splits, self.test_split})

    @property
    def remarks(self) -> list[str]:
        """Sentences about the splits that a user should read before training."""
        if isinstance(self.builder, Folder):
            return self.builder.remarks
        if self.test_mask is None:
            return []
        return [
            f"'{self.name}' is published without a test split: '{self.test_split}' is a seeded "
            f"{TEST_SHARE:.0%} of '{self.train_split}', the same in every run and never trained on"
        ]

    def size(self, split: str) -> int:
        """Returns the number of examples in a split."""
        stored, mask = self._stored(split)
        return self.builder.info.splits[stored].num_examples if mask is None else int(mask.sum())

    def _stored(self, split):
        """Returns the stored split that contains `split`, and its mask there (None for all)."""
        if self.test_mask is None or split not in (self.train_split, self.test_split):
            return split, None
        return self.train_split, self.test_mask if split == self.test_split else ~self.test_mask

    @property
    def bytes_per_file(self) -> int:
        """Mean size of a stored training picture."""
        split = self.builder.info.splits[self.train_split]
        return split.num_bytes // max(1, split.num_examples)

    def examples(self, split: str):
        """Returns a `tf.data` of (uint8 image [h, w, c], int64 label), in stored order."""
        return self.files(split).map(
            self.decode, num_parallel_calls=PARALLEL_CALLS, deterministic=True
        )

    def files(self, split: str):
        """Returns a `tf.data` of (encoded picture, int64 label), in stored order, for `decode`."""
        decoders = tfds.decode.PartialDecoding(
            {"image": True, "label": True}, decoders={"image": tfds.decode.SkipDecoding()}
        )
        return self._read(split, decoders).map(lambda example: (example["image"], example["label"]))

    def training_files(self):
        """Returns the `files` to train on."""
        files = self.files(self.train_split)
        return files if self.validation_mask is None else select(files, ~self.validation_mask)

    def validation_files(self):
        """Returns the `files` held out of training."""
        files = self.files(self.train_split)
        return (
            files.take(0) if self.validation_mask is None else select(files, self.validation_mask)
        )

    def _read(self, split, decoders):
        stored, mask = self._stored(split)
        data = self.builder.as_dataset(
            split=stored,
            decoders=decoders,
            shuffle_files=False,
            read_config=tfds.ReadConfig(options=untuned()),
        )
        return data if mask is None else select(data, mask)

    def decode(self, file, label):
        """Maps an element of `files` to (uint8 [height, width, channels], label)."""
        feature = self.builder.info.features["image"]
        # Colour pictures as exported models decode them; TFDS' decoder rounds JPEGs otherwise.
        is_rgb = feature.shape[-1] == 3 and feature.np_dtype == np.uint8
        image = decode_rgb(file) if is_rgb else feature.decode_example(file)
        return tf.ensure_shape(image, feature.shape), label

    def labels_of(self, split: str) -> np.ndarray:
        """Returns the labels of a split, int64, in stored order, without decoding pictures."""
        return np.concatenate(list(self._labels(split).batch(10_000).as_numpy_iterator()))

    def is_labelled(self, split: str) -> bool:
        """Returns whether a split has images with labels, judging by the first ones.

        TFDS stores -1 for every label of a challenge that keeps them secret.
        """
        labels = list(self._labels(split).take(LABELS_READ).as_numpy_iterator())
        return bool(labels) and min(labels) >= 0

    def _labels(self, split):
        features = tfds.decode.PartialDecoding({"label": True})
        return self._read(split, features).map(lambda example: example["label"])

    def describe(self) -> dict:
        """Returns the JSON-ready facts that a run directory records."""
        return {
            "name": self.name,
            "version": self.version,
            "train_split": self.train_split,
            "train_images": self.training_images,
            "validation_images": self.validation_images,
            "test_split": self.test_split,
            "test_images": self.size(self.test_split),
            "test_held_out_of": None if self.test_mask is None else self.train_split,
            "labels": list(self.labels),
            "content": self.builder.builder_config.name if self.builder.builder_config else "",
        }


def select(data, mask: np.ndarray):
    """Returns the elements of a `tf.data` whose entry in `mask`, bool [elements], is true."""
    mask = tf.constant(mask)
    return data.enumerate().filter(lambda index, _: mask[index]).map(lambda _, element: element)


def random_share(
    dataset: Dataset, split: str, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Marks a random `share` of a split's images, bool [images].

    Each class gives the same share, rounded, and keeps at least one image.
    """
    images = dataset.size(split)
    if images > STRATIFIED_IMAGES:
        chosen = rng.permutation(images)[: round(images * share)]
    else:
        labels = dataset.labels_of(split)
        groups = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
        chosen = np.concatenate(
            [group[: min(round(len(group) * share), len(group) - 1)] for group in groups]
        )
    mask = np.zeros(images, bool)
    mask[chosen] = True
    return mask


def hold_out(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Holds a share of the training images out for validation, see `random_share`.

    The choice depends on `seed` and the dataset alone.

    Raises:
      UserError: for a share that is not from 0 to below 1, or too small for a single image.
    """
    if not 0 <= share < 1:
        raise UserError(f"--validation must be a share from 0 to below 1, got {share}")
    if share == 0:
        return dataset
    rng = np.random.default_rng(derive_seed(seed, "validation"))
    mask = random_share(dataset, dataset.train_split, share, rng)
    if not mask.any():
        raise UserError(
            f"--validation={share} holds no image out of the {len(mask)} of '{dataset.name}'; "
            "give a larger share, or 0 for no validation"
        )
    return dataclasses.replace(dataset, validation_mask=mask)
