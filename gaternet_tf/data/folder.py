"""A user's own pictures, DIR/SPLIT/CLASS/* or DIR/CLASS/*, as a TFDS dataset."""

import collections
import concurrent.futures
import hashlib
import io
import os
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from gaternet_tf.data.dataset import builder_info
from gaternet_tf.data.defaults import TEST_SHARE
from gaternet_tf.data.preprocessing import decode_rgb
from gaternet_tf.errors import UserError
from gaternet_tf.seeds import derive_seed

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
TRAINS = ("train", "training")
TESTS = ("test", "testing", "validation", "valid", "val")
"""Names of directories, in any case, that can be a split, in order of preference."""
LAYOUT = "DIR/train/CLASS/* and DIR/test/CLASS/*, or DIR/CLASS/*"


class Picture(NamedTuple):
    """A picture's file, and the split and the class that it belongs to."""

    split: str
    label: str
    path: pathlib.Path


def find_pictures(directory: str) -> tuple[list[Picture], list[str]]:
    """Finds the pictures of each split and class.

    Hidden files and directories, and files of other kinds, are left out. Without split directories
    each class gives a fifth of its pictures, chosen by their names alone, to the test.

    Returns:
      The pictures of `train` and of `test`, both sorted by class and name, and the names of the
      directories that are not used.

    Raises:
      UserError: for another layout, or splits whose classes differ.
    """
    folder = pathlib.Path(directory).expanduser()
    if not folder.is_dir():
        raise UserError(f"--dataset=folder:DIR must be a directory, and '{directory}' is not one")
    # A class may be called "train" too, but then it holds pictures and no classes.
    if train := _split(folder, TRAINS, "train"):
        pictures = train + _split(folder, TESTS, "test")
        used = {picture.path.relative_to(folder).parts[0] for picture in pictures}
        unused = [child.name for child in _subdirectories(folder) if child.name not in used]
    else:
        pictures, unused = _hold_test_out(folder, _pictures(folder, "train")), []
    _check_classes(pictures, directory)
    return pictures, unused


def _subdirectories(folder):
    children = folder.iterdir() if folder.is_dir() else []
    return sorted(child for child in children if child.is_dir() and not child.name.startswith("."))


def _split(folder, names, split) -> list[Picture]:
    """Returns the pictures of the first of the named directories that has classes with pictures."""
    children = {child.name.lower(): child for child in _subdirectories(folder)}
    found = (_pictures(children[name], split) for name in names if name in children)
    return next(filter(None, found), [])


