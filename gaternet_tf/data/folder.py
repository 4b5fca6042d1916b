"""A person's own pictures, DIR/SPLIT/CLASS/* or DIR/CLASS/*, as a TFDS dataset."""

import collections
import concurrent.futures
import hashlib
import os
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from gaternet_tf.data.bmp import HEAD, palette_of, with_its_colors
from gaternet_tf.data.paths import content_name, is_text, printable
from gaternet_tf.data.preprocessing import decode_rgb
from gaternet_tf.data.stratification import TEST_SHARE
from gaternet_tf.errors import UserError
from gaternet_tf.seeds import derive_seed

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
TRAIN, TEST = "train", "test"
SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("test", "testing", "val", "valid", "validation"), TEST),
}
"""Names of splits' directories, in capitals or not; of several for the test the first counts."""
LAYOUT = "DIR/train/CLASS/* and DIR/test/CLASS/*, or DIR/CLASS/*"
LISTED = 20

Pictures = dict[str, list[pathlib.Path]]


def find_pictures(directory: str | os.PathLike) -> dict[str, Pictures]:
    """{split: {class: paths}} of a directory, classes and paths sorted by name.

    Hidden files and directories, and files of other kinds, are left out. Without split directories
    each class gives a fifth of its pictures, chosen by their names alone, to the test.

    Raises:
      UserError: for a directory laid out otherwise, or splits whose classes differ.
    """
    folder = pathlib.Path(directory).expanduser()
    if not folder.is_dir():
        raise UserError(f"--dataset=folder:DIR must be a directory, and '{directory}' is none")
    children = _visible(folder)
    # A class may be called "train" too, but then it holds pictures and no classes.
    found = {
        child.name.lower(): _classes(child)
        for child in children
        if child.name.lower() in SPLITS and _visible(child)
    }
    trains = [name for name in SPLITS if name in found and SPLITS[name] == TRAIN]
    tests = [name for name in SPLITS if name in found and SPLITS[name] == TEST]
    if trains and not tests:
        raise UserError(
            f"--dataset=folder:DIR must have {LAYOUT}, and '{directory}' has '{trains[0]}' and no "
            "'test' or 'validation'"
        )
    if trains:
        splits = {TRAIN: found[trains[0]], TEST: found[tests[0]]}
    else:
        _require_no_level_between(children, directory)
        splits = _split(_classes(folder))
    _check(splits, directory)
    return splits


def _require_no_level_between(children, directory):
    """Refuses directories that all hold the same directories and no picture: they are splits."""
    below = {tuple(child.name for child in _visible(each)) for each in children}
    direct = any(path.suffix.lower() in EXTENSIONS for each in children for path in each.iterdir())
    if len(children) > 1 and not direct and len(below) == 1 and len(below.pop()) > 1:
        raise UserError(
            f"--dataset=folder:DIR must have {LAYOUT}, and in '{directory}' the directories "
            f"{', '.join(child.name for child in children)} all hold the same directories instead "
            "of pictures; if they are splits, call them train and test"
        )


def _visible(folder):
    return sorted(
        child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
    )


def _unused(directory, splits):
    """Names of the directories with pictures of which no split has any."""
    folder = pathlib.Path(directory).expanduser()
    used = {
        path.relative_to(folder).parts[0]
        for classes in splits.values()
        for pictures in classes.values()
        for path in pictures
    }
    return [child.name for child in _visible(folder) if child.name not in used and _classes(child)]


