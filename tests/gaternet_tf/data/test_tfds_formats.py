"""TFDS datasets, made by TFDS from small files in exactly the format of the published ones."""

import dataclasses
import io
import tarfile

import numpy as np
import pytest
import scipy.io
import tensorflow as tf
import tensorflow_datasets as tfds

from gaternet_tf import UserError
from gaternet_tf.data import (
    Preprocessing,
    defaults,
    evaluation_batches,
    open_dataset,
    training_batches,
)

PICTURES = 40


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (PICTURES, 32, 32, 3)).astype(np.uint8)


def write_idx(path, array):
    """The IDX format: two zero bytes, type 8 (uint8), rank, sizes, data."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def publisher(monkeypatch, tmp_path):
    """Lets TFDS "download" files by their names from a directory, which the test fills."""
    directory = tmp_path / "published"
    directory.mkdir()

    def fetch(self, urls):
        return tf.nest.map_structure(
            lambda url: directory / str(url).rpartition("/")[2].removesuffix(".gz"), urls
        )

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fetch)
    monkeypatch.setattr(tfds.download.DownloadManager, "download", fetch)
    monkeypatch.setattr("gaternet_tf.data.sources._unreachable", lambda url: None)
    return directory


def by_bytes(images, labels):
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def stored(dataset, split):
    return sorted((image.numpy().tobytes(), int(label)) for image, label in dataset.examples(split))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_format(name, publisher, pictures, tmp_path, monkeypatch):
    # TFDS skips the header by itself and takes the published counts for given.
    counts = {"_TRAIN_EXAMPLES": PICTURES - 10, "_TEST_EXAMPLES": 10}
    for constant, count in counts.items():
        monkeypatch.setattr(
            f"tensorflow_datasets.image_classification.mnist.{constant}", count, raising=False
        )
    grey, labels = pictures[:, :28, :28, 0], np.arange(PICTURES) % 10
    for prefix, part in (("train", slice(0, -10)), ("t10k", slice(-10, None))):
        write_idx(publisher / f"{prefix}-images-idx3-ubyte", grey[part])
        write_idx(publisher / f"{prefix}-labels-idx1-ubyte", labels[part])
    dataset = open_dataset(name, str(tmp_path / "data"))
    assert dataset.image_shape == (28, 28, 1)
    assert stored(dataset, "test") == by_bytes(grey[-10:], labels[-10:])
    assert stored(dataset, "train") == by_bytes(grey[:-10], labels[:-10])
    assert dataset.labels[-1] == {"mnist": "9", "fashion_mnist": "Ankle boot"}[name]


def test_svhn_format(publisher, pictures, tmp_path):
    labels = np.arange(PICTURES) % 10 + 1  # A zero is stored as 10.
    parts = {"train": slice(0, -10), "test": slice(-10, None), "extra": slice(0, 3)}
    for split, part in parts.items():
        content = {"X": pictures[part].transpose(1, 2, 3, 0), "y": labels[part, None]}
        scipy.io.savemat(publisher / f"{split}_32x32.mat", content)
    dataset = open_dataset("svhn_cropped", str(tmp_path / "data"))
    assert (dataset.size("train"), dataset.size("test")) == (PICTURES - 10, 10)
    assert stored(dataset, "test") == by_bytes(pictures[-10:], labels[-10:] % 10)


def add_to_tar(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def jpeg(rng, height, width):
    small = rng.integers(0, 256, (height // 20, width // 20, 3)).astype(np.uint8)
    image = tf.image.resize(small, (height, width))
    return tf.io.encode_jpeg(tf.saturate_cast(image, tf.uint8)).numpy()


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """The two archives, with 3 pictures of 4 classes and 5 validation pictures."""
    rng = np.random.default_rng(0)
    manual = tmp_path / "data" / "downloads" / "manual"
    manual.mkdir(parents=True)
    synsets = [f"n{number:08d}" for number in (1440764, 1443537, 1484850, 1491361)]
    with tarfile.open(manual / "ILSVRC2012_img_train.tar", "w") as outer:
        for synset in synsets:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for number in range(3):
                    name = f"{synset}_{number}.JPEG"
                    add_to_tar(inner, name, jpeg(rng, 300 + 20 * number, 400))
            add_to_tar(outer, f"{synset}.tar", buffer.getvalue())
    with tarfile.open(manual / "ILSVRC2012_img_val.tar", "w") as archive:
        for number in range(1, 6):
            name = f"ILSVRC2012_val_{number:08d}.JPEG"
            add_to_tar(archive, name, jpeg(rng, 240, 500))
    with tarfile.open(manual / "ILSVRC2012_img_test.tar", "w") as archive:
        add_to_tar(archive, "ILSVRC2012_test_00000001.JPEG", jpeg(rng, 240, 300))
    sizes = tuple(
        (name, (manual / name).stat().st_size) for name, _ in defaults_of_imagenet().manual_files
    )
    small = dataclasses.replace(defaults_of_imagenet(), manual_files=sizes)
    monkeypatch.setitem(defaults.DEFAULTS, "imagenet2012", small)
    return manual


def defaults_of_imagenet():
    return defaults.DEFAULTS["imagenet2012"]


def test_imagenet_is_made_from_the_archives_and_cropped_as_the_recipe_says(imagenet, tmp_path):
    data_dir = str(tmp_path / "data")
    dataset = open_dataset("imagenet2012", data_dir, download=False)
    assert (dataset.size("train"), dataset.test_split) == (12, "validation")
    assert dataset.size("validation") == 5
    assert len(dataset.labels) == 1000

    augmentation = dataset.defaults.augmentation
    assert (augmentation.resized_crop, augmentation.flip) == (True, True)
    assert (dataset.defaults.image_size, dataset.defaults.resize) == (224, 256)
    mean, std = dataset.defaults.statistics
    assert mean == (0.485, 0.456, 0.406)
    preprocessing = Preprocessing(224, 224, 3, mean, std, resize=256)

    # 224 of the middle of a picture whose shorter side, 240 pixels, was scaled to 256.
    (image, label), *_ = dataset.examples("validation")
    scaled = tf.image.resize(image, (256, round(500 * 256 / 240)), antialias=True)
    scaled = tf.saturate_cast(tf.round(scaled), tf.uint8)[16:240, 154:378]
    batch, labels = next(iter(evaluation_batches(dataset, preprocessing, 5)))
    np.testing.assert_array_equal(batch[0], preprocessing.normalize(scaled[None])[0])
    assert labels[0] == label

    def epoch(number, **options):
        data = training_batches(
            dataset, preprocessing, augmentation, 4, range(number, number + 1), 0, **options
        )
        return np.concatenate([images for images, _ in data])

    first = epoch(0)
    assert first.shape == (12, 224, 224, 3)
    np.testing.assert_array_equal(first, epoch(0))
    assert (first != epoch(1)).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(first[8:], epoch(0, first_step=2))


def test_an_archive_that_is_missing_or_cut_off_is_named_before_any_work(imagenet, tmp_path):
    (imagenet / "ILSVRC2012_img_train.tar").write_bytes(b"cut off")
    (imagenet / "ILSVRC2012_img_val.tar").unlink()
    with pytest.raises(UserError) as error:
        open_dataset("imagenet2012", str(tmp_path / "data"))
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        assert f"{imagenet / name} must have" in str(error.value)
    assert "by hand" in str(error.value)
    assert not (tmp_path / "data" / "imagenet2012").exists()
