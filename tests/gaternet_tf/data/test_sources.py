"""Datasets by name: our digits, sets of TFDS, and what happens when one is not there."""

import json
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers import small_config, stand_in_for_cifar_servers
from sklearn.datasets import load_digits

from gaternet_tf import UserError
from gaternet_tf.data import (
    Preprocessing,
    evaluation_batches,
    hold_out,
    open_dataset,
    some_pictures,
    stratification,
)
from gaternet_tf.data.sources import REACH_SECONDS, _unreachable
from gaternet_tf.evaluation import evaluate_run
from train.loop import TrainingConfig, choose_augmentation, choose_preprocessing, train


def everything(dataset, split):
    pairs = [(image.numpy(), int(label)) for image, label in dataset.examples(split)]
    return np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs])


def test_digits_are_those_of_scikit_learn_each_in_one_split(digits):
    pixels, labels = load_digits(return_X_y=True)
    wanted = sorted(
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(pixels, labels, strict=True)
    )
    train, test = everything(digits, "train"), everything(digits, "test")
    assert (len(train[0]), len(test[0])) == (1437, 360)
    assert train[0].dtype == np.uint8
    assert train[0].shape[1:] == digits.image_shape == (8, 8, 1)
    found = [
        (image.tobytes(), label)
        for split in (train, test)
        for image, label in zip(*split, strict=True)
    ]
    assert sorted(found) == wanted
    assert set(train[1]) == set(test[1]) == set(range(10))
    assert digits.labels == tuple("0123456789")


def test_a_prepared_set_opens_again_without_being_made_again(data_dir, capsys):
    assert open_dataset("digits", data_dir).describe()["train_images"] == 1437
    assert capsys.readouterr().out == ""


def test_cifar10_is_fetched_with_an_announcement_and_read(monkeypatch, tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(24) % 10
    fetched = stand_in_for_cifar_servers(monkeypatch, tmp_path / "archive", images, labels)
    dataset = open_dataset("cifar10", str(tmp_path / "data"))
    assert "cifar10: downloading 162.17 MiB to" in capsys.readouterr().out
    assert fetched == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]

    assert (dataset.size("train"), dataset.size("test")) == (20, 4)
    assert dataset.labels[:2] == ("airplane", "automobile")
    found, found_labels = everything(dataset, "test")
    wanted = {image.tobytes(): label for image, label in zip(images[-4:], labels[-4:], strict=True)}
    got = zip(found, found_labels, strict=True)
    assert {image.tobytes(): label for image, label in got} == wanted

    preprocessing = choose_preprocessing(TrainingConfig(), dataset)
    assert preprocessing.mean == (0.4914, 0.4822, 0.4465)
    assert preprocessing.std == (0.2470, 0.2435, 0.2616)
    augmentation = choose_augmentation(TrainingConfig(), dataset)
    assert (augmentation.padding, augmentation.flip) == (4, True)
    assert not choose_augmentation(TrainingConfig(flip=False), dataset).flip

    # From now on it is on disk, and nothing asks the network.
    monkeypatch.undo()
    assert open_dataset("cifar10", str(tmp_path / "data"), download=False).size("train") == 20


def test_an_unknown_set_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'digits', idx:DIR.*TFDS.*got 'no_such_set'"):
        open_dataset("no_such_set", str(tmp_path))


@pytest.mark.parametrize("name", ["cifar10:9.9.9", "eurosat/nothing", "a/b/c", "cifar10:new"])
def test_an_unknown_version_or_configuration_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=f"NAME/CONFIG:VERSION of one; got '{name}'"):
        open_dataset(name, str(tmp_path))


def test_a_configuration_and_a_version_can_be_named(tmp_path):
    with pytest.raises(UserError, match=r"eurosat/rgb.* is not in .*eurosat/rgb/2.0.0"):
        open_dataset("eurosat/rgb:2.0.0", str(tmp_path), download=False)


