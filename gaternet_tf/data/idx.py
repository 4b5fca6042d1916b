"""MNIST-format IDX files on disk as a TFDS dataset."""

import gzip
import hashlib
import math
import pathlib
import zlib

import numpy as np
import tensorflow_datasets as tfds

from gaternet_tf.errors import UserError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
UNSIGNED_BYTE = 8


def read_idx(path: pathlib.Path, rank: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, uint8 with `rank` dimensions.

    Raises:
      UserError: for a file in another format or a damaged one.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"'{path}' cannot be read ({error}); get it again") from error
    head = 4 * (1 + rank)
    if len(data) < head or data[:4] != bytes([0, 0, UNSIGNED_BYTE, rank]):
        raise UserError(
            f"'{path}' must be an IDX file of unsigned bytes with {rank} dimensions, and begins "
            f"with {data[:4].hex(' ') or 'nothing'}"
        )
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, head, 4)]
    if len(data) - head != math.prod(shape) or not data[head:]:
        raise UserError(
            f"'{path}' must hold the {math.prod(shape):,} bytes of {shape} after its head, and has "
            f"{len(data) - head:,}; get it again"
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


class Idx(tfds.core.GeneratorBasedBuilder):
    """Grey images and labels in four IDX files, as MNIST and Fashion-MNIST are published.

    Classes are named by the lines of a file `labels.txt` beside the others, or by their numbers.

    Args:
      directory: of the files, each plain or gzipped.
      data_dir: the TFDS directory to prepare them in; None for TFDS' own default.

    Raises:
      UserError: for files that are missing, damaged or of different datasets.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, directory: str, data_dir: str | None = None):
        folder = pathlib.Path(directory).expanduser().resolve()
        self._splits = {
            split: (read_idx(_find(folder, images), 3), read_idx(_find(folder, labels), 1))
            for split, (images, labels) in FILES.items()
        }
        for split, (images, labels) in self._splits.items():
            if len(images) != len(labels):
                raise UserError(
                    f"'{directory}' must have as many images as labels, and has {len(images):,} "
                    f"and {len(labels):,} in '{split}'"
                )
        shapes = {images.shape[1:] for images, _ in self._splits.values()}
        if len(shapes) > 1:
            raise UserError(
                f"the images of both splits must have one size, and those in '{directory}' have "
                f"{' and '.join(map(str, shapes))}"
            )
        self._image_shape = (*shapes.pop(), 1)
        classes = 1 + max(int(labels.max()) for _, labels in self._splits.values())
        self._names = class_names(folder / "labels.txt", classes)
        # The prepared copy is named by its content: other files in the same place, another dataset.
        digest = hashlib.blake2b(repr(self._names).encode(), digest_size=4)
        for arrays in self._splits.values():
            for array in arrays:
                digest.update(array.tobytes())
        config = tfds.core.BuilderConfig(name=f"{folder.name}-{digest.hexdigest()}")
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
        return {split: self._generate_examples(*arrays) for split, arrays in self._splits.items()}

    def _generate_examples(self, images, labels):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image[:, :, None], "label": int(label)}


def _find(folder, name):
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    names = ", ".join(name for pair in FILES.values() for name in pair)
    raise UserError(
        f"--dataset=idx:DIR must have {names}, each plain or as .gz, in DIR, and '{folder}' lacks "
        f"{name}"
    )


def class_names(path: pathlib.Path, classes: int) -> list[str]:
    """Returns the lines of a file of class names, or numbers where there is no such file.

    Raises:
      UserError: for fewer names than classes, or a name that occurs twice.
    """
    if not path.is_file():
        return [str(number) for number in range(max(classes, 2))]
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if len(names) < classes or len(set(names)) < len(names):
        raise UserError(
            f"'{path}' must name {classes} classes, one a line, each by another name; it has "
            f"{len(names)} names, {len(set(names))} of them different"
        )
    return names
