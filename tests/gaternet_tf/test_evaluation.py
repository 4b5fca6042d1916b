"""Evaluation against a count by hand."""

import dataclasses

import keras
import numpy as np
import pytest

from gaternet_tf import UserError
from gaternet_tf.evaluation import Evaluator, describe, evaluate_run
from gaternet_tf.macs import Macs, Product
from gaternet_tf.models.gate_map import GateSegment

LOGITS = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5]])
GATES = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 1, 1], [1, 0, 0, 0]])
LABELS = np.array([0, 1, 1, 1])


def test_every_number_whatever_the_batch_size():
    # Images have their logits in channels 0 and 1 and their gates in channels 2 to 5.
    images = keras.Input((6,))
    evaluator = Evaluator(keras.Model(images, {"logits": images[:, :2], "gates": images[:, 2:]}))
    evaluator.segments = (GateSegment("a", "a", 1), GateSegment("b", "b", 3))
    evaluator.macs = Macs([Product("a", 10, 6, (0, 1)), Product("b", 5, (0, 2), (2, 4))])
    pictures = np.concatenate([LOGITS, GATES], axis=1).astype(np.float32)
    for size in (1, 3, 4):
        parts = [slice(start, start + size) for start in range(0, 4, size)]
        result = evaluator([(pictures[part], LABELS[part]) for part in parts])
        chosen = LOGITS[np.arange(4), LABELS]
        assert result == {
            "accuracy": 0.75,
            "loss": pytest.approx(np.mean(np.log(np.exp(LOGITS).sum(axis=1)) - chosen)),
            "images": 4,
            "gates": 4,
            "macs": 60 + 5 * 2 * 2,
            # Of the images, 1, 0, 2 and 0 of gates 2 and 3 are on, beside one of gates 0 and 1.
            "macs_on": 60 + 5 * (1 + 0 + 2 + 0) / 4,
            "gate_rate": 7 / 16,
            "gates_always_on": 1,
            "gates_always_off": 1,
            "gates_input_dependent": 2,
            "gates_on_min": 1,
            "gates_on_mean": 7 / 4,
            "gates_on_max": 3,
        }
    assert "test accuracy 75.00% (3 of 4)" in describe(result)
    assert "1 always on, 1 always off, 2 input-dependent; on per image 1 to 3" in describe(result)


def test_a_dataset_of_other_classes_is_refused(trained, digits, monkeypatch):
    other = dataclasses.replace(digits, name="pets", labels=("cat", "dog"))
    monkeypatch.setattr("gaternet_tf.evaluation.open_dataset", lambda *_: other)
    with pytest.raises(
        UserError, match=r"10 \(0, 1, 2, 3, \.\.\.\), and 'pets' has 2 \(cat, dog\)"
    ):
        evaluate_run(trained.path, "pets")