def test_what_a_dataset_raises_while_it_is_made_is_told(monkeypatch, tmp_path):
    def fail(self, **options):
        raise tfds.download.DownloadError("checksum mismatch")

    monkeypatch.setattr("gaternet_tf.data.sources._unreachable", lambda url: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UserError, match=r"cifar10.*DownloadError: checksum mismatch.*downloads"):
        open_dataset("cifar10", str(tmp_path))


def test_a_set_that_is_not_on_disk_is_refused_in_seconds_and_leaves_nothing(tmp_path):
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        open_dataset("cifar10", str(tmp_path), download=False)
    assert time.monotonic() - started < 5
    for word in (str(tmp_path), "--data_dir", "--dataset=digits"):
        assert word in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_publisher_is_named_with_the_flags_that_help(monkeypatch, tmp_path):
    monkeypatch.setattr("gaternet_tf.data.sources._unreachable", lambda url: "no route")
    with pytest.raises(UserError, match=r"toronto.*no route.*--data_dir.*--dataset=digits"):
        open_dataset("cifar10", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_set_to_be_fetched_by_hand_says_how(tmp_path):
    with pytest.raises(
        UserError, match=r"imagenet2012.*by hand(?s:.*)147,897,477,120(?s:.*)--data_dir"
    ):
        open_dataset("imagenet2012", str(tmp_path))


def test_reaching_out_ends_in_time(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert "refused" in _unreachable("http://127.0.0.1:9/x")
    over = threading.Event()

    def hang(*arguments, **options):
        over.wait(60)
        raise OSError("nothing there")

    monkeypatch.setattr("urllib.request.urlopen", hang)
    monkeypatch.setattr("gaternet_tf.data.sources.REACH_SECONDS", 0.1)
    started = time.monotonic()
    assert "no answer" in _unreachable("http://127.0.0.1:9/x")
    assert time.monotonic() - started < REACH_SECONDS
    over.set()


def test_a_set_without_classes_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: True)
    with pytest.raises(UserError, match="'image' and a class 'label'; 'div2k' has"):
        open_dataset("div2k", str(tmp_path))


class OddlySplit(tfds.core.GeneratorBasedBuilder):
    """Pictures of one value, 0, 1, ..., each in one split; the configuration names the splits.

    As `-` says, a split may have no labels. TFDS knows no files of it to fetch.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(
        tfds.core.BuilderConfig(name=name)
        for name in (
            "train",
            "train.test-.validation",
            "train.test-.val",
            "train.test-",
            "train.extra",
            "test",
            "train.validation.test",
        )
    )

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=["even", "odd", "rare"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

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
    """Opens the set with these splits; its page is reached."""
    monkeypatch.setattr("gaternet_tf.data.sources._unreachable", lambda url: None)
    return lambda splits: open_dataset(f"oddly_split/{splits}", str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("splits", "test"),
    [
        ("train.test-.validation", "validation"),
        ("train.test-.val", "val"),
        ("train.validation.test", "test"),
    ],
)
def test_the_test_split_is_the_first_with_labels(oddly_split, splits, test):
    dataset = oddly_split(splits)
    assert (dataset.test_split, dataset.describe()["test_split"]) == (test, test)
    assert set(everything(dataset, test)[1]) == {0, 1, 2}
    assert dataset.remarks == []


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ("train.test-", "must have a test split with labels; '.*' has none in 'test'"),
        ("train.extra", r"'train' and 'test' .* has 'extra' \(60 images\), 'train' \(60 images\)"),
        ("test", r"has 'test' \(60 images\)"),
    ],
)
def test_a_set_without_a_test_or_training_split_is_refused(oddly_split, splits, words):
    with pytest.raises(UserError, match=words):
        oddly_split(splits)


@pytest.mark.parametrize("limit", [1000, 50])
def test_a_lone_training_split_gives_a_fifth_to_the_test(oddly_split, monkeypatch, limit):
    monkeypatch.setattr(stratification, "STRATIFIED_IMAGES", limit)
    dataset = oddly_split("train")
    facts = dataset.describe()
    assert (facts["test_split"], facts["test_held_out_of"]) == ("test", "train")
    assert (facts["train_images"], facts["test_images"]) == (48, 12)
    assert dataset.splits == ["test", "train"]
    train, test = everything(dataset, "train"), everything(dataset, "test")
    values = [set(images[:, 0, 0, 0].tolist()) for images, _ in (train, test)]
    assert [len(each) for each in values] == [48, 12]
    assert values[0] | values[1] == set(range(60))
    if limit == 1000:
        assert np.bincount(test[1]).tolist() == [6, 6]
        assert np.bincount(train[1]).tolist() == [24, 23, 1]
    for split, (_, labels) in (("train", train), ("test", test)):
        assert dataset.labels_of(split).tolist() == labels.tolist()
    again = oddly_split("train")
    np.testing.assert_array_equal(everything(again, "test")[0], test[0])
    assert "a seeded 20% of 'train'" in dataset.remarks[0]


def test_validation_is_held_out_of_what_the_test_leaves(oddly_split):
    dataset = oddly_split("train")
    raw = Preprocessing(8, 8, 1, (0.0,), (1.0,))
    tests = everything(dataset, "test")[0][:, 0, 0, 0].tolist()
    parts = []
    for seed in (0, 1):
        held = hold_out(dataset, 0.25, seed)
        assert (held.training_images, held.validation_images) == (36, 12)
        train, validation = (
            [int(held.decode(*pair)[0][0, 0, 0]) for pair in files]
            for files in (held.training_files(), held.validation_files())
        )
        assert sorted(train + validation + tests) == list(range(60))
        parts.append(validation)
    assert parts[0] != parts[1]
    batches = list(evaluation_batches(dataset, raw, 5))
    found = np.concatenate([images for images, _ in batches])[:, 0, 0, 0]
    assert np.rint(found * 255).astype(int).tolist() == tests
    wanted = np.arange(12) == 3
    (picture,) = some_pictures(dataset, raw, "test", wanted)
    assert int(picture[0, 0, 0]) == tests[3]
    with pytest.raises(UserError, match="must be one of test, train, got 'validation'"):
        evaluation_batches(dataset, raw, 5, "validation")


def test_a_set_whose_files_tfds_does_not_list_is_refused_where_its_page_is_not_reached(
    monkeypatch, tmp_path
):
    monkeypatch.setattr("gaternet_tf.data.sources._unreachable", lambda url: f"no {url}")
    with pytest.raises(UserError, match=r"domainnet.* cannot be reached \(no http"):
        open_dataset("domainnet", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_run_tells_and_records_that_its_test_was_held_out(
    oddly_split, tmp_path, monkeypatch, capsys
):
    oddly_split("train")
    config = small_config(
        str(tmp_path / "data"), dataset="oddly_split/train", batch_size=8, steps_per_epoch=1
    )
    result = train(config, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "44 images of 'train' train, 4 validate, 12 of 'test' test" in printed
    assert "'test' is a seeded 20% of 'train'" in printed
    assert result["test_images"] == 12
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["dataset"]
    assert (recorded["test_held_out_of"], recorded["train_images"]) == ("train", 44)
    again = evaluate_run(tmp_path / "run", data_dir=str(tmp_path / "data"))
    assert again["accuracy"] == result["test_accuracy"]
    # Another version's images come in another order: other ones are the test.
    monkeypatch.setattr(OddlySplit, "VERSION", tfds.core.Version("1.0.1"))
    with pytest.raises(UserError, match=r"changed since \(version: 1\.0\.0 then, 1\.0\.1 now\)"):
        evaluate_run(tmp_path / "run", data_dir=str(tmp_path / "data"))
