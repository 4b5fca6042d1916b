"""ImageNet, made by TFDS from small archives in exactly the format of the published ones."""

import dataclasses
import io
import tarfile

import numpy as np
import pytest
import tensorflow as tf

from gaternet_tf import UserError
from gaternet_tf.data import (
    Preprocessing,
    defaults,
    evaluation_batches,
    open_dataset,
    training_batches,
)

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def add_to_tar(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def jpeg(height, width):
    small = np.random.default_rng(height).integers(0, 256, (height // 20, width // 20, 3))
    image = tf.image.resize(small, (height, width))
    return tf.io.encode_jpeg(tf.saturate_cast(image, tf.uint8)).numpy()


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """The directory of the archives, with 3 pictures of 4 classes and 5 validation pictures."""
    manual = tmp_path / "data" / "downloads" / "manual"
    manual.mkdir(parents=True)
    with tarfile.open(manual / TRAIN, "w") as outer:
        for synset in ("n01440764", "n01443537", "n01484850", "n01491361"):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for number in range(3):
                    add_to_tar(inner, f"{synset}_{number}.JPEG", jpeg(300 + 20 * number, 400))
            add_to_tar(outer, f"{synset}.tar", buffer.getvalue())
    with tarfile.open(manual / VALIDATION, "w") as archive:
        for number in range(1, 6):
            add_to_tar(archive, f"ILSVRC2012_val_{number:08d}.JPEG", jpeg(240, 500))
    sizes = tuple((name, (manual / name).stat().st_size) for name in (TRAIN, VALIDATION))
    small = dataclasses.replace(defaults.defaults_of("imagenet2012"), manual_files=sizes)
    monkeypatch.setitem(defaults.DEFAULTS, "imagenet2012", small)
    return manual


def test_imagenet_is_made_from_the_archives_and_cropped_as_the_recipe_says(archives, tmp_path):
    dataset = open_dataset("imagenet2012", str(tmp_path / "data"), download=False)
    assert (dataset.size("train"), dataset.test_split) == (12, "validation")
    assert (dataset.size("validation"), len(dataset.labels)) == (5, 1000)
    augmentation = dataset.defaults.augmentation
    assert (augmentation.resized_crop, augmentation.flip) == (True, True)
    assert (dataset.defaults.image_size, dataset.defaults.resize) == (224, 256)
    mean, std = dataset.defaults.statistics
    assert mean == (0.485, 0.456, 0.406)
    preprocessing = Preprocessing(224, 224, 3, mean, std, resize=256)

    # 224 of the middle of a picture whose shorter side, 240 pixels, was scaled to 256.
    image, label = next(iter(dataset.examples("validation")))
    scaled = tf.image.resize(image, (256, round(500 * 256 / 240)), antialias=True)
    scaled = tf.saturate_cast(tf.round(scaled), tf.uint8)[16:240, 154:378]
    batch, labels = next(iter(evaluation_batches(dataset, preprocessing, 5)))
    np.testing.assert_array_equal(batch[0], preprocessing.normalize(scaled[None])[0])
    assert labels[0] == label

    def epoch(number, **options):
        epochs = range(number, number + 1)
        data = training_batches(dataset, preprocessing, augmentation, 4, epochs, 0, **options)
        return np.concatenate([images for images, _ in data])

    first = epoch(0)
    assert first.shape == (12, 224, 224, 3)
    assert (first != epoch(1)).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(first[8:], epoch(0, first_step=2))


def test_an_archive_that_is_missing_or_cut_off_is_named_before_any_work(archives, tmp_path):
    (archives / TRAIN).write_bytes(b"cut off")
    (archives / VALIDATION).unlink()
    with pytest.raises(UserError) as error:
        open_dataset("imagenet2012", str(tmp_path / "data"))
    for name in (TRAIN, VALIDATION):
        assert f"{archives / name} must have" in str(error.value)
    assert not (tmp_path / "data" / "imagenet2012").exists()
