"""Opens a dataset by name. Every dataset is a TFDS dataset."""

import dataclasses
import os
import pathlib
import re
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from gaternet_tf.data.defaults import Defaults, defaults_of
from gaternet_tf.data.digits import Digits
from gaternet_tf.data.folder import Folder
from gaternet_tf.data.idx import Idx
from gaternet_tf.data.preprocessing import decode_rgb
from gaternet_tf.errors import UserError

PARALLEL_CALLS = os.cpu_count() or 1
"""Pictures that are decoded at the same time."""
REACH_SECONDS = 5

IDX = "idx:"
FOLDER = "folder:"
TFDS_NAME = re.compile(r"(?P<set>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>\d+\.\d+\.\d+))?")


def untuned() -> tf.data.Options:
    """Options without tf.data's autotuning, which every pipeline here has.

    With it, TensorFlow 2.21 often lets an iterator that ends wait until its tuning thread wakes up:
    for as long as the iterator has lived, up to a minute. Our pipelines end at every evaluation.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification set on disk. `image_shape` holds None where its pictures differ.

    `held_out`, bool [training images], marks those that validate instead of train; None for none.
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
    held_out: np.ndarray | None = dataclasses.field(default=None, repr=False)

    @property
    def training_images(self) -> int:
        """Number of images that train."""
        return self.size(self.train_split) - self.validation_images

    @property
    def validation_images(self) -> int:
        """Number of images held out of training."""
        return 0 if self.held_out is None else int(self.held_out.sum())

    def size(self, split: str) -> int:
        """Number of examples in a split."""
        return self.builder.info.splits[split].num_examples

    @property
    def bytes_per_file(self) -> int:
        """Size of a training picture as it is stored, on average."""
        split = self.builder.info.splits[self.train_split]
        return split.num_bytes // max(1, split.num_examples)

    def examples(self, split: str):
        """`tf.data` of (uint8 image [h, w, c], int64 label), in stored order."""
        return self.files(split).map(
            self.decode, num_parallel_calls=PARALLEL_CALLS, deterministic=True
        )

    def files(self, split: str):
        """`tf.data` of (encoded picture, int64 label), in stored order, for `decode`."""
        return self._files(split)

    def training_files(self):
        """The files that train, in stored order."""
        held_out = self.held_out
        return self._files(self.train_split, None if held_out is None else ~held_out)

    def validation_files(self):
        """The files held out of training, in stored order."""
        if self.held_out is None:
            return self._files(self.train_split).take(0)
        return self._files(self.train_split, self.held_out)

    def _files(self, split, wanted=None):
        """The files of a split, or those whose entry in `wanted` is true."""
        decoders = tfds.decode.PartialDecoding(
            {"image": True, "label": True}, decoders={"image": tfds.decode.SkipDecoding()}
        )
        data = self._read(split, decoders)
        if wanted is not None:
            mask = tf.constant(wanted)
            data = data.enumerate().filter(lambda index, _: mask[index])
            data = data.map(lambda _, example: example)
        return data.map(lambda example: (example["image"], example["label"]))

    def _read(self, split, decoders):
        return self.builder.as_dataset(
            split=split,
            decoders=decoders,
            shuffle_files=False,
            read_config=tfds.ReadConfig(options=untuned()),
        )

    def decode(self, file, label):
        """(encoded picture, label) of `files` to (uint8 [height, width, channels], label)."""
        feature = self.builder.info.features["image"]
        # Colour pictures as exported models decode them; TFDS' decoder rounds JPEGs otherwise.
        own = feature.shape[-1] == 3 and feature.np_dtype == np.uint8
        image = decode_rgb(file) if own else feature.decode_example(file)
        return tf.ensure_shape(image, feature.shape), label

    def labels_of(self, split: str) -> np.ndarray:
        """int64 labels of a split, in stored order; no picture is decoded."""
        features = tfds.decode.PartialDecoding({"label": True})
        batches = self._read(split, features).map(lambda example: example["label"]).batch(10_000)
        return np.concatenate(list(batches.as_numpy_iterator()))

    def describe(self) -> dict:
        """The JSON-ready facts that a run directory records."""
        return {
            "name": self.name,
            "version": self.version,
            "train_split": self.train_split,
            "train_images": self.training_images,
            "validation_images": self.validation_images,
            "test_split": self.test_split,
            "test_images": self.size(self.test_split),
            "labels": list(self.labels),
            "content": self.builder.builder_config.name if self.builder.builder_config else "",
        }


def open_dataset(
    name: str,
    data_dir: str | None = None,
    download: bool = True,
    skip_unreadable: bool = False,
) -> Dataset:
    """Opens a dataset, preparing it first where it is not on disk.

    Args:
      name: `digits`; `idx:DIR` for MNIST-format files in DIR; `folder:DIR` for pictures in
        directories named by their classes; or a TFDS classification set such as `cifar10`.
      data_dir: the TFDS directory; None for TFDS' own default.
      download: whether a set that is not on disk may be fetched; that is announced, and refused
        within seconds where its server does not answer.
      skip_unreadable: whether pictures of a folder that cannot be decoded are left out.

    Raises:
      UserError: for an unknown set, one that is no image classification, and one that is neither
        on disk nor to be had.
    """
    builder = _builder(name, data_dir, skip_unreadable)
    if not builder.is_prepared():
        _prepare(builder, name, download)
    features, splits = builder.info.features, builder.info.splits
    features = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise UserError(
            f"a dataset must have an 'image' and a class 'label'; '{name}' has {list(features)}. "
            "Choose an image classification set with --dataset."
        )
    defaults = defaults_of(name)
    test_split = defaults.test_split or ("test" if "test" in splits else "validation")
    if missing := [split for split in ("train", test_split) if split not in splits]:
        raise UserError(
            f"a dataset must have the splits 'train' and 'test' (or 'validation'); '{name}' has "
            f"{sorted(splits)} and lacks '{missing[0]}'. Choose another with --dataset."
        )
    return Dataset(
        name=name,
        version=str(builder.version),
        data_dir=str(builder.data_dir),
        train_split="train",
        test_split=test_split,
        image_shape=tuple(image.shape),
        labels=tuple(label.names),
        defaults=defaults,
        builder=builder,
    )


def _builder(name, data_dir, skip_unreadable):
    if name == "digits":
        return Digits(data_dir=data_dir)
    if name.startswith(IDX):
        return Idx(name.removeprefix(IDX), data_dir=data_dir)
    if name.startswith(FOLDER):
        return Folder(name.removeprefix(FOLDER), data_dir, skip_unreadable)
    # tfds.builder() would also look for the set on the network; the class alone does not.
    parts = TFDS_NAME.fullmatch(name)
    try:
        cls = tfds.builder_cls(parts["set"] if parts else name)
        options = {key: parts[key] for key in ("config", "version") if parts and parts[key]}
        return cls(data_dir=data_dir, **options)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise UserError(
            "--dataset must be 'digits', idx:DIR, folder:DIR or the name of a TFDS image "
            "classification set such as 'cifar10', or NAME/CONFIG:VERSION of one; got "
            f"'{name}' ({str(error).splitlines()[0]})"
        ) from error


def _prepare(builder, name, download):
    directory = builder.data_dir
    elsewhere = "Give --data_dir=DIR if it is elsewhere"
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    if isinstance(builder, Digits | Idx | Folder):
        origin = "scikit-learn's copy" if isinstance(builder, Digits) else "these files"
        if isinstance(builder, Folder):
            builder.check_pictures()
        tfds.disable_progress_bar()
        print(f"dataset {name}: made from {origin} in {directory}", flush=True)
    elif builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        _require_manual_files(builder, name)
        print(f"dataset {name}: made from your files in {directory} (hours)", flush=True)
    elif not download:
        raise UserError(
            f"dataset '{name}' is not in {directory}, and this command may not fetch it. "
            f"{elsewhere}; train.main and train.evaluate fetch it with --download, and "
            "--dataset=digits needs no network."
        )
    else:
        for url in builder.url_infos:
            if problem := _unreachable(url):
                host = urllib.parse.urlsplit(url).netloc
                raise UserError(
                    f"dataset '{name}' is not in {directory}, and {host}, where it is published, "
                    f"cannot be reached ({problem}). {elsewhere}, or take --dataset=digits, "
                    "which needs no network."
                )
        size = tfds.core.utils.Size(sum(info.size for info in builder.url_infos.values()))
        print(f"dataset {name}: downloading {size} to {directory}", flush=True)
    try:
        builder.download_and_prepare()
    except UserError:
        raise
    except Exception as error:  # Whatever a dataset's own code, the network or the disk raises.
        if builder.is_prepared():
            # Another process made it in the meantime.
            return
        lines = str(error).splitlines() or [""]
        raise UserError(
            f"dataset '{name}' could not be made in {directory}: {type(error).__name__}: "
            f"{lines[0]}. What was fetched for it is in "
            f"{pathlib.Path(builder.data_dir_root) / 'downloads'}; remove a damaged file there, or "
            "make room, and try again"
        ) from error


def _require_manual_files(builder, name):
    """Raises `UserError` unless the files are there that the user alone can fetch."""
    directory = pathlib.Path(builder.data_dir_root) / "downloads" / "manual"
    wanted = defaults_of(name).manual_files
    problems = []
    for file, size in wanted:
        path = directory / file
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is not there" if found is None else f"has {found:,}"
            problems.append(f"\n  {path} must have {size:,} bytes and {state}")
    if problems or not (wanted or directory.is_dir()):
        raise UserError(
            f"dataset '{name}' is not in {builder.data_dir} and has to be fetched by hand into "
            f"{directory}:\n{builder.MANUAL_DOWNLOAD_INSTRUCTIONS.strip()}{''.join(problems)}\n"
            f"Archives stay as they are, not unpacked. Give --data_dir=DIR if the set is elsewhere."
        )


def _unreachable(url):
    """Why `url` cannot be fetched, or None. Answers in REACH_SECONDS whatever the network does."""
    problems: list[str | None] = [f"no answer in {REACH_SECONDS} s"]

    def ask():
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=REACH_SECONDS).close()
            problems[0] = None
        except urllib.error.HTTPError:
            # It answers; what it says to a HEAD is TFDS' business.
            problems[0] = None
        except OSError as error:
            problems[0] = str(getattr(error, "reason", error))

    # A thread, because a name look-up takes as long as it likes.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return problems[0]
