"""The client on the local server, over a real socket: the trained model's own answers."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from serving.client import GaterNetClient, PictureError


@pytest.fixture(scope="module")
def client(server):
    with GaterNetClient(server, "gaternet", timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def paths(trained, tmp_path_factory):
    """The run's pictures, and a large one in colour."""
    pixels = np.random.default_rng(1).integers(0, 255, [40, 31, 3], np.uint8)
    large = tmp_path_factory.mktemp("pictures") / "large.png"
    Image.fromarray(pixels).save(large)
    return [*sorted(trained.pictures.glob("*/*.png")), large]


def test_answers_are_those_of_the_trained_model(client, paths, trained):
    pixels = tf.stack([trained.preprocessing.decode(path.read_bytes()) for path in paths])
    outputs = trained.load_model()(trained.preprocessing.normalize(pixels), training=False)
    probabilities = tf.nn.softmax(outputs["logits"]).numpy()
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :3]
    answers = client.gates(paths, top=3)
    np.testing.assert_array_equal([answer.gates for answer in answers], outputs["gates"])
    for answer, row, best in zip(answers, probabilities, order, strict=True):
        assert (answer.class_id, answer.label, answer.version) == (best[0], str(best[0]), 1)
        assert [label for label, _ in answer.top] == [str(number) for number in best]
        np.testing.assert_allclose([share for _, share in answer.top], row[best], atol=1e-5)
        assert answer.probability == answer.top[0][1]


def test_every_form_of_a_picture_gets_the_same_answer(client, paths):
    for path in paths[0], paths[-1]:
        data = path.read_bytes()
        image = Image.open(io.BytesIO(data))
        answers = client.classify([path, data, image, np.asarray(image)])
        assert answers == answers[:1] * 4


def test_only_the_broken_pictures_are_lost(client, paths):
    good = paths[1].read_bytes()
    wrong_checksum = bytearray(good)
    wrong_checksum[wrong_checksum.index(b"IDAT") + 6] ^= 0x55
    answers = client.classify([paths[0], bytes(wrong_checksum), good[:-40], b"no picture", good])
    assert [isinstance(answer, PictureError) for answer in answers] == [0, 1, 1, 1, 0]
    assert [answers[0], answers[4]] == client.classify([paths[0], good])


def test_status_and_readiness(client):
    assert client.status() == {1: "AVAILABLE"}
    assert client.wait_ready() == 1
