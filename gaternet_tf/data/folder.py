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

JPEG_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp")
EXTENSIONS = (*JPEG_EXTENSIONS, ".png", ".bmp", ".gif", ".webp")
TRAINS = ("train", "training")
TESTS = ("test", "testing", "validation", "valid", "val")
"""Names of directories, in any case, that can be a split, in order of preference."""
DIRECTORY = "directory"
LAYOUT = "DIR/train/CLASS/* and DIR/test/CLASS/*, or DIR/CLASS/*"


class Picture(NamedTuple):
    """A picture's file, and the split and the class that it belongs to."""

    split: str
    label: str
    path: pathlib.Path


class Found(NamedTuple):
    """What `find_pictures` returns.

    Attributes:
      pictures: those of `train`, then those of `test`, both sorted by class and name.
      errors: of the files and directories that cannot be reached.
      remarks: sentences about what is left out.
    """

    pictures: list[Picture]
    errors: list[OSError]
    remarks: tuple[str, ...]


def find_pictures(directory: str) -> Found:
    """Finds the pictures of each split and class, and what else there is but hidden files.

    Without split directories each class gives a fifth of its pictures, chosen by their names alone,
    to the test.

    Raises:
      UserError: for another layout, or splits whose classes differ.
    """
    folder = pathlib.Path(directory)
    if not folder.is_dir():
        raise UserError(f"--dataset=folder:DIR must be a directory, and '{directory}' is not one")
    kinds, errors = _list(folder)
    train, test = _splits(kinds)
    remarks = []
    if train:
        tops = [
            path.name for path, kind in kinds.items() if kind == DIRECTORY and not path.parts[1:]
        ]
        if unused := [name for name in tops if name not in (train, test)]:
            kinds = {path: kind for path, kind in kinds.items() if path.parts[0] not in unused}
            remarks.append(
                f"not used of '{directory}': {', '.join(map(repr, unused))}; "
                "the validation images are always held out of those to train on"
            )
    level = 2 if train else 1
    pictures = [
        Picture(
            "test" if train and path.parts[0] == test else "train",
            path.parts[level - 1],
            folder / path,
        )
        for path, kind in kinds.items()
        if kind in EXTENSIONS and len(path.parts) > level
    ]
    if left_out := _left_out(kinds, level):
        remarks.append(f"folder '{directory}': {'; '.join(left_out)}")
    left_out += [f"{printable(error.filename)}: {error.strerror}" for error in errors]
    if train:
        pictures.sort(key=lambda picture: picture.split, reverse=True)
    else:
        pictures = _hold_test_out(folder, pictures)
    _check_classes(pictures, directory, left_out)
    return Found(pictures, errors, tuple(remarks))


def _splits(kinds) -> tuple[str | None, str | None]:
    """Returns the names of the directories that are the splits, None where there is none.

    A class may be called "train" too, but then it holds pictures and no classes.
    """
    tops = {
        path.parts[0].lower(): path.parts[0]
        for path, kind in kinds.items()
        if kind in EXTENSIONS and len(path.parts) > 2
    }
    train, test = (next((tops[n] for n in names if n in tops), None) for names in (TRAINS, TESTS))
    return train, test


def _left_out(kinds, level) -> list[str]:
    """Returns what is no picture of a class, and which class has none.

    Args:
      kinds: see `_list`.
      level: the number of directories that lead to a picture of a class.
    """
    others = collections.Counter[str]()
    for path, kind in kinds.items():
        if kind in EXTENSIONS:
            others[f"{kind} beside the classes"] += len(path.parts) <= level
        elif kind != DIRECTORY:
            others[kind] += 1
    parts = [f"{kind} ({number})" for kind, number in others.most_common() if number]
    filled = {path.parts[:level] for path, kind in kinds.items() if kind in EXTENSIONS}
    empty = [
        printable(path)
        for path, kind in kinds.items()
        if kind == DIRECTORY and len(path.parts) == level and path.parts not in filled
    ]
    sentences = {"left out": parts, "no picture in": empty}
    return [f"{text} {', '.join(names)}" for text, names in sentences.items() if names]


