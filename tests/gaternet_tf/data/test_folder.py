"""A person's own pictures: every layout, kind and size; bad ones are listed by their paths."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from helpers import palette_bmp, run_module, small_config
from PIL import Image

from gaternet_tf import UserError
from gaternet_tf.analysis.analyse import AnalysisConfig, analyse
from gaternet_tf.analysis.networks import network_of_run
from gaternet_tf.data import Preprocessing, evaluation_batches, open_dataset
from gaternet_tf.evaluation import evaluate_run, gates_of_run
from train.loop import train

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
]


def save(path, mode="RGB", number=0):
    """A picture of its own size and colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (20 + number % 7, 17 + number % 5)
    pixels = RNG.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """cats and dogs, ten pictures each in training and two each in the test."""
    for name in ("cat", "dog"):
        for number, (suffix, mode) in enumerate(KINDS):
            save(tmp_path / "pets" / "train" / name / f"{number}.{suffix}", mode, number)
        for number in range(2):
            save(tmp_path / "pets" / "test" / name / f"{number}.png", number=number)
    return tmp_path / "pets"


def opened(folder, **options):
    return open_dataset(f"folder:{folder}", str(folder.parent / "data"), **options)


def test_every_kind_and_size_is_read(folder):
    dataset = opened(folder)
    assert dataset.labels == ("cat", "dog")
    assert dataset.image_shape == (None, None, 3)
    assert (dataset.size("train"), dataset.size("test")) == (20, 4)
    pairs = [(image.numpy(), int(label)) for image, label in dataset.examples("train")]
    assert {image.shape[2] for image, _ in pairs} == {3}
    assert len({image.shape for image, _ in pairs}) > 5
    assert np.bincount([label for _, label in pairs]).tolist() == [10, 10]


def test_pictures_are_read_as_an_exported_model_reads_them(folder):
    dataset = opened(folder)
    preprocessing = Preprocessing(8, 8, 3, (0.0,) * 3, (1.0,) * 3)
    batches = list(evaluation_batches(dataset, preprocessing, 4))
    found = np.rint(batches[0][0] * 255).astype(np.uint8)
    wanted = {
        preprocessing.decode(tf.constant(path.read_bytes())).numpy().tobytes()
        for path in (folder / "test").rglob("*.png")
    }
    assert {image.tobytes() for image in found} == wanted


COLOURS = RNG.integers(0, 256, (256, 3)).astype(np.uint8)
RAMP = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


@pytest.mark.parametrize(
    ("palette", "top_down"),
    [
        (COLOURS, False),
        (COLOURS, True),
        (COLOURS[:5], False),
        (RAMP[[0, 255]], False),
        (RAMP, False),
    ],
)
def test_a_bmps_palette_counts(folder, palette, top_down):
    numbers = RNG.integers(0, len(palette), (6, 5)).astype(np.uint8)
    for path in (folder / "test").rglob("*.png"):
        path.with_suffix(".bmp").write_bytes(palette_bmp(numbers, palette, top_down))
        path.unlink()
    dataset = opened(folder)
    for image, _ in dataset.examples("test"):
        np.testing.assert_array_equal(image, palette[numbers])


def test_a_copy_from_before_palettes_counted_is_not_taken(folder, monkeypatch):
    bmp = palette_bmp(RNG.integers(0, 256, (6, 5)).astype(np.uint8), COLOURS)
    (folder / "test" / "cat" / "0.bmp").write_bytes(bmp)
    now = opened(folder).data_dir
    monkeypatch.setattr("gaternet_tf.data.folder.palette_of", lambda head: None)
    assert opened(folder).data_dir != now


def test_a_run_length_encoded_bmp_is_unreadable(folder):
    bmp = bytearray(palette_bmp(np.zeros((6, 5), np.uint8), COLOURS))
    bmp[30] = 1
    (folder / "test" / "cat" / "0.bmp").write_bytes(bmp)
    with pytest.raises(UserError, match=r"0\.bmp: a BMP must not be run-length encoded"):
        opened(folder)


