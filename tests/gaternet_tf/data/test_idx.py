"""MNIST-format files: read as they are, and refused where they are damaged."""

import gzip

import numpy as np
import pytest

from gaternet_tf import UserError
from gaternet_tf.data import open_dataset

RNG = np.random.default_rng(0)
IMAGES = {
    name: RNG.integers(0, 256, (n, 6, 5)).astype(np.uint8)
    for name, n in [("train", 12), ("t10k", 4)]
}
LABELS = {name: np.arange(len(images), dtype=np.uint8) % 3 for name, images in IMAGES.items()}


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.tobytes()


@pytest.fixture
def directory(tmp_path):
    """Gzipped images and plain labels."""
    path = tmp_path / "mine"
    path.mkdir()
    for name in IMAGES:
        (path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES[name])))
        (path / f"{name}-labels-idx1-ubyte").write_bytes(idx(LABELS[name]))
    return path


def opened(directory):
    return open_dataset(f"idx:{directory}", str(directory.parent / "data"))


def test_images_and_labels_of_both_splits_are_read(directory):
    dataset = opened(directory)
    assert dataset.image_shape == (6, 5, 1)
    assert dataset.labels == ("0", "1", "2")
    for split, name in (("train", "train"), ("test", "t10k")):
        pairs = zip(IMAGES[name], LABELS[name], strict=True)
        assert {
            (image.numpy().tobytes(), int(label)) for image, label in dataset.examples(split)
        } == {(image.tobytes(), int(label)) for image, label in pairs}


def test_other_files_in_the_same_place_are_another_dataset(directory):
    first = opened(directory)
    (directory / "labels.txt").write_text("shirt\nshoe\nbag\n")
    (directory / "train-labels-idx1-ubyte").write_bytes(idx(LABELS["train"][::-1]))
    second = opened(directory)
    assert second.labels == ("shirt", "shoe", "bag")
    assert first.describe()["content"] != second.describe()["content"]
    assert first.labels_of("train").tolist() != second.labels_of("train").tolist()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train-labels-idx1-ubyte", None, "No such file .*train-labels"),
        ("train-images-idx3-ubyte.gz", b"no gzip", "Not a gzipped file"),
        ("train-images-idx3-ubyte", idx(IMAGES["train"])[:-1], "cannot reshape array of size 359"),
        ("train-images-idx3-ubyte", idx(LABELS["train"]), "3 dim.*begins with 00 00 08 01"),
        ("t10k-labels-idx1-ubyte", idx(LABELS["t10k"][:3]), "as labels, and has 4 and 3"),
        ("labels.txt", b"shirt\nbag\nbag\n", "must name 3 classes"),
    ],
)
def test_damaged_files_are_named_and_nothing_is_prepared(directory, name, content, words):
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        opened(directory)
    assert not (directory.parent / "data").exists()