def _list(folder) -> tuple[dict[pathlib.Path, str], list[OSError]]:
    """Lists everything below a directory but hidden files.

    Returns:
      The kind of each path, DIRECTORY or the extension, sorted by path, which is relative to the
      directory; and the errors of what cannot be reached.
    """
    kinds, errors = {}, list[OSError]()
    for parent, directories, names in os.walk(folder, onerror=errors.append, followlinks=True):
        place = pathlib.Path(parent)
        inner = place.relative_to(folder)
        directories[:] = [name for name in directories if not name.startswith(".")]
        for name in directories.copy():
            kinds[inner / name] = DIRECTORY
            # Splits and classes may be links. Further below, links may lead in circles.
            if len(inner.parts) > 1 and (place / name).is_symlink():
                kinds[inner / name] = "links to directories"
                directories.remove(name)
        for name in names:
            if not name.startswith("."):
                try:
                    os.stat(place / name)
                    suffix = pathlib.Path(name).suffix.lower()
                    kinds[inner / name] = printable(suffix) or "no extension"
                except OSError as error:
                    errors.append(error)
    return dict(sorted(kinds.items())), errors


def printable(path: str | os.PathLike) -> str:
    """Returns the name of a file, which need not be UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")


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


def _check_classes(pictures, directory, left_out):
    train, test = (
        {picture.label for picture in pictures if picture.split == split}
        for split in ("train", "test")
    )
    if len(train) < 2 or train != test:
        raise UserError(
            f"--dataset=folder:DIR must have {LAYOUT}, with {', '.join(EXTENSIONS)} files of at "
            f"least two classes, the same in both splits; '{directory}' has {len(train)} to train "
            f"on; only in training: {', '.join(sorted(train - test)) or 'none'}; only in the test: "
            f"{'; '.join([', '.join(sorted(test - train)) or 'none', *left_out])}"
        )


def read_picture(path: pathlib.Path) -> bytes:
    """Reads a picture's file; a BMP with a palette and a WebP become PNGs.

    TensorFlow ignores the palette, and not every model server reads WebP.

    Raises:
      OSError, ValueError: for a file that cannot be read, and one that Pillow cannot decode.
    """
    data = path.read_bytes()
    is_webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    if not is_webp and not data.startswith(b"BM"):
        return data
    with Image.open(path) as image:
        if not is_webp and image.mode not in ("1", "L", "P"):
            return data
        if image.mode == "1" and data[28] == 8:
            # Pillow 13 unpacks such a picture as if it had 1 bit a pixel.
            raise ValueError("a BMP with two colours, black and white, must have 1 bit a pixel")
        png = io.BytesIO()
        image.convert("RGB").save(png, "PNG")
    return png.getvalue()


def why_unreadable(path: pathlib.Path) -> str | None:
    """Returns why a picture cannot be decoded, or None."""
    try:
        decode_rgb(tf.constant(read_picture(path)))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
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
      remarks: sentences about what is left out.

    Raises:
      UserError: for a directory with another layout.
    """

    VERSION = tfds.core.Version("1.1.0")

    def __init__(self, directory: str, data_dir: str | None = None, skip_unreadable: bool = False):
        self._directory, self._skip = directory, skip_unreadable
        self._pictures, self._errors, self.remarks = find_pictures(directory)
        # The prepared copy is named by what lies in the directory: other pictures, another dataset.
        digest = hashlib.blake2b(b"skip" if skip_unreadable else b"", digest_size=4)
        for split, _, path in self._pictures:
            stat = path.stat()
            digest.update(os.fsencode(f"{split} {path} {stat.st_size} {stat.st_mtime_ns};"))
        for error in self._errors:
            digest.update(os.fsencode(error.filename))
        folder = pathlib.Path(directory).resolve()
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
            reasons = list(pool.map(why_unreadable, [path for _, _, path in self._pictures]))
        checked = list(zip(self._pictures, reasons, strict=True))
        unreadable = [(error.filename, error.strerror) for error in self._errors]
        unreadable += [(picture.path, reason) for picture, reason in checked if reason is not None]
        if not unreadable:
            return
        lines = [f"\n  {printable(path)}: {reason}" for path, reason in unreadable]
        total = len(checked) + len(self._errors)
        text = f"{len(lines)} of {total} pictures cannot be read:{''.join(lines)}"
        if not self._skip:
            raise UserError(f"{text}\nRemove them, or leave them out with --skip_unreadable.")
        print(f"{text}\nThey are left out.", flush=True)
        self._pictures = [picture for picture, reason in checked if reason is None]
        _check_classes(self._pictures, self._directory, [])

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        numbers = collections.Counter[str]()
        for picture in self._pictures:
            if picture.split == split:
                numbers[picture.label] += 1
                key = f"{picture.label}/{numbers[picture.label]:08d}"
                yield key, {"image": read_picture(picture.path), "label": picture.label}