def test_hidden_files_and_other_kinds_are_left_out(folder):
    for name in (".hidden.png", "notes.txt", ".cache/x.png"):
        path = folder / "train" / "cat" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("not a picture")
    save(folder / "train" / ".thumbnails" / "1.png")
    assert opened(folder).size("train") == 20


def test_without_splits_each_class_gives_a_fifth_to_the_test(tmp_path):
    for name, count in (("a", 10), ("b", 5)):
        for number in range(count):
            save(tmp_path / "mine" / name / f"{number}.png", number=number)
    first = opened(tmp_path / "mine")
    assert np.bincount(first.labels_of("train")).tolist() == [8, 4]
    assert np.bincount(first.labels_of("test")).tolist() == [2, 1]
    rows = [image.numpy().tobytes() for image, _ in first.examples("test")]
    again = open_dataset(f"folder:{tmp_path / 'mine'}", str(tmp_path / "elsewhere"))
    assert sorted(rows) == sorted(image.numpy().tobytes() for image, _ in again.examples("test"))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_directory_is_the_test_where_there_is_no_other(folder, name):
    (folder / "test").rename(folder / name)
    assert opened(folder).size("test") == 4


def test_directories_that_are_not_used_are_told(folder, capsys):
    assert opened(folder).remarks == []
    for name in ("Val", "more", ".hidden"):
        for label in ("cat", "dog"):
            save(folder / name / label / "1.png")
    (folder / "notes").mkdir()
    config = small_config(
        str(folder.parent / "data"), dataset=f"folder:{folder}", image_size=8, batch_size=8
    )
    train(config, folder.parent / "run")
    printed = capsys.readouterr().out
    assert "2 validate, 4 of 'test' test" in printed
    assert f"not used of '{folder}': 'Val', 'more'; the validation images are always" in printed


@pytest.mark.parametrize(("train", "test"), [("Training", "Testing"), ("TRAIN", "Valid")])
def test_splits_may_have_other_names(folder, train, test):
    (folder / "train").rename(folder / train)
    (folder / "test").rename(folder / test)
    dataset = opened(folder)
    assert dataset.labels == ("cat", "dog")
    assert (dataset.size("train"), dataset.size("test")) == (20, 4)


def test_splits_of_unknown_names_are_no_classes(folder):
    (folder / "train").rename(folder / "learn")
    (folder / "test").rename(folder / "exam")
    with pytest.raises(UserError, match="exam, learn all hold the same directories"):
        opened(folder)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "car", "train"):
        for number in range(5):
            save(tmp_path / "mine" / name / f"{number}.png", number=number)
    assert opened(tmp_path / "mine").labels == ("bus", "car", "train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_is_empty_without_the_unreadable_is_refused(folder, split):
    for path in (folder / split / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"two classes|must have the same classes"):
        opened(folder, skip_unreadable=True)


def test_a_new_picture_is_seen(folder):
    assert opened(folder).size("train") == 20
    save(folder / "train" / "cat" / "new.png")
    assert opened(folder).size("train") == 21


def break_pictures(folder):
    (folder / "train" / "cat" / "empty.png").write_bytes(b"")
    (folder / "train" / "dog" / "text.jpg").write_text("not a picture")
    whole = (folder / "test" / "cat" / "0.png").read_bytes()
    (folder / "test" / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])


def test_unreadable_pictures_are_listed_and_refused(folder):
    break_pictures(folder)
    with pytest.raises(UserError) as error:
        opened(folder)
    text = str(error.value)
    assert "3 of 27 pictures cannot be read" in text
    for path in ("train/cat/empty.png: ", "train/dog/text.jpg: ", "test/dog/cut.png: "):
        assert f"{folder}/{path}" in text
    assert "--skip_unreadable" in text
    assert not (folder.parent / "data").exists()


def named(directory, name):
    """The first picture of a directory under a name that may be no text."""
    path = directory / os.fsdecode(name)
    min(directory.glob("*.png")).rename(path)
    return path


def test_a_file_name_that_is_no_text_works_and_can_be_told(folder, capsys):
    path = named(folder / "test" / "cat", b"\xff.png")
    assert opened(folder).size("test") == 4
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"cat/\\xff\.png: ") as error:
        opened(folder)
    str(error.value).encode()
    assert opened(folder, skip_unreadable=True).size("test") == 3
    assert "\\xff.png" in capsys.readouterr().out


