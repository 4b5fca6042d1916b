"""A user's own pictures, DIR/SPLIT/CLASS/* or DIR/CLASS/*, as a TFDS dataset."""

import concurrent.futures
import hashlib
import io
import os
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from gaternet_tf.data.defaults import TEST_SHARE
from gaternet_tf.data.preprocessing import decode_rgb
from gaternet_tf.errors import UserError
from gaternet_tf.seeds import derive_seed

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
TESTS = ("test", "validation", "val")
"""Names of directories that can be the test, in order of preference."""
LAYOUT = "DIR/train/CLASS/* and DIR/test/CLASS/*, or DIR/CLASS/*"
LISTED = 20
"""Number of unreadable pictures that an error lists."""

Pictures = dict[str, list[pathlib.Path]]


def find_pictures(directory: str | os.PathLike) -> tuple[dict[str, Pictures], list[str]]:
    """Finds the pictures of each split and class.

    Hidden files and directories, and files of other kinds, are left out. Without split directories
    each class gives a fifth of its pictures, chosen by their names alone, to the test.

    Returns:
      {split: {class: paths}}, classes and paths sorted by name, and the names of the directories
      that are not used.

    Raises:
      UserError: for another layout, or splits whose classes differ.
    """
    folder = pathlib.Path(directory).expanduser()
    if not folder.is_dir():
        raise UserError(f"--dataset=folder:DIR must be a directory, and '{directory}' is none")
    # A class may be called "train" too, but then it holds pictures and no classes.
    if train := _classes(folder / "train"):
        test = next((name for name in TESTS if _classes(folder / name)), None)
        if test is None:
            raise UserError(
                f"--dataset=folder:DIR must have {LAYOUT}, and '{directory}' has 'train' and no "
                f"{' or '.join(map(repr, TESTS))}"
            )
        splits = {"train": train, "test": _classes(folder / test)}
        names = [child.name for child in _subdirectories(folder)]
        unused = [name for name in names if name not in ("train", test)]
    else:
        classes = _classes(folder)
        _require_no_splits(folder, classes)
        splits, unused = _split(classes), []
    _check_classes(splits, directory)
    return splits, unused


def _subdirectories(folder):
    if not folder.is_dir():
        return []
    return sorted(
        child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
    )


