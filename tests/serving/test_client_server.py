"""The client on the local server, over a real socket: the trained model's own answers."""

import numpy as np
import tensorflow as tf
from PIL import Image

from serving.client import GaterNetClient


def test_answers_are_those_of_the_trained_model(server, trained, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 255, [40, 31, 3], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    paths = [*sorted(trained.pictures.glob("*/*.png")), tmp_path / "large.png"]
    pixels = tf.stack([trained.preprocessing.decode(path.read_bytes()) for path in paths])
    outputs = trained.load_model()(trained.preprocessing.normalize(pixels), training=False)
    probabilities = tf.nn.softmax(outputs["logits"]).numpy()
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :3]
    with GaterNetClient(server, "gaternet", timeout=60) as client:
        answers = client.gates(paths, top=3)
    np.testing.assert_array_equal([answer.gates for answer in answers], outputs["gates"])
    for answer, row, best in zip(answers, probabilities, order, strict=True):
        assert (answer.class_id, answer.label, answer.version) == (best[0], str(best[0]), 1)
        assert [label for label, _ in answer.top] == [str(number) for number in best]
        np.testing.assert_allclose([share for _, share in answer.top], row[best], atol=1e-5)
        assert answer.probability == answer.top[0][1]
