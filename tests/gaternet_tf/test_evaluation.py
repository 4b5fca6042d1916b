"""Evaluation against a count by hand."""

import dataclasses

import keras
import numpy as np
import pytest

from gaternet_tf import UserError
from gaternet_tf.evaluation import describe, evaluate, evaluate_run


def planted_model():
    """Images carry their logits in channels 0 and 1 and their gates in channels 2 to 5."""
    images = keras.Input((1, 1, 6))
    flat = keras.layers.Flatten()(images)
    return keras.Model(images, {"logits": flat[:, :2], "gates": flat[:, 2:]})


LOGITS = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.5]])
GATES = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 1, 1], [1, 0, 0, 0]])
LABELS = np.array([0, 1, 1, 1])


def batches(size):
    images = np.concatenate([LOGITS, GATES], axis=1).astype(np.float32).reshape(4, 1, 1, 6)
    for start in range(0, 4, size):
        yield images[start : start + size], LABELS[start : start + size]


@pytest.mark.parametrize("size", [1, 3, 4])
def test_counts_whatever_the_batch_size(size):
    result = evaluate(planted_model(), batches(size))
    chosen = LOGITS[np.arange(4), LABELS]
    loss = np.mean(np.log(np.exp(LOGITS).sum(axis=1)) - chosen)
    assert result == {
        "accuracy": 0.75,
        "loss": pytest.approx(loss),
        "images": 4,
        "gates": 4,
        "macs": 0,  # no layer of a GaterNet in it
        "macs_on": 0.0,
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
