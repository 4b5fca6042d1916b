"""Opens a dataset by name, preparing it first where it is not on disk."""

import dataclasses
import pathlib
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import tensorflow_datasets as tfds

from gaternet_tf.command import local_path
from gaternet_tf.data.dataset import Dataset, random_share
from gaternet_tf.data.defaults import TEST_SHARE, defaults_of
from gaternet_tf.data.digits import Digits
from gaternet_tf.data.folder import Folder
from gaternet_tf.data.idx import Idx
from gaternet_tf.errors import UserError
from gaternet_tf.seeds import derive_seed

REACH_SECONDS = 5
"""Seconds to wait for a publisher's server."""
IDX = "idx:"
FOLDER = "folder:"
TEST_SPLITS = ("test", "validation", "val")
"""Names of TFDS splits that can be the test; the first one with labels is."""
TFDS_NAME = re.compile(r"(?P<set>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>\d+\.\d+\.\d+))?")


def open_dataset(
    name: str,
    data_dir: str | None = None,
    download: bool = True,
    skip_unreadable: bool = False,
) -> Dataset:
    """Opens a dataset, preparing it first where it is not on disk.

    Args:
      name: `digits`; `idx:DIR` for MNIST-format files in DIR; `folder:DIR` for pictures in
        directories named by their classes; or a TFDS classification dataset such as `cifar10`.
      data_dir: the TFDS directory; None for TFDS' own default.
      download: whether a dataset that is not on disk may be fetched. That is announced, and refused
        within seconds where its server does not answer.
      skip_unreadable: whether to leave out pictures of a folder that cannot be decoded.

    Raises:
      UserError: for an unknown dataset, one that is no image classification, and one that is
        neither on disk nor available.
    """
    builder = _builder(name, data_dir, skip_unreadable)
    if not builder.is_prepared():
        _prepare(builder, name, download)
    features = builder.info.features
    features = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise UserError(
            f"a dataset must have an 'image' and a class 'label'; '{name}' has {list(features)}. "
            "Choose an image classification dataset with --dataset."
        )
    dataset = Dataset(
        name=name,
        version=str(builder.version),
        image_shape=tuple(image.shape),
        labels=tuple(label.names),
        defaults=defaults_of(name),
        builder=builder,
    )
    if isinstance(builder, Folder):
        dataset = dataclasses.replace(dataset, remarks=builder.remarks)
    return _with_test(dataset)


def _with_test(dataset):
    """Chooses the test split: the first one with labels, or a part of a lone `train`.

    Raises:
      UserError: where there is nothing to train on, or to test on.
    """
    stored = dataset.builder.info.splits
    if "train" in stored:
        for split in TEST_SPLITS:
            if split in stored and dataset.is_labelled(split):
                return dataclasses.replace(dataset, test_split=split)
    if set(stored) == {"train"}:
        mask = random_share(dataset, TEST_SHARE, np.random.default_rng(derive_seed(0, "test")))
        if mask.any():
            remark = (
                f"'{dataset.name}' is published without a test split: 'test' is a seeded "
                f"{TEST_SHARE:.0%} of 'train', the same in every run and never trained on"
            )
            masks = {"train": ~mask, "test": mask}
            return dataclasses.replace(dataset, masks=masks, remarks=(remark,))
    splits = ", ".join(f"'{name}' ({stored[name].num_examples} images)" for name in sorted(stored))
    raise UserError(
        "a dataset must have the splits 'train' and 'test' (or 'validation') with labels, or "
        f"'train' alone with enough images to hold a test out; '{dataset.name}' has {splits}. "
        "Choose another with --dataset."
    )