def _pictures(folder, split) -> list[Picture]:
    """Returns the pictures anywhere below the subdirectories, which are classes."""
    return [
        Picture(split, child.name, path)
        for child in _subdirectories(folder)
        for path in sorted(child.rglob("*"))
        if path.suffix.lower() in EXTENSIONS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _hold_test_out(folder, pictures):
    """Moves a fifth of each class to the test.

    Raises:
      UserError: where the classes all hold the same directories and no picture, as splits do.
    """
    classes: dict[str, list[Picture]] = {}
    for picture in pictures:
        classes.setdefault(picture.label, []).append(picture)
    # The directories in each class that lead to its pictures; () for a picture in the class itself.
    inner = [
        {picture.path.relative_to(folder / name).parts[:-1][:1] for picture in members}
        for name, members in classes.items()
    ]
    alike = len(inner) > 1 and inner.count(inner[0]) == len(inner)
    if alike and len(inner[0]) > 1 and () not in inner[0]:
        raise UserError(
            f"--dataset=folder:DIR must have {LAYOUT}, and in '{folder}' the directories "
            f"{', '.join(classes)} all hold the same directories instead of pictures; if they are "
            "splits, call them train and test"
        )
    train, test = [], []
    for name, members in classes.items():
        order = np.random.default_rng(derive_seed(0, name)).permutation(len(members))
        count = max(1, round(len(members) * TEST_SHARE))
        train += [members[index] for index in sorted(order[count:])]
        test += [members[index]._replace(split="test") for index in sorted(order[:count])]
    return train + test


def _check_classes(pictures, directory):
    train, test = (
        {picture.label for picture in pictures if picture.split == split}
        for split in ("train", "test")
    )
    if len(train) < 2 or train != test:
        raise UserError(
            f"--dataset=folder:DIR must have {LAYOUT}, with {', '.join(EXTENSIONS)} files of at "
            f"least two classes, the same in both splits; '{directory}' has {len(train)} to train "
            f"on; only in training: {', '.join(sorted(train - test)) or 'none'}; only in the test: "
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


def why_unreadable(picture: Picture) -> str | None:
    """Returns why a picture cannot be decoded, or None."""
    try:
        decode_rgb(tf.constant(read_picture(picture.path)))
    except (OSError, ValueError) as error:
        return str(error)
    except tf.errors.OpError as error:
        return error.message.splitlines()[0].rpartition("} ")[2]
    return None


class Folder(tfds.core.GeneratorBasedBuilder):
    """Pictures in directories named by their classes, of any size and kind, read as RGB.

    TFDS' own `ImageFolder` reads JPEG and PNG only, and decodes them otherwise than our exports.

    Args:
      directory: see `find_pictures`.
      data_dir: the TFDS directory to prepare them in; None for TFDS' own default.
      skip_unreadable: whether to leave out pictures that cannot be decoded instead of refusing.

    Attributes:
      unused: names of the directories that are not used.

    Raises:
      UserError: for a directory with another layout.
    """

    VERSION = tfds.core.Version("1.1.0")

    def __init__(self, directory: str, data_dir: str | None = None, skip_unreadable: bool = False):
        self._directory, self._skip = directory, skip_unreadable
        self._pictures, self.unused = find_pictures(directory)
        # The prepared copy is named by what lies in the directory: other pictures, another dataset.
        digest = hashlib.blake2b(b"skip" if skip_unreadable else b"", digest_size=4)
        for split, _, path in self._pictures:
            stat = path.stat()
            digest.update(os.fsencode(f"{split} {path} {stat.st_size} {stat.st_mtime_ns};"))
        folder = pathlib.Path(directory).expanduser().resolve()
        config = tfds.core.BuilderConfig(name=f"{folder.name}-{digest.hexdigest()}")
        super().__init__(config=config, data_dir=data_dir)

    def _info(self):
        labels = list(dict.fromkeys(picture.label for picture in self._pictures))
        return builder_info(self, (None, None, 3), labels)

    def check_pictures(self) -> None:
        """Decodes every picture once, before anything is written.

        Raises:
          UserError: listing the unreadable pictures, unless they are to be skipped; and when a
            class or a split is empty without them.
        """
        with concurrent.futures.ThreadPoolExecutor() as pool:
            reasons = list(pool.map(why_unreadable, self._pictures))
        checked = list(zip(self._pictures, reasons, strict=True))
        # Names of files need not be UTF-8.
        lines = [
            f"\n  {os.fsencode(picture.path).decode(errors='backslashreplace')}: {reason}"
            for picture, reason in checked
            if reason is not None
        ]
        if not lines:
            return
        text = f"{len(lines)} of {len(checked)} pictures cannot be read:{''.join(lines)}"
        if not self._skip:
            raise UserError(f"{text}\nRemove them, or leave them out with --skip_unreadable.")
        print(f"leaving out {text}", flush=True)
        self._pictures = [picture for picture, reason in checked if reason is None]
        _check_classes(self._pictures, self._directory)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        numbers = collections.Counter[str]()
        for picture in self._pictures:
            if picture.split == split:
                numbers[picture.label] += 1
                key = f"{picture.label}/{numbers[picture.label]:08d}"
                yield key, {"image": read_picture(picture.path), "label": picture.label}
