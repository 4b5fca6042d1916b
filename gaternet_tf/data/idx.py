"""MNIST-format IDX files on disk as a TFDS dataset."""

import gzip
import hashlib
import pathlib
import zlib

import numpy as np
import tensorflow_datasets as tfds

from gaternet_tf.data.dataset import builder_info
from gaternet_tf.errors import UserError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
UNSIGNED_BYTE = 8


def read_idx(folder: pathlib.Path, name: str, rank: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, plain or gzipped, uint8 with `rank` dimensions.

    Raises:
      UserError: for a file that is missing, in another format or damaged.
    """
    path = folder / name
    try:
        if path.exists():
            data = path.read_bytes()
        else:
            data = gzip.decompress((folder / f"{name}.gz").read_bytes())
        if data[:4] != bytes([0, 0, UNSIGNED_BYTE, rank]):
            raise ValueError(f"it begins with {data[:4].hex(' ') or 'nothing'}")
        shape = np.frombuffer(data, ">u4", count=rank, offset=4)
        return np.frombuffer(data, np.uint8, offset=4 * (1 + rank)).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"--dataset=idx:DIR must have {', '.join(sum(FILES.values(), ()))}, each plain or as "
            f".gz, in DIR; '{path}' cannot be read as unsigned bytes with {rank} dimensions "
            f"({error})"
        ) from error


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
            split: (read_idx(folder, images, 3), read_idx(folder, labels, 1))
            for split, (images, labels) in FILES.items()
        }
        for split, (images, labels) in self._splits.items():
            if len(images) != len(labels):
                raise UserError(
                    f"'{directory}' must have as many images as labels, and has {len(images):,} "
                    f"and {len(labels):,} in '{split}'"
                )
        classes = 1 + max(int(labels.max()) for _, labels in self._splits.values())
        self._names = [str(number) for number in range(max(classes, 2))]
        if (folder / "labels.txt").is_file():
            lines = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
            self._names = [line.strip() for line in lines if line.strip()]
            if len(self._names) < classes or len(set(self._names)) < len(self._names):
                raise UserError(
                    f"'{folder / 'labels.txt'}' must name {classes} classes, one a line, each by "
                    f"another name, and has {', '.join(self._names)}"
                )
        # The prepared copy is named by its content: other files in the same place, another dataset.
        digest = hashlib.blake2b(repr(self._names).encode(), digest_size=4)
        for arrays in self._splits.values():
            for array in arrays:
                digest.update(array.tobytes())
        config = tfds.core.BuilderConfig(name=f"{folder.name}-{digest.hexdigest()}")
        super().__init__(config=config, data_dir=data_dir)

    def _info(self):
        return builder_info(self, (*self._splits["train"][0].shape[1:], 1), self._names)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(*arrays) for split, arrays in self._splits.items()}

    def _generate_examples(self, images, labels):
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image[:, :, None], "label": int(label)}
