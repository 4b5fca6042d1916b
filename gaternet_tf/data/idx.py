"""MNIST-format IDX files on disk as a TFDS dataset."""

import collections
import gzip
import hashlib
import math
import os
import pathlib
import zlib

import numpy as np
import tensorflow_datasets as tfds

from gaternet_tf.data.paths import content_name
from gaternet_tf.errors import UserError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
UNSIGNED_BYTE = 8


def find_files(directory: str | os.PathLike) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
    """{split: (images, labels)} of a directory with the four files, each plain or gzipped.

    Raises:
      UserError: naming what is missing.
    """
    folder = pathlib.Path(directory).expanduser()
    found: dict[str, pathlib.Path] = {}
    names = [name for pair in FILES.values() for name in pair]
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                found.setdefault(name, path)
    if missing := [name for name in names if name not in found]:
        raise UserError(
            f"--dataset=idx:DIR must have {', '.join(names)}, each plain or as .gz, in DIR, and "
            f"'{directory}' lacks {', '.join(missing)}"
        )
    return {split: (found[images], found[labels]) for split, (images, labels) in FILES.items()}


def read_idx(path: pathlib.Path, rank: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, uint8 with `rank` dimensions.

    Raises:
      UserError: for a file that is none or is damaged.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"'{path}' must be a gzipped IDX file, and cannot be read ({error})"
        ) from error
    head = 4 * (1 + rank)
    if len(data) < head or data[:4] != bytes([0, 0, UNSIGNED_BYTE, rank]):
        raise UserError(
            f"'{path}' must be an IDX file of unsigned bytes with {rank} dimensions, and begins "
            f"with {data[:4].hex(' ') or 'nothing'}"
        )
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, head, 4)]
    if len(data) - head != math.prod(shape):
        raise UserError(
            f"'{path}' must hold the {math.prod(shape):,} bytes of {shape} after its head, and has "
            f"{len(data) - head:,}; get it again"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def read_split(images_file: pathlib.Path, labels_file: pathlib.Path):
    """(uint8 images [n, h, w], uint8 labels [n]) of a split.

    Raises:
      UserError: for damaged files, numbers of images and labels that differ, or empty images.
    """
    images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels) or not len(images):
        raise UserError(
            f"'{images_file}' and '{labels_file}' must have as many images as labels, one at "
            f"least, and have {len(images):,} and {len(labels):,}"
        )
    if not images.size:
        raise UserError(
            f"'{images_file}' must hold images of one pixel at least, and its have "
            f"{images.shape[1]} x {images.shape[2]}"
        )
    return images, labels


class Idx(tfds.core.GeneratorBasedBuilder):
    """Grey images and labels of four IDX files, as MNIST and Fashion-MNIST are published.

    Classes are named by the lines of a file `labels.txt` beside the others, or by their numbers.

    Args:
      directory: where the files are.
      data_dir: the TFDS directory to prepare them in; None for TFDS' own default.

    Raises:
      UserError: for files that are missing, damaged or do not fit each other.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, directory: str, data_dir: str | None = None):
        self._files = find_files(directory)
        folder = pathlib.Path(directory).expanduser().resolve()
        images, labels = read_split(*self._files["train"])
        test_images, test_labels = read_split(*self._files["test"])
        if images.shape[1:] != test_images.shape[1:]:
            raise UserError(
                f"the images of both splits must have one size, and those in '{directory}' have "
                f"{images.shape[1:]} and {test_images.shape[1:]}"
            )
        self._image_shape = (*images.shape[1:], 1)
        classes = int(max(labels.max(), test_labels.max())) + 1
        self._names = class_names(folder / "labels.txt", classes)
        # The prepared copy is told by its content: other files in the same place are another set.
        digest = hashlib.blake2b(repr(self._names).encode(), digest_size=4)
        for array in (images, labels, test_images, test_labels):
            digest.update(array.tobytes())
        config = tfds.core.BuilderConfig(name=content_name(folder, digest.hexdigest()))
        super().__init__(config=config, data_dir=data_dir)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="MNIST-format IDX files.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=self._image_shape, dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=self._names),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(*read_split(*pair))
            for split, pair in self._files.items()
        }

    def _generate_examples(self, images, labels):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image[:, :, None], "label": int(label)}


def class_names(path: pathlib.Path, classes: int) -> list[str]:
    """The lines of a file of class names, or numbers where there is none.

    Raises:
      UserError: for fewer names than classes, one that is there twice, or no text.
    """
    if not path.is_file():
        return [str(number) for number in range(max(classes, 2))]
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"'{path}' must be text in UTF-8, and is not ({error}); save it as UTF-8"
        ) from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise UserError(
            f"'{path}' must name each class once, and names {', '.join(twice)} more than once"
        )
    if len(names) < classes:
        raise UserError(f"'{path}' must name {classes} classes, one a line, and has {len(names)}")
    return names
