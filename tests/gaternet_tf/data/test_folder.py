"""A user's own pictures: every layout, kind and size; unreadable ones are listed by their paths."""

import os

import numpy as np
import pytest
import tensorflow as tf
from helpers import palette_bmp
from PIL import Image

from gaternet_tf import UserError
from gaternet_tf.data import Preprocessing, evaluation_batches, open_dataset
from gaternet_tf.data.folder import EXTENSIONS
from gaternet_tf.evaluation import dataset_with_classes
from serving.client.command_line import SUFFIXES
from serving.client.pictures import encode

RNG = np.random.default_rng(0)
KINDS = [
    ("jpg", "RGB"),
    ("JPEG", "CMYK"),
    ("jpeg", "L"),
    ("png", "RGBA"),
    ("png", "P"),
    ("png", "LA"),
    ("png", "I;16"),
    ("bmp", "RGB"),
    ("gif", "P"),
    ("png", "1"),
    ("jfif", "RGB"),
    ("webp", "RGBA"),
]
TRAINING = 2 * len(KINDS)


def save(path, mode="RGB", number=0):
    """Saves a picture of its own size and colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (20 + number % 7, 17 + number % 5)
    pixels = RNG.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """Cats and dogs, a picture of each kind in training and two in the test."""
    for name in ("cat", "dog"):
        for number, (suffix, mode) in enumerate(KINDS):
            save(tmp_path / "pets" / "train" / name / f"{number}.{suffix}", mode, number)
        for number in range(2):
            save(tmp_path / "pets" / "test" / name / f"{number}.png", number=number)
    return tmp_path / "pets"


def opened(folder, **options):
    return open_dataset(f"folder:{folder}", str(folder.parent / "data"), **options)


def test_every_kind_and_size_is_read_as_an_exported_model_reads_it(folder):
    assert EXTENSIONS == SUFFIXES
    # Hidden files and files of other kinds are left out.
    for name in ("cat/.hidden.png", "cat/.cache/x.png", "cat/notes.txt", ".thumbnails/1.png"):
        (folder / "train" / name).parent.mkdir(exist_ok=True)
        (folder / "train" / name).write_text("not a picture")
    dataset = opened(folder)
    assert dataset.labels == ("cat", "dog")
    assert dataset.image_shape == (None, None, 3)
    assert (dataset.size("train"), dataset.size("test")) == (TRAINING, 4)
    assert np.bincount(dataset.labels_of("train")).tolist() == [len(KINDS)] * 2
    assert dataset.remarks == (f"folder '{folder}': left out .txt (1)",)
    preprocessing = Preprocessing(8, 8, 3, (0.0,) * 3, (1.0,) * 3)
    ((images, _),) = evaluation_batches(dataset, preprocessing, TRAINING, "train")
    served = {
        preprocessing.decode(tf.constant(encode(path))).numpy().tobytes()
        for path in (folder / "train").glob("*/[0-9]*.*")
        if path.parent.name in dataset.labels
    }
    assert {image.tobytes() for image in np.rint(images * 255).astype(np.uint8)} == served


def test_what_is_left_out_is_counted_and_classes_without_pictures_are_named(folder):
    for name in ("1.tiff", "train/cat/2.tiff", "train/cat/README", "train/fox/more/3.tiff"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not a picture")
    save(folder / "train" / "4.png")
    # A class may be a link; links below it might lead in circles.
    (folder / "train" / "cow").symlink_to(folder / "train" / "dog")
    (folder / "test" / "cow").symlink_to(folder / "test" / "dog")
    (folder / "train" / "dog" / "circle").symlink_to(folder / "train")
    dataset = opened(folder)
    assert dataset.labels == ("cat", "cow", "dog")
    assert dataset.remarks == (
        f"folder '{folder}': left out .tiff (3), links to directories (2), "
        ".png beside the classes (1), no extension (1); no picture in train/fox",
    )


COLOURS = RNG.integers(0, 256, (256, 3)).astype(np.uint8)
GREYS = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


def test_a_bmps_palette_counts(folder):
    numbers = RNG.integers(0, 5, (6, 5)).astype(np.uint8)
    wanted = []
    for number, palette in enumerate((COLOURS, COLOURS[:5], GREYS[::-1], GREYS)):
        path = folder / "test" / ("cat", "dog")[number % 2] / f"palette{number}.bmp"
        path.write_bytes(palette_bmp(numbers, palette))
        wanted.append(palette[numbers].tobytes())
    read = [image.numpy().tobytes() for image, _ in opened(folder).examples("test")]
    assert set(wanted) < set(read)


def test_a_bmp_that_pillow_would_read_wrongly_is_unreadable(folder):
    black_and_white = palette_bmp(np.ones((6, 5), np.uint8), GREYS[[0, 255]])
    (folder / "test" / "cat" / "0.bmp").write_bytes(black_and_white)
    with pytest.raises(UserError, match=r"0\.bmp: a BMP with two colours"):
        opened(folder)


def test_without_splits_each_class_gives_a_fifth_to_the_test(tmp_path):
    # A class may be called "train" too.
    for name, count in (("bus", 10), ("train", 5)):
        for number in range(count):
            save(tmp_path / "mine" / name / f"{number}.png", number=number)
    first = opened(tmp_path / "mine")
    assert first.labels == ("bus", "train")
    assert np.bincount(first.labels_of("train")).tolist() == [8, 4]
    assert np.bincount(first.labels_of("test")).tolist() == [2, 1]
    again = open_dataset(f"folder:{tmp_path / 'mine'}", str(tmp_path / "elsewhere"))
    for one, other in zip(first.examples("test"), again.examples("test"), strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_a_validation_directory_is_the_test_where_there_is_no_other(folder):
    save(folder / "validation" / "cat" / "1.png")
    dataset = opened(folder)
    assert dataset.size("test") == 4
    assert f"not used of '{folder}': 'validation'; the validation images" in dataset.remarks[0]
    save(folder / "validation" / "dog" / "1.png")
    (folder / "test").rename(folder / ".test")
    dataset = opened(folder)
    assert dataset.size("test") == 2
    assert dataset.remarks == ()


def test_names_of_splits_may_have_capitals(folder):
    (folder / "train").rename(folder / "Training")
    (folder / "test").rename(folder / "TEST")
    dataset = opened(folder)
    assert (dataset.size("train"), dataset.size("test")) == (TRAINING, 4)
    assert dataset.remarks == ()


def test_splits_of_unknown_names_are_no_classes(folder):
    (folder / "train").rename(folder / "learn")
    (folder / "test").rename(folder / "exam")
    with pytest.raises(UserError, match="exam, learn all hold the same directories"):
        opened(folder)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train/cat/1.png", "test/cat/1.png"], "at least two classes.* has 1 to train on"),
        (
            ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/fox/1.png"],
            "only in training: dog; only in the test: fox",
        ),
        (
            ["train/cat/1.png", "train/dog/1.tiff", "test/cat/1.png"],
            "has 1 to train on.*: none; left out .tiff \\(1\\); no picture in train/dog",
        ),
    ],
)
def test_other_layouts_are_refused(tmp_path, names, words):
    for name in names:
        save(tmp_path / "pets" / name)
    with pytest.raises(UserError, match=words):
        opened(tmp_path / "pets")
    with pytest.raises(UserError, match="must be a directory"):
        opened(tmp_path / "nowhere")


def test_unreadable_pictures_are_listed_and_refused_or_left_out(folder, capsys, monkeypatch):
    (folder / "train" / "cat" / "empty.png").write_bytes(b"")
    (folder / "train" / "dog" / "text.jpg").write_text("not a picture")
    whole = (folder / "test" / "cat" / "0.png").read_bytes()
    # A name of a file need not be UTF-8.
    (folder / "test" / "dog" / os.fsdecode(b"\xff.png")).write_bytes(whole[: len(whole) // 2])

    (folder / "train" / "cat" / "link.png").symlink_to("nowhere")
    (folder / "train" / "dog" / "locked").mkdir()
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError) as error:
        opened(folder)
    text = str(error.value)
    counts = f"5 of {TRAINING + 9} pictures"
    assert f"{counts} cannot be read" in text
    for path in (
        "train/cat/empty.png: ",
        "train/dog/text.jpg: ",
        "test/dog/\\xff.png: ",
        "train/cat/link.png: No such file",
        "train/dog/locked: Permission denied",
    ):
        assert f"{folder}/{path}" in text
    assert not (folder.parent / "data").exists()

    dataset = opened(folder, skip_unreadable=True)
    assert (dataset.size("train"), dataset.size("test")) == (TRAINING, 4)
    out = capsys.readouterr().out
    assert f"{counts} cannot be read" in out
    assert "They are left out." in out
    # The copy without them does not count as one of readable pictures.
    with pytest.raises(UserError, match=counts):
        opened(folder)


def test_a_class_that_is_empty_without_the_unreadable_is_refused(folder):
    for path in (folder / "test" / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="only in training: cat; only in the test: none"):
        opened(folder, skip_unreadable=True)


def test_a_run_is_not_tested_on_pictures_that_have_changed(folder):
    dataset = opened(folder)

    def reopen(name=None):
        return dataset_with_classes(
            ["cat", "dog"],
            {"dataset": dataset.name},
            dataset.describe(),
            name,
            str(folder.parent / "data"),
        )

    assert reopen().size("train") == TRAINING
    save(folder / "train" / "cat" / "new.png")
    with pytest.raises(UserError, match=r"has changed.*--dataset=folder:"):
        reopen()
    assert reopen(dataset.name).size("train") == TRAINING + 1