def _builder(name, data_dir, skip_unreadable):
    if name == "digits":
        return Digits(data_dir=data_dir)
    if name.startswith(IDX):
        return Idx(
            local_path(name.removeprefix(IDX), "the directory of --dataset=idx:DIR"),
            data_dir=data_dir,
        )
    if name.startswith(FOLDER):
        return Folder(
            local_path(name.removeprefix(FOLDER), "the directory of --dataset=folder:DIR"),
            data_dir,
            skip_unreadable,
        )
    # tfds.builder() would also look for the dataset on the network; the class alone does not.
    parts = TFDS_NAME.fullmatch(name)
    try:
        cls = tfds.builder_cls(parts["set"] if parts else name)
        options = {key: parts[key] for key in ("config", "version") if parts and parts[key]}
        return cls(data_dir=data_dir, **options)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise UserError(
            "--dataset must be 'digits', idx:DIR, folder:DIR or the name of a TFDS image "
            "classification dataset such as 'cifar10', or NAME/CONFIG:VERSION of one; got "
            f"'{name}' ({str(error).splitlines()[0]})"
        ) from error


def _prepare(builder, name, download):
    """Announces and makes a dataset that is not on disk."""
    directory = builder.data_dir
    own = isinstance(builder, Digits | Idx | Folder)
    if own or not sys.stderr.isatty():
        tfds.disable_progress_bar()
    if own:
        if isinstance(builder, Folder):
            builder.check_pictures()
        origin = "scikit-learn's copy" if isinstance(builder, Digits) else "these files"
        announcement = f"made from {origin} in {directory}"
    elif builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        _require_manual_files(builder, name)
        announcement = f"made from your files in {directory} (hours)"
    else:
        if problem := _why_not_fetched(builder, download):
            raise UserError(
                f"dataset '{name}' is not in {directory}, and {problem}. Give --data_dir=DIR if it "
                "is elsewhere, or take --dataset=digits, which needs no network."
            )
        total = sum(info.size or 0 for info in (builder.url_infos or {}).values())
        size = tfds.core.utils.Size(total) if total else "an unknown size"
        announcement = f"downloading {size} to {directory}"
    print(f"dataset {name}: {announcement}", flush=True)
    try:
        builder.download_and_prepare()
    except Exception as error:  # Whatever a dataset's own code, the network or the disk raises.
        if builder.is_prepared():
            # Another process made it in the meantime.
            return
        raise UserError(
            f"dataset '{name}' could not be made in {directory}: {type(error).__name__}: "
            f"{(str(error).splitlines() or [''])[0]}. What was fetched for it is in "
            f"{pathlib.Path(builder.data_dir_root) / 'downloads'}; remove a damaged file there, or "
            "make room, and try again"
        ) from error


def _why_not_fetched(builder, download) -> str | None:
    """Returns why a dataset cannot be fetched, or None."""
    if not download:
        return "this command may not fetch it; train.main and train.evaluate do with --download"
    # TFDS does not list the files of every dataset; the publisher's own page stands in for them.
    for url in builder.url_infos or filter(None, [builder.info.homepage]):
        if problem := _unreachable(url):
            host = urllib.parse.urlsplit(url).netloc
            return f"{host}, where it is published, cannot be reached ({problem})"
    return None


def _unreachable(url) -> str | None:
    """Returns why `url` cannot be fetched, or None."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        # The server answers; TFDS will report what it answers.
        return None
    except OSError as error:
        return str(getattr(error, "reason", error))
    return None


def _require_manual_files(builder, name):
    """Raises `UserError` unless the files are there that users must fetch themselves."""
    directory = pathlib.Path(builder.data_dir_root) / "downloads" / "manual"
    files = defaults_of(name).manual_files
    problems = [
        f"\n  {directory / file} must have {size:,} bytes"
        for file, size in files
        if not (directory / file).is_file() or (directory / file).stat().st_size != size
    ]
    if problems or not (files or directory.is_dir()):
        raise UserError(
            f"dataset '{name}' is not in {builder.data_dir} and has to be fetched by hand into "
            f"{directory}:\n{builder.MANUAL_DOWNLOAD_INSTRUCTIONS.strip()}{''.join(problems)}\n"
            "Archives stay as they are, not unpacked. Give --data_dir=DIR if the dataset is "
            "elsewhere."
        )
