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
def test_reads_images_and_labels_of_both_splits(tmp_path, compress):
    write(tmp_path / "mine", compress)
    dataset = open_dataset(f"idx:{tmp_path / 'mine'}", str(tmp_path / "data"))
    assert dataset.image_shape == (6, 5, 1)
    assert dataset.labels == ("0", "1", "2")
    for split, name in (("train", "train"), ("test", "t10k")):
        found = {(image.numpy().tobytes(), int(label)) for image, label in dataset.examples(split)}
        wanted = {
            (image.tobytes(), int(label))
            for image, label in zip(IMAGES[name], LABELS[name], strict=True)
        }
        assert found == wanted


def test_class_names_come_from_labels_txt(tmp_path):
    write(tmp_path / "mine")
    (tmp_path / "mine" / "labels.txt").write_text("shirt\nshoe\nbag\n")
    dataset = open_dataset(f"idx:{tmp_path / 'mine'}", str(tmp_path / "data"))
    assert dataset.labels == ("shirt", "shoe", "bag")
    (tmp_path / "mine" / "labels.txt").write_text("shirt\n")
    with pytest.raises(UserError, match="must name 3 classes, one a line, and has 1"):
        open_dataset(f"idx:{tmp_path / 'mine'}", str(tmp_path / "data"))


def test_other_files_in_the_same_place_are_another_set(tmp_path, monkeypatch):
    write(tmp_path / "mine")
    first = open_dataset(f"idx:{tmp_path / 'mine'}", str(tmp_path / "data"))
    monkeypatch.setitem(LABELS, "train", LABELS["train"][::-1].copy())
    write(tmp_path / "mine")
    second = open_dataset(f"idx:{tmp_path / 'mine'}", str(tmp_path / "data"))
    assert first.data_dir != second.data_dir
    assert first.labels_of("train").tolist() != second.labels_of("train").tolist()


def damage(name, change):
    def apply(directory):
        path = directory / name
        path.write_bytes(change(path.read_bytes()))

    return apply


IMAGE_FILE, LABEL_FILE = "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (lambda d: (d / LABEL_FILE).unlink(), "lacks t10k-labels-idx1-ubyte"),
        (damage(IMAGE_FILE, lambda data: data[:-20]), "cannot be read"),
        (damage(IMAGE_FILE, lambda data: b"no gzip"), "cannot be read"),
        (
            damage(IMAGE_FILE, lambda data: gzip.compress(gzip.decompress(data)[:-1])),
            r"must hold the 360 bytes of \[12, 6, 5\].* has 359",
        ),
        (
            damage(IMAGE_FILE, lambda data: gzip.compress(idx(LABELS["train"]))),
            "with 3 dimensions, and begins with 00 00 08 01",
        ),
        (
            damage(LABEL_FILE, lambda data: gzip.compress(idx(LABELS["t10k"][:3]))),
            "as many images as labels, one at least, and have 4 and 3",
        ),
        (damage(LABEL_FILE, lambda data: gzip.compress(b"")), "begins with nothing"),
        (
            damage(IMAGE_FILE, lambda data: gzip.compress(idx(np.zeros((12, 0, 5), np.uint8)))),
            "one pixel at least, and its have 0 x 5",
        ),
        (
            lambda d: (d / "labels.txt").write_bytes("Stiefel\nHüte\nT".encode("latin-1")),
            r"labels.txt' must be text in UTF-8, and is not",
        ),
        (
            lambda d: (d / "labels.txt").write_text("shirt\nbag\nshirt\n"),
            "must name each class once, and names shirt more than once",
        ),
        (
            damage(
                "t10k-images-idx3-ubyte.gz",
                lambda data: gzip.compress(idx(np.zeros((4, 6, 6), np.uint8))),
            ),
            "must have one size",
        ),
    ],
)
def test_damaged_files_are_named_and_nothing_is_prepared(tmp_path, apply, words):
    apply(write(tmp_path / "mine"))
    with pytest.raises(UserError, match=words):
        open_dataset(f"idx:{tmp_path / 'mine'}", str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_no_directory_is_told(tmp_path):
    with pytest.raises(UserError, match=r"each plain or as \.gz"):
        open_dataset(f"idx:{tmp_path / 'nowhere'}", str(tmp_path / "data"))
