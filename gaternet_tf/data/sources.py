"""Opens a dataset by name. Every dataset is a TFDS dataset."""

import dataclasses
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request

import tensorflow_datasets as tfds

from gaternet_tf.data.augmentation import Augmentation
from gaternet_tf.data.digits import Digits
from gaternet_tf.errors import UserError

REACH_SECONDS = 5

# Per-channel mean and standard deviation that the literature uses; others are measured.
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
CIFAR_AUGMENTATION = Augmentation(padding=4, flip=True)
AUGMENTATIONS = {
    "cifar10": CIFAR_AUGMENTATION,
    "cifar100": CIFAR_AUGMENTATION,
    "digits": Augmentation(padding=1),
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A classification set on disk. `image_shape` holds None where its pictures differ."""

    name: str
    version: str
    data_dir: str
    train_split: str
    test_split: str
    image_shape: tuple[int | None, int | None, int]
    labels: tuple[str, ...]
    augmentation: Augmentation
    builder: tfds.core.DatasetBuilder = dataclasses.field(repr=False)

    def size(self, split: str) -> int:
        """Number of examples in a split."""
        return self.builder.info.splits[split].num_examples

    def examples(self, split: str):
        """`tf.data` of (uint8 image [h, w, c], int64 label), in stored order."""
        features = {"image": True, "label": True}
        data = self.builder.as_dataset(
            split=split, decoders=tfds.decode.PartialDecoding(features), shuffle_files=False
        )
        return data.map(lambda example: (example["image"], example["label"]))

    def describe(self) -> dict:
        """The JSON-ready facts that a run directory records."""
        return {
            "name": self.name,
            "version": self.version,
            "train_split": self.train_split,
            "train_images": self.size(self.train_split),
            "test_split": self.test_split,
            "test_images": self.size(self.test_split),
            "labels": list(self.labels),
        }


def open_dataset(name: str, data_dir: str | None = None, download: bool = True) -> Dataset:
    """Opens a dataset, preparing it first where it is not on disk.

    Args:
      name: `digits`, or a TFDS classification set such as `cifar10`.
      data_dir: the TFDS directory; None for TFDS' own default.
      download: whether a set that is not on disk may be fetched; that is announced, and refused
        within seconds where its server does not answer.

    Raises:
      UserError: for an unknown set, one that is no image classification, and one that is neither
        on disk nor to be had.
    """
    builder = _builder(name, data_dir)
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
    test_split = "test" if "test" in splits else "validation"
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
        augmentation=AUGMENTATIONS.get(name, Augmentation()),
        builder=builder,
    )


def _builder(name, data_dir):
    if name == "digits":
        return Digits(data_dir=data_dir)
    # tfds.builder() would also look for the set on the network; the class alone does not.
    try:
        cls = tfds.builder_cls(name)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            "--dataset must be 'digits' or the name of a TFDS image classification set such as "
            f"'cifar10'; got '{name}'"
        ) from error
    return cls(data_dir=data_dir)


def _prepare(builder, name, download):
    directory = builder.data_dir
    help_text = (
        "Give --data_dir=DIR if it is elsewhere, or take --dataset=digits, which needs no network."
    )
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    if isinstance(builder, Digits):
        tfds.disable_progress_bar()
        print(f"dataset {name}: made from scikit-learn's copy in {directory}", flush=True)
    elif builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise UserError(
            f"dataset '{name}' is not in {directory} and has to be prepared by hand:\n"
            f"{builder.MANUAL_DOWNLOAD_INSTRUCTIONS.strip()}\n{help_text}"
        )
    elif not download:
        raise UserError(
            f"dataset '{name}' is not in {directory}, and --nodownload forbids to fetch it. "
            f"{help_text}"
        )
    else:
        for url in builder.url_infos:
            if problem := _unreachable(url):
                host = urllib.parse.urlsplit(url).netloc
                raise UserError(
                    f"dataset '{name}' is not in {directory}, and {host}, where it is published, "
                    f"cannot be reached ({problem}). {help_text}"
                )
        size = tfds.core.utils.Size(sum(info.size for info in builder.url_infos.values()))
        print(f"dataset {name}: downloading {size} to {directory}", flush=True)
    builder.download_and_prepare()


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
