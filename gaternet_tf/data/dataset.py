"""A classification dataset on disk, its splits, and the images held out of its training split."""

import dataclasses
import os

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from gaternet_tf.data.defaults import Defaults
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


def builder_info(builder, shape, labels: list[str]) -> tfds.core.DatasetInfo:
    """Returns the TFDS description of uint8 pictures of `shape`, each of a class in `labels`."""
    features = {
        "image": tfds.features.Image(shape=shape, dtype=np.uint8),
        "label": tfds.features.ClassLabel(names=labels),
    }
    return tfds.core.DatasetInfo(builder=builder, features=tfds.features.FeaturesDict(features))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification dataset on disk.

    Attributes:
      name: as given to `open_dataset`.
      version: of the TFDS builder.
      image_shape: (height, width, channels); height and width are None where pictures differ.
      labels: names of the classes.
      defaults: how the dataset is preprocessed and augmented by default.
      builder: the TFDS builder.
      remarks: sentences about the splits that a user should read before training.
      test_split: name of the test split.
      masks: of a dataset published without a test, where in the stored training split the splits
        `train` and `test` are, each bool [stored images]; else empty.
      validation_mask: bool [training images], true for those held out for validation; None for
        none.
    """

    name: str
    version: str
    image_shape: tuple[int | None, int | None, int]
    labels: tuple[str, ...]
    defaults: Defaults
    builder: tfds.core.DatasetBuilder = dataclasses.field(repr=False)
    remarks: tuple[str, ...] = ()
    test_split: str = "test"
    masks: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)
    validation_mask: np.ndarray | None = dataclasses.field(default=None, repr=False)

    train_split = "train"

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
        return sorted({*self.builder.info.splits, *self.masks})

    def size(self, split: str) -> int:
        """Returns the number of examples in a split."""
        if split in self.masks:
            return int(self.masks[split].sum())
        return self.builder.info.splits[split].num_examples

    def files(self, split: str):
        """Returns a `tf.data` of (encoded picture, int64 label), in stored order, for `decode`."""
        data = self.builder.as_dataset(
            split=self.train_split if split in self.masks else split,
            decoders=tfds.decode.PartialDecoding(
                {"image": True, "label": True}, decoders={"image": tfds.decode.SkipDecoding()}
            ),
            shuffle_files=False,
            read_config=tfds.ReadConfig(options=untuned()),
        ).map(lambda example: (example["image"], example["label"]))
        return select(data, self.masks[split]) if split in self.masks else data

    def training_files(self):
        """Returns the `files` to train on."""
        files = self.files(self.train_split)
        return files if self.validation_mask is None else select(files, ~self.validation_mask)

    def validation_files(self):
        """Returns the `files` that `hold_out` held out of training."""
        return select(self.files(self.train_split), self.validation_mask)

    def decode(self, file, label):
        """Maps an element of `files` to (uint8 [height, width, channels], label)."""
        feature = self.builder.info.features["image"]
        # Colour pictures as exported models decode them; TFDS' decoder rounds JPEGs otherwise.
        is_rgb = feature.shape[-1] == 3 and feature.np_dtype == np.uint8
        image = decode_rgb(file) if is_rgb else feature.decode_example(file)
        return tf.ensure_shape(image, feature.shape), label

    def examples(self, split: str):
        """Returns a `tf.data` of (uint8 image [h, w, c], int64 label), in stored order."""
        return self.files(split).map(
            self.decode, num_parallel_calls=PARALLEL_CALLS, deterministic=True
        )

    def labels_of(self, split: str) -> np.ndarray:
        """Returns the labels of a split, int64, in stored order, without decoding pictures."""
        labels = self.files(split).map(lambda _, label: label).batch(10_000)
        return np.concatenate(list(labels.as_numpy_iterator()))

    def is_labelled(self, split: str) -> bool:
        """Returns whether a split has images with labels, judging by the first ones.

        TFDS stores -1 for every label of a challenge that keeps them secret.
        """
        labels = [int(label) for _, label in self.files(split).take(LABELS_READ)]
        return bool(labels) and min(labels) >= 0

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
            "test_held_out_of": self.train_split if self.masks else None,
            "labels": list(self.labels),
            "content": self.builder.builder_config.name if self.builder.builder_config else "",
        }


def select(data, mask):
    """Returns the elements of a `tf.data` whose entry in `mask`, bool [elements], is true."""
    mask = tf.constant(mask)
    return data.enumerate().filter(lambda index, _: mask[index]).map(lambda _, element: element)


def random_share(dataset: Dataset, share: float, rng: np.random.Generator) -> np.ndarray:
    """Marks a random `share` of the training split, bool [images].

    Each class gives the same share, rounded, and keeps at least one image.
    """
    images = dataset.size(dataset.train_split)
    if images > STRATIFIED_IMAGES:
        chosen = rng.permutation(images)[: round(images * share)]
    else:
        labels = dataset.labels_of(dataset.train_split)
        groups = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
        chosen = np.concatenate(
            [group[: min(round(len(group) * share), len(group) - 1)] for group in groups]
        )
    mask = np.zeros(images, bool)
    mask[chosen] = True
    return mask


def hold_out(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Holds a share of the training images, 0 to below 1, out for validation, see `random_share`.

    The choice depends on `seed` and the dataset alone.

    Raises:
      UserError: for a share that is too small for a single image.
    """
    if share == 0:
        return dataset
    mask = random_share(dataset, share, np.random.default_rng(derive_seed(seed, "validation")))
    if not mask.any():
        raise UserError(
            f"--validation={share} holds no image out of the {len(mask)} of '{dataset.name}'; "
            "give a larger share, or 0 for no validation"
        )
    return dataclasses.replace(dataset, validation_mask=mask)