def test_a_class_or_a_set_whose_name_is_no_text_is_refused(folder):
    (folder / "test" / "cat").rename(folder / "test" / os.fsdecode(b"\xff"))
    with pytest.raises(UserError, match=r"in UTF-8, and '.*test/\\xff' has other bytes; rename"):
        opened(folder)
    odd = folder.with_name(os.fsdecode(b"\xfe"))
    folder.rename(odd)
    with pytest.raises(UserError, match=r"--dataset must be text in UTF-8, and '.*\\xfe' has"):
        opened(odd)
    (odd / "test" / os.fsdecode(b"\xff")).rename(odd / "test" / "cat")
    folder.symlink_to(odd)
    assert opened(folder).size("test") == 4


def test_unreadable_pictures_are_left_out_when_asked(folder, capsys):
    break_pictures(folder)
    dataset = opened(folder, skip_unreadable=True)
    assert (dataset.size("train"), dataset.size("test")) == (20, 4)
    assert "leaving out 3 of 27 pictures" in capsys.readouterr().out
    # The copy without them is no answer to the question whether all can be read.
    with pytest.raises(UserError, match="3 of 27"):
        opened(folder)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "with two classes .* has 0 \\(none\\)"),
        (["train/cat/1.png", "test/cat/1.png"], "has 1 \\(cat\\) to train on"),
        (["train/cat/1.png", "train/dog/1.png"], "has 'train' and no 'test'"),
        (
            ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/fox/1.png"],
            "only in training: dog; only in the test: fox",
        ),
        (["1.png"], "has 0 \\(none\\)"),
    ],
)
def test_other_layouts_are_refused(tmp_path, names, words):
    (tmp_path / "pets").mkdir()
    for name in names:
        save(tmp_path / "pets" / name)
    with pytest.raises(UserError, match=words):
        opened(tmp_path / "pets")


def test_no_directory_is_refused(tmp_path):
    with pytest.raises(UserError, match="must be a directory"):
        opened(tmp_path / "nowhere")


def test_trains_from_the_command_line(folder, tmp_path):
    flags = ["--dataset=folder:pets", "--data_dir=data", "--image_size=8", "--epochs=1"]
    flags += ["--backbone=resnet8", "--gater=resnet8", "--batch_size=8", "--workdir=run"]
    done = run_module("train.main", *flags, cwd=tmp_path)
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["dataset"]["labels"] == [
        "cat",
        "dog",
    ]
    done = run_module("train.evaluate", "--workdir=run", "--data_dir=data", cwd=tmp_path)
    assert done.status == 0, done.err
    assert (tmp_path / "run" / "evaluation-folder-pets-test.json").exists()


def test_a_run_is_not_tested_on_what_it_has_trained_on(tmp_path):
    for name in ("a", "b"):
        for number in range(10):
            save(tmp_path / "mine" / name / f"{number}.png", number=number)
    data_dir = str(tmp_path / "data")
    name = f"folder:{tmp_path / 'mine'}"
    config = small_config(data_dir, dataset=name, image_size=8, batch_size=8)
    train(config, tmp_path / "run")
    assert evaluate_run(tmp_path / "run", data_dir=data_dir)["images"] == 4

    save(tmp_path / "mine" / "a" / "another.png")
    for command in (
        lambda: evaluate_run(tmp_path / "run", data_dir=data_dir),
        lambda: gates_of_run(tmp_path / "run", data_dir),
        lambda: analyse(network_of_run(tmp_path / "run"), AnalysisConfig(data_dir=data_dir)),
    ):
        with pytest.raises(UserError, match=r"has changed since \(content: .*--dataset=folder:"):
            command()
    assert evaluate_run(tmp_path / "run", dataset=name, data_dir=data_dir)["images"] == 4
    (tmp_path / "mine" / "a" / "another.png").unlink()
    assert evaluate_run(tmp_path / "run", data_dir=data_dir)["images"] == 4
