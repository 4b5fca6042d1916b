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
from gaternet_tf.data.paths import is_text, printable
from gaternet_tf.data.preprocessing import decode_rgb
from gaternet_tf.data.stratification import TEST_SHARE, random_share
from gaternet_tf.errors import UserError
from gaternet_tf.seeds import derive_seed

PARALLEL_CALLS = os.cpu_count() or 1
"""Pictures that are decoded at the same time."""
REACH_SECONDS = 5

IDX = "idx:"
FOLDER = "folder:"
TEST_SPLITS = ("test", "validation", "val")
"""Names of splits of TFDS that can be the test; the first one with labels is."""
FIRST = 16
"""Examples that are looked at to see whether a split has labels."""
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

    `test_part`, bool [images], marks those of the stored training split that are the test split of
    a set published without one; None where it is stored. `held_out`, bool [images that are left],
    marks those that validate instead of train; None for none.
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
    test_part: np.ndarray | None = dataclasses.field(default=None, repr=False)
    held_out: np.ndarray | None = dataclasses.field(default=None, repr=False)

    @property
    def training_images(self) -> int:
        """Number of images that train."""
        return self.size(self.train_split) - self.validation_images

    @property
    def validation_images(self) -> int:
        """Number of images held out of training."""
        return 0 if self.held_out is None else int(self.held_out.sum())

    @property
    def splits(self) -> list[str]:
        """Names of the splits, sorted."""
        return sorted({*self.builder.info.splits, self.test_split})

    @property
    def remarks(self) -> list[str]:
        """What a user should know of how the splits came about."""
        if isinstance(self.builder, Folder):
            return self.builder.remarks
        if self.test_part is None:
            return []
        return [
            f"'{self.name}' is published without a test split: '{self.test_split}' is a seeded "
            f"{TEST_SHARE:.0%} of '{self.train_split}', the same in every run and never trained on"
        ]

    def size(self, split: str) -> int:
        """Number of examples in a split."""
        stored, part = self._place(split)
        return self.builder.info.splits[stored].num_examples if part is None else int(part.sum())

    def _place(self, split):
        """The stored split that holds a split, and the mask of its examples; None for all."""
        if self.test_part is None or split not in (self.train_split, self.test_split):
            return split, None
        return self.train_split, self.test_part if split == self.test_split else ~self.test_part

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
        data = _marked(self._read(split, decoders), wanted)
        return data.map(lambda example: (example["image"], example["label"]))

    def _read(self, split, decoders):
        stored, part = self._place(split)
        data = self.builder.as_dataset(
            split=stored,
            decoders=decoders,
            shuffle_files=False,
            read_config=tfds.ReadConfig(options=untuned()),
        )
        return _marked(data, part)

    def decode(self, file, label):
        """(encoded picture, label) of `files` to (uint8 [height, width, channels], label)."""
        feature = self.builder.info.features["image"]
        # Colour pictures as exported models decode them; TFDS' decoder rounds JPEGs otherwise.
        own = feature.shape[-1] == 3 and feature.np_dtype == np.uint8
        image = decode_rgb(file) if own else feature.decode_example(file)
        return tf.ensure_shape(image, feature.shape), label

    def labels_of(self, split: str) -> np.ndarray:
        """int64 labels of a split, in stored order; no picture is decoded."""
        return np.concatenate(list(self._labels(split).batch(10_000).as_numpy_iterator()))

    def is_labelled(self, split: str) -> bool:
        """Whether a split has images with labels, by the first ones.

        Where the labels of a challenge are kept secret, TFDS stores -1 for all.
        """
        if not self.size(split):
            return False
        return all(label >= 0 for label in self._labels(split).take(FIRST).as_numpy_iterator())

    def _labels(self, split):
        features = tfds.decode.PartialDecoding({"label": True})
        return self._read(split, features).map(lambda example: example["label"])

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
            "test_held_out_of": None if self.test_part is None else self.train_split,
            "labels": list(self.labels),
            "content": self.builder.builder_config.name if self.builder.builder_config else "",
        }


def _marked(data, wanted):
    """The examples whose entry in `wanted`, bool [examples], is true; None for all."""
    if wanted is None:
        return data
    mask = tf.constant(wanted)
    data = data.enumerate().filter(lambda index, _: mask[index])
    return data.map(lambda _, example: example)


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
    features = builder.info.features
    features = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise UserError(
            f"a dataset must have an 'image' and a class 'label'; '{name}' has {list(features)}. "
            "Choose an image classification set with --dataset."
        )
    dataset = Dataset(
        name=name,
        version=str(builder.version),
        data_dir=str(builder.data_dir),
        train_split="train",
        test_split=TEST_SPLITS[0],
        image_shape=tuple(image.shape),
        labels=tuple(label.names),
        defaults=defaults_of(name),
        builder=builder,
    )
    return _with_test(dataset)


def _with_test(dataset):
    """The dataset with its test split: the first with labels, or a part of a lone `train`.

    Raises:
      UserError: where there is nothing to train on, or to test on.
    """
    stored = dataset.builder.info.splits
    wanted = dataset.defaults.test_split
    tests = [split for split in ([wanted] if wanted else TEST_SPLITS) if split in stored]
    if "train" in stored:
        for split in tests:
            if dataset.is_labelled(split):
                return dataclasses.replace(dataset, test_split=split)
        if tests:
            raise UserError(
                f"a dataset must have a test split with labels; '{dataset.name}' has none in "
                f"{' and '.join(map(repr, tests))}. Choose another with --dataset."
            )
        if set(stored) == {"train"}:
            rng = np.random.default_rng(derive_seed(0, dataset.test_split))
            part = random_share(dataset, dataset.train_split, TEST_SHARE, rng)
            if part.any():
                return dataclasses.replace(dataset, test_part=part)
    found = ", ".join(f"'{name}' ({stored[name].num_examples} images)" for name in sorted(stored))
    raise UserError(
        "a dataset must have the splits 'train' and 'test' (or 'validation'), or 'train' alone "
        f"with enough images to hold a test out; '{dataset.name}' has {found}. Choose another "
        "with --dataset."
    )


def _builder(name, data_dir, skip_unreadable):
    if not is_text(name):
        raise UserError(
            f"--dataset must be text in UTF-8, and '{printable(name)}' has other bytes; rename the "
            "directory, or give a link to it"
        )
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
        # TFDS does not list the files of every set; then the publisher's own page must do.
        known = builder.url_infos
        for url in known or filter(None, [builder.info.homepage]):
            if problem := _unreachable(url):
                host = urllib.parse.urlsplit(url).netloc
                raise UserError(
                    f"dataset '{name}' is not in {directory}, and {host}, where it is published, "
                    f"cannot be reached ({problem}). {elsewhere}, or take --dataset=digits, "
                    "which needs no network."
                )
        total = sum(info.size or 0 for info in (known or {}).values())
        size = tfds.core.utils.Size(total) if total else "an unknown size"
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