def _classes(folder) -> Pictures:
    """Returns {name: pictures} of the subdirectories with pictures anywhere below."""
    classes = {}
    for child in _subdirectories(folder):
        pictures = sorted(
            path
            for path in child.rglob("*")
            if path.suffix.lower() in EXTENSIONS
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
        if pictures:
            classes[child.name] = pictures
    return classes


def _require_no_splits(folder, classes):
    """Refuses "classes" that all hold the same directories and no picture, as splits do."""
    nested = {tuple(child.name for child in _subdirectories(folder / name)) for name in classes}
    parents = {path.parent for pictures in classes.values() for path in pictures}
    direct = any(folder / name in parents for name in classes)
    if len(classes) > 1 and len(nested) == 1 and len(nested.pop()) > 1 and not direct:
        raise UserError(
            f"--dataset=folder:DIR must have {LAYOUT}, and in '{folder}' the directories "
            f"{', '.join(classes)} all hold the same directories instead of pictures; if they are "
            "splits, call them train and test"
        )


def _split(classes: Pictures) -> dict[str, Pictures]:
    splits: dict[str, Pictures] = {"train": {}, "test": {}}
    for name, pictures in classes.items():
        order = np.random.default_rng(derive_seed(0, name)).permutation(len(pictures))
        count = max(1, round(len(pictures) * TEST_SHARE))
        splits["test"][name] = [pictures[index] for index in sorted(order[:count])]
        splits["train"][name] = [pictures[index] for index in sorted(order[count:])]
    return splits


def _check_classes(splits, directory):
    train, test = (
        {name for name, pictures in splits[split].items() if pictures}
        for split in ("train", "test")
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


def read_picture(path: pathlib.Path) -> bytes:
    """Reads a picture's file; a BMP with a palette, which TensorFlow ignores, becomes a PNG.

    Raises:
      OSError, ValueError: for a file that cannot be read, and a BMP that Pillow cannot decode.
    """
    data = path.read_bytes()
    if not data.startswith(b"BM"):
        return data
    with Image.open(path) as image:
        if image.mode not in ("1", "L", "P"):
            return data
        if image.mode == "1" and data[28] == 8:
            # Pillow 13 unpacks such a picture as if it had 1 bit a pixel.
            raise ValueError("a BMP with two colours, black and white, must have 1 bit a pixel")
        png = io.BytesIO()
        image.convert("RGB").save(png, "PNG")
    return png.getvalue()


def find_unreadable(paths: list[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Decodes every picture, and returns {path: reason} of those that cannot be decoded."""

    def reason(path):
        try:
            decode_rgb(tf.constant(read_picture(path)))
        except (OSError, ValueError) as error:
            return str(error)
        except tf.errors.OpError as error:
            return error.message.splitlines()[0].rpartition("} ")[2]
        return None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        reasons = zip(paths, pool.map(reason, paths), strict=True)
        return {path: text for path, text in reasons if text is not None}


class Folder(tfds.core.GeneratorBasedBuilder):
    """Pictures in directories named by their classes, of any size and kind, read as RGB.

    TFDS' own `ImageFolder` reads JPEG and PNG only, and decodes them otherwise than our exports.

    Args:
      directory: see `find_pictures`.
      data_dir: the TFDS directory to prepare them in; None for TFDS' own default.
      skip_unreadable: whether to leave out pictures that cannot be decoded instead of refusing.

    Attributes:
      remarks: sentences about the splits that a user should read before training.

    Raises:
      UserError: for a directory with another layout.
    """

    VERSION = tfds.core.Version("1.1.0")

    def __init__(self, directory: str, data_dir: str | None = None, skip_unreadable: bool = False):
        self._directory, self._skip = directory, skip_unreadable
        self._pictures, unused = find_pictures(directory)
        self.remarks = []
        if unused:
            self.remarks.append(
                f"not used of '{directory}': {', '.join(map(repr, unused))}; the validation images "
                "are always held out of those to train on"
            )
        # The prepared copy is named by what lies in the directory: other pictures, another dataset.
        digest = hashlib.blake2b(b"skip" if skip_unreadable else b"", digest_size=4)
        for split, classes in self._pictures.items():
            for path in (path for pictures in classes.values() for path in pictures):
                stat = path.stat()
                digest.update(f"{split} ".encode() + os.fsencode(path))
                digest.update(f" {stat.st_size} {stat.st_mtime_ns};".encode())
        folder = pathlib.Path(directory).expanduser().resolve()
        config = tfds.core.BuilderConfig(name=f"{folder.name}-{digest.hexdigest()}")
        super().__init__(config=config, data_dir=data_dir)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pictures in directories named by their classes.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=list(self._pictures["train"])),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def check_pictures(self) -> None:
        """Decodes every picture once, before anything is written.

        Raises:
          UserError: listing the unreadable pictures, unless they are to be skipped; and when a
            class or a split is empty without them.
        """
        paths = [
            path
            for classes in self._pictures.values()
            for pictures in classes.values()
            for path in pictures
        ]
        unreadable = find_unreadable(paths)
        if not unreadable:
            return
        # Names of files need not be UTF-8.
        lines = [
            f"\n  {os.fsencode(path).decode(errors='backslashreplace')}: {reason}"
            for path, reason in unreadable.items()
        ]
        more = f"\n  and {len(lines) - LISTED} more" if len(lines) > LISTED else ""
        text = (
            f"{len(lines)} of {len(paths)} pictures cannot be read:{''.join(lines[:LISTED])}{more}"
        )
        if not self._skip:
            raise UserError(f"{text}\nRemove them, or leave them out with --skip_unreadable.")
        print(f"leaving out {text}", flush=True)
        for classes in self._pictures.values():
            for name, pictures in classes.items():
                classes[name] = [path for path in pictures if path not in unreadable]
        _check_classes(self._pictures, self._directory)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self._pictures}

    def _generate_examples(self, split):
        for name, pictures in self._pictures[split].items():
            for number, path in enumerate(pictures, start=1):
                yield f"{name}/{number:08d}", {"image": read_picture(path), "label": name}
