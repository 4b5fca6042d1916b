"""Datasets by name: our digits, TFDS datasets, and what happens when one is not on disk."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from gaternet_tf import UserError
from gaternet_tf.data import open_dataset
from gaternet_tf.data.sources import _unreachable


def stand_in_for_cifar_server(monkeypatch, directory, images, labels) -> list[str]:
    """Lets TFDS "download" these pictures; returns the list of addresses it asked for, so far.

    The published archive holds a label byte and 3,072 bytes [3, 32, 32] of each picture. The last
    four pictures are the test set.
    """
    folder = directory / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    (folder / "batches.meta.txt").write_text(names.replace(" ", "\n") + "\n")
    records = [
        bytes([label]) + image.transpose(2, 0, 1).tobytes()
        for image, label in zip(images, labels, strict=True)
    ]
    for number in range(1, 6):
        (folder / f"data_batch_{number}.bin").write_bytes(b"".join(records[number - 1 : -4 : 5]))
    (folder / "test_batch.bin").write_bytes(b"".join(records[-4:]))
    fetched = []

    def fetch(self, url):
        fetched.append(url)
        return directory

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fetch)
    monkeypatch.setattr("gaternet_tf.data.sources._unreachable", lambda url: None)
    return fetched


def everything(dataset, split):
    examples = dataset.examples(split).as_numpy_iterator()
    return sorted((image.tobytes(), int(label)) for image, label in examples)


def test_digits_are_those_of_scikit_learn_each_in_one_split(digits):
    pixels, labels = load_digits(return_X_y=True)
    expected = sorted(
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(pixels, labels, strict=True)
    )
    train, test = everything(digits, "train"), everything(digits, "test")
    assert (len(train), len(test)) == (1437, 360)
    assert sorted(train + test) == expected
    assert {label for _, label in train} == {label for _, label in test} == set(range(10))
    assert digits.image_shape == (8, 8, 1)
    assert digits.labels == tuple("0123456789")


def test_cifar_is_fetched_with_an_announcement_and_read(monkeypatch, tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(24) % 10
    fetched = stand_in_for_cifar_server(monkeypatch, tmp_path / "archive", images, labels)
    dataset = open_dataset("cifar10", str(tmp_path / "data"))
    assert "cifar10: downloading 162.17 MiB to" in capsys.readouterr().out
    assert fetched == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"]

    assert (dataset.size("train"), dataset.size("test")) == (20, 4)
    pairs = zip(images[-4:], labels[-4:], strict=True)
    assert everything(dataset, "test") == sorted((image.tobytes(), int(y)) for image, y in pairs)
    assert dataset.labels[-1] == "truck"
    augmentation = dataset.defaults.augmentation
    assert (augmentation.padding, augmentation.flip) == (4, True)

    # From now on it is on disk, and nothing asks the network.
    monkeypatch.undo()
    assert open_dataset("cifar10", str(tmp_path / "data"), download=False).size("train") == 20
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["no_such_set", "cifar10:9.9.9", "eurosat/nothing", "a/b/c"])
def test_an_unknown_dataset_version_or_configuration_is_refused(tmp_path, name):
    words = f"'digits', idx:DIR.*TFDS.*NAME/CONFIG:VERSION of one; got '{name}'"
    with pytest.raises(UserError, match=words):
        open_dataset(name, str(tmp_path))


def test_without_download_a_missing_dataset_is_refused_and_leaves_nothing(tmp_path):
    words = r"eurosat/rgb.* is not in .*eurosat/rgb/2.0.0.*--data_dir.*--dataset=digits"
    with pytest.raises(UserError, match=words):
        open_dataset("eurosat/rgb:2.0.0", str(tmp_path), download=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "host"), [("cifar10", "toronto"), ("domainnet", "ai.bu.edu")])
def test_an_unreachable_publisher_is_named_with_the_flags_that_help(
    monkeypatch, tmp_path, name, host
):
    # Of domainnet, TFDS lists no files; its home page is asked instead.
    monkeypatch.setattr("gaternet_tf.data.sources._unreachable", lambda url: "no route")
    with pytest.raises(UserError, match=rf"{host}.*no route.*--data_dir.*--dataset=digits"):
        open_dataset(name, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_closed_port_is_unreachable(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert "refused" in _unreachable("http://127.0.0.1:9/x")


def test_a_failed_download_is_reported(monkeypatch, tmp_path):
    def fail(self, **options):
        raise tfds.download.DownloadError("checksum mismatch")

    monkeypatch.setattr("gaternet_tf.data.sources._unreachable", lambda url: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UserError, match=r"cifar10.*DownloadError: checksum mismatch.*downloads"):
        open_dataset("cifar10", str(tmp_path))


def test_a_dataset_without_classes_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: True)
    with pytest.raises(UserError, match="'image' and a class 'label'; 'div2k' has"):
        open_dataset("div2k", str(tmp_path))
