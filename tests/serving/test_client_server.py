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
def pictures(trained):
    """The bytes of the run's pictures, and a large one in colour."""
    file = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 255, [40, 31, 3], np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return [
        *(path.read_bytes() for path in sorted(trained.pictures.glob("*/*.png"))),
        file.getvalue(),
    ]


@pytest.fixture(scope="module")
def expected(trained, pictures):
    """The Keras model's probabilities [n, 10] and gates [n, c] for them."""
    pixels = tf.stack([trained.preprocessing.decode(tf.constant(data)) for data in pictures])
    outputs = trained.load_model()(trained.preprocessing.normalize(pixels), training=False)
    return tf.nn.softmax(outputs["logits"]).numpy(), outputs["gates"].numpy()


def test_classifies_as_the_trained_model_does(client, pictures, expected):
    probabilities, _ = expected
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :3]
    for answer, row, best in zip(
        client.classify(pictures, top=3), probabilities, order, strict=True
    ):
        assert (answer.class_id, answer.label, answer.version) == (best[0], str(best[0]), 1)
        assert [label for label, _ in answer.top] == [str(number) for number in best]
        np.testing.assert_allclose([share for _, share in answer.top], row[best], atol=1e-5)
        assert answer.probability == answer.top[0][1]


def test_gates_are_those_of_the_trained_model(client, pictures, expected):
    probabilities, gates = expected
    answers = client.gates(pictures)
    np.testing.assert_array_equal([answer.gates for answer in answers], gates)
    assert [answer.class_id for answer in answers] == probabilities.argmax(axis=1).tolist()


def test_every_form_of_a_picture_gets_the_same_answer(client, pictures, trained):
    path = min(trained.pictures.glob("*/*.png"))
    for data, forms in ((pictures[0], [path, str(path)]), (pictures[-1], [])):
        image = Image.open(io.BytesIO(data))
        array = np.asarray(image)
        for answers in (
            client.classify([data, image, array, *forms]),
            client.gates([data, image, array, *forms]),
        ):
            assert answers == answers[:1] * len(answers)


def test_only_the_broken_pictures_are_lost(client, pictures):
    wrong_checksum = bytearray(pictures[1])
    wrong_checksum[wrong_checksum.index(b"IDAT") + 6] ^= 0x55
    broken = [bytes(wrong_checksum), pictures[1][:-40], b"not a picture"]
    answers = client.classify([pictures[0], *broken, pictures[2]])
    assert [isinstance(answer, PictureError) for answer in answers] == [0, 1, 1, 1, 0]
    alone = client.classify([pictures[0], pictures[2]])
    assert [answers[0].label, answers[4].label] == [answer.label for answer in alone]


def test_status_and_readiness(client):
    assert client.status() == {1: "AVAILABLE"}
    assert client.wait_ready() == 1
