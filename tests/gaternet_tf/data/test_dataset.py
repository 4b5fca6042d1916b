"""Splits of a dataset: the validation images are stratified, seeded, and never trained on."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gaternet_tf import UserError
from gaternet_tf.data import (
    Augmentation,
    Preprocessing,
    dataset,
    evaluation_batches,
    hold_out,
    open_dataset,
    some_pictures,
    training_batches,
    validation_batches,
)
from gaternet_tf.evaluation import dataset_with_classes

RAW = Preprocessing(8, 8, 1, (0.0,), (1.0,))


def rows(examples):
    return sorted(image.tobytes() for image, _ in examples.as_numpy_iterator())


def pixels(batches):
    images = np.concatenate([images for images, _ in batches])
    return sorted(image.tobytes() for image in np.rint(images * 255).astype(np.uint8))


def test_every_image_trains_or_validates_and_none_does_both(digits):
    held = hold_out(digits, 0.1, seed=0)
    training, validation = (
        rows(files.map(held.decode)) for files in (held.training_files(), held.validation_files())
    )
    assert (len(training), len(validation)) == (held.training_images, held.validation_images)
    assert sorted(training + validation) == rows(digits.examples("train"))
    assert pixels(validation_batches(held, RAW, 100)) == validation
    # No two of scikit-learn's digits are alike to the last pixel.
    assert not set(pixels(training_batches(held, RAW, Augmentation(), 32, range(1), 0))) & set(
        validation
    )


def test_every_class_gives_its_share_chosen_by_the_seed(digits):
    first, again, other = (hold_out(digits, 0.2, seed).validation_mask for seed in (0, 0, 1))
    labels = digits.labels_of("train")
    np.testing.assert_array_equal(np.bincount(labels[first]), np.round(np.bincount(labels) * 0.2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_labels_of_a_large_dataset_are_not_read(digits, monkeypatch):
    monkeypatch.setattr(dataset, "STRATIFIED_IMAGES", 1000)
    monkeypatch.setattr(type(digits), "labels_of", None)
    assert hold_out(digits, 0.1, seed=0).validation_images == 144


class OddlySplit(tfds.core.GeneratorBasedBuilder):
    """Pictures of one value, 0, 1, ..., each in one split; the configuration names the splits.

    A split whose name ends in `-` has no labels.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(
        tfds.core.BuilderConfig(name=name) for name in ("train", "train.test-.val", "train.test-")
    )

    def _info(self):
        return dataset.builder_info(self, (8, 8, 1), ["even", "odd", "rare"])

    def _split_generators(self, dl_manager):
        names = self.builder_config.name.split(".")
        return {
            name.strip("-"): self._generate_examples(60 * place, name.endswith("-"))
            for place, name in enumerate(names)
        }

    def _generate_examples(self, first, secret):
        for value in range(first, first + 60):
            image = np.full((8, 8, 1), value, np.uint8)
            label = 2 if value % 60 == 59 else value % 2
            yield value, {"image": image, "label": -1 if secret else label}


@pytest.fixture
def oddly_split(monkeypatch, tmp_path):
    """Opens the dataset with these splits."""
    monkeypatch.setattr("gaternet_tf.data.sources._unreachable", lambda url: None)
    return lambda splits: open_dataset(f"oddly_split/{splits}", str(tmp_path / "data"))


def values(examples):
    return [int(image[0, 0, 0]) for image, _ in examples]


def test_the_test_split_is_the_first_with_labels(oddly_split):
    opened = oddly_split("train.test-.val")
    assert (opened.test_split, opened.describe()["test_split"]) == ("val", "val")
    assert set(opened.labels_of("val")) == {0, 1, 2}
    assert opened.remarks == ()


def test_a_dataset_without_a_test_is_refused(oddly_split):
    with pytest.raises(UserError, match=r"'train' and 'test' .*'test' \(60 images"):
        oddly_split("train.test-")


def test_a_lone_training_split_gives_a_fifth_to_the_test(oddly_split):
    opened = oddly_split("train")
    facts = opened.describe()
    assert (facts["test_split"], facts["test_held_out_of"]) == ("test", "train")
    assert (facts["train_images"], facts["test_images"]) == (48, 12)
    assert opened.splits == ["test", "train"]
    train, test = values(opened.examples("train")), values(opened.examples("test"))
    assert sorted(train + test) == list(range(60))
    assert np.bincount(opened.labels_of("test")).tolist() == [6, 6]
    assert np.bincount(opened.labels_of("train")).tolist() == [24, 23, 1]
    assert values(oddly_split("train").examples("test")) == test
    assert "a seeded 20% of 'train'" in opened.remarks[0]

    held = hold_out(opened, 0.25, seed=0)
    assert (held.training_images, held.validation_images) == (36, 12)
    validation = values(held.validation_files().map(held.decode))
    assert set(validation) < set(train)

    batches = list(evaluation_batches(opened, RAW, 5))
    images = np.concatenate([images for images, _ in batches])[:, 0, 0, 0]
    assert np.rint(images * 255).astype(int).tolist() == test
    (picture,) = some_pictures(opened, RAW, "test", np.array([3]))
    assert int(picture[0, 0, 0]) == test[3]
    with pytest.raises(UserError, match="must be one of test, train, got 'validation'"):
        evaluation_batches(opened, RAW, 5, "validation")


def test_a_new_version_is_refused_where_the_test_is_drawn_from_it(oddly_split, monkeypatch):
    opened = oddly_split("train")
    monkeypatch.setattr(OddlySplit, "VERSION", tfds.core.Version("1.0.1"))
    with pytest.raises(UserError, match=r"changed.*1\.0\.0.*1\.0\.1"):
        dataset_with_classes(
            list(opened.labels),
            {"dataset": opened.name},
            opened.describe(),
            data_dir=str(opened.builder.data_dir_root),
        )
