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


def write(directory, compress=True):
    directory.mkdir(exist_ok=True)
    for name in IMAGES:
        for kind, array in (("images-idx3", IMAGES[name]), ("labels-idx1", LABELS[name])):
            data = idx(array)
            path = directory / f"{name}-{kind}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(data) if compress else data)
    return directory


@pytest.mark.parametrize("compress", [True, False])
def test_images_and_labels_of_both_splits_are_read(tmp_path, compress):
    write(tmp_path / "mine", compress)
    dataset = open_dataset(f"idx:{tmp_path / 'mine'}", str(tmp_path / "data"))
    assert dataset.image_shape == (6, 5, 1)
    assert dataset.labels == ("0", "1", "2")
    for split, name in (("train", "train"), ("test", "t10k")):
        pairs = zip(IMAGES[name], LABELS[name], strict=True)
        assert {
            (image.numpy().tobytes(), int(label)) for image, label in dataset.examples(split)
        } == {(image.tobytes(), int(label)) for image, label in pairs}


def test_class_names_come_from_labels_txt(tmp_path):
    write(tmp_path / "mine")
    (tmp_path / "mine" / "labels.txt").write_text("shirt\nshoe\nbag\n")
    dataset = open_dataset(f"idx:{tmp_path / 'mine'}", str(tmp_path / "data"))
    assert dataset.labels == ("shirt", "shoe", "bag")


def test_other_files_in_the_same_place_are_another_dataset(tmp_path, monkeypatch):
    write(tmp_path / "mine")
    first = open_dataset(f"idx:{tmp_path / 'mine'}", str(tmp_path / "data"))
    monkeypatch.setitem(LABELS, "train", LABELS["train"][::-1].copy())
    write(tmp_path / "mine")
    second = open_dataset(f"idx:{tmp_path / 'mine'}", str(tmp_path / "data"))
    assert first.describe()["content"] != second.describe()["content"]
    assert first.labels_of("train").tolist() != second.labels_of("train").tolist()


def overwrite(name, content):
    return lambda directory: (directory / name).write_bytes(gzip.compress(content))


IMAGE_FILE, LABEL_FILE = "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / LABEL_FILE).unlink(), r"or as \.gz, in DIR, .* lacks t10k-labels"),
        (lambda d: (d / IMAGE_FILE).write_bytes(b"no gzip"), "cannot be read"),
        (overwrite(IMAGE_FILE, idx(IMAGES["train"])[:-1]), r"the 360 bytes of .* has 359"),
        (overwrite(IMAGE_FILE, idx(LABELS["train"])), "3 dimensions, and begins with 00 00 08 01"),
        (
            overwrite(LABEL_FILE, idx(LABELS["t10k"][:3])),
            "as many images as labels, and has 4 and 3",
        ),
        (lambda d: (d / "labels.txt").write_text("shirt\nbag\nbag\n"), "must name 3 classes"),
        (
            overwrite("t10k-images-idx3-ubyte.gz", idx(np.zeros((4, 6, 6), np.uint8))),
            "must have one size",
        ),
    ],
)
def test_damaged_files_are_named_and_nothing_is_prepared(tmp_path, damage, words):
    damage(write(tmp_path / "mine"))
    with pytest.raises(UserError, match=words):
        open_dataset(f"idx:{tmp_path / 'mine'}", str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()