def _classes(folder) -> Pictures:
    classes = {}
    for child in _visible(folder):
        pictures = sorted(
            path
            for path in child.rglob("*")
            if path.suffix.lower() in EXTENSIONS
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
        if pictures and not is_text(child.name):
            raise UserError(
                f"a class's directory must have a name in UTF-8, and '{printable(child)}' has "
                "other bytes; rename it"
            )
        if pictures:
            classes[child.name] = pictures
    return classes


def _split(classes: Pictures) -> dict[str, Pictures]:
    splits: dict[str, Pictures] = {TRAIN: {}, TEST: {}}
    for name, pictures in classes.items():
        order = np.random.default_rng(derive_seed(0, name)).permutation(len(pictures))
        count = max(1, round(len(pictures) * TEST_SHARE))
        splits[TEST][name] = [pictures[index] for index in sorted(order[:count])]
        splits[TRAIN][name] = [pictures[index] for index in sorted(order[count:])]
    return splits


def _check(splits, directory):
    train, test = (
        {name for name, pictures in splits[split].items() if pictures} for split in (TRAIN, TEST)
    )
    if len(train) < 2:
        raise UserError(
            f"--dataset=folder:DIR must have {LAYOUT}, with two classes of "
            f"{', '.join(EXTENSIONS)} files at least, and '{directory}' has "
            f"{len(train)} ({', '.join(sorted(train)) or 'none'}) to train on"
        )
    if train != test:
        raise UserError(
            f"both splits of '{directory}' must have the same classes; only in training: "
            f"{', '.join(sorted(train - test)) or 'none'}; only in the test: "
            f"{', '.join(sorted(test - train)) or 'none'}"
        )


def unreadable(paths: list[pathlib.Path]) -> dict[pathlib.Path, str]:
    """{path: reason} of the pictures that TensorFlow cannot decode; every one is tried."""

    def problem(path):
        try:
            decode_rgb(tf.constant(with_its_colors(path.read_bytes())))
        except (OSError, ValueError, tf.errors.OpError) as error:
            text = getattr(error, "message", None) or str(error)
            return text.splitlines()[0].rpartition("} ")[2] if text else type(error).__name__
        return None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        reasons = pool.map(problem, paths)
    return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def _has_palette(path):
    """Whether a BMP has colours that are put in when the set is prepared."""
    if path.suffix.lower() != ".bmp":
        return False
    try:
        with path.open("rb") as file:
            return palette_of(file.read(HEAD)) is not None
    except OSError:
        return False


class Folder(tfds.core.GeneratorBasedBuilder):
    """Pictures in directories named by their classes, of any size and kind, read as RGB.

    TFDS' own `ImageFolder` would read JPEG and PNG only, and decode them as no server does. BMPs
    with a palette are stored as PNG, since TensorFlow does not look at it.

    Args:
      directory: see `find_pictures`.
      data_dir: the TFDS directory to prepare them in; None for TFDS' own default.
      skip_unreadable: whether pictures that cannot be decoded are left out, or refused.

    Attributes:
      remarks: what a user should know of how the splits came about.

    Raises:
      UserError: for a directory that is laid out otherwise.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, directory: str, data_dir: str | None = None, skip_unreadable: bool = False):
        self._pictures = find_pictures(directory)
        self._skip = skip_unreadable
        unused = ", ".join(f"'{printable(name)}'" for name in _unused(directory, self._pictures))
        self.remarks = []
        if unused:
            self.remarks.append(
                f"not used of '{directory}': {unused}; the validation images are always held out "
                "of those to train on"
            )
        folder = pathlib.Path(directory).expanduser().resolve()
        # The prepared copy is told by what lies there: other pictures are another set.
        digest = hashlib.blake2b(b"skip" if skip_unreadable else b"", digest_size=4)
        for split, classes in self._pictures.items():
            for path in (path for pictures in classes.values() for path in pictures):
                facts = path.stat()
                digest.update(f"{split} ".encode() + os.fsencode(path))
                digest.update(f" {facts.st_size} {facts.st_mtime_ns};".encode())
                if _has_palette(path):
                    # Copies were prepared without their colours once.
                    digest.update(b"palette;")
        config = tfds.core.BuilderConfig(name=content_name(folder, digest.hexdigest()))
        self._directory = directory
        super().__init__(config=config, data_dir=data_dir)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pictures in directories named by their classes.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=list(self._pictures[TRAIN])),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def check_pictures(self) -> None:
        """Decodes every picture once, before anything is written.

        Raises:
          UserError: listing those that cannot be read, unless they are to be skipped; and when
            a class or a split is empty without them.
        """
        paths = [
            path
            for classes in self._pictures.values()
            for pictures in classes.values()
            for path in pictures
        ]
        bad = unreadable(paths)
        if not bad:
            return
        shown = "\n".join(
            f"  {printable(path)}: {reason}" for path, reason in list(bad.items())[:LISTED]
        )
        more = f"\n  and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
        text = f"{len(bad)} of {len(paths)} pictures cannot be read:\n{shown}{more}"
        if not self._skip:
            raise UserError(f"{text}\nRemove them, or leave them out with --skip_unreadable.")
        print(f"leaving out {text}", flush=True)
        for classes in self._pictures.values():
            for name, pictures in classes.items():
                classes[name] = [path for path in pictures if path not in bad]
        _check(self._pictures, self._directory)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in (TRAIN, TEST)}

    def _generate_examples(self, split):
        numbers: collections.Counter[str] = collections.Counter()
        for name, pictures in self._pictures[split].items():
            for path in pictures:
                numbers[name] += 1
                picture = with_its_colors(path.read_bytes())
                yield f"{name}/{numbers[name]:08d}", {"image": picture, "label": name}
