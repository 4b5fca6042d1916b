"""Accuracy, loss and gate statistics of a model, as inference computes them."""

import os

import keras
import numpy as np
import tensorflow as tf

from gaternet_tf.data import evaluation_batches, open_dataset
from gaternet_tf.errors import UserError
from gaternet_tf.runs import open_run, write_json


def evaluate(model: keras.Model, batches) -> dict:
    """Evaluates a model with hard gates and without noise.

    Args:
      model: a GaterNet model or a plain backbone.
      batches: iterable of (images [batch, height, width, channels], labels [batch]).

    Returns:
      `accuracy`, `loss` (cross entropy, mean over images), `images`, and for a gated model the
      numbers of `gates_always_on`, `gates_always_off` and `gates_input_dependent` over these
      images, `gate_rate` (share of gates on), and `gates_on_min`, `gates_on_mean`, `gates_on_max`
      (gates on per image, of `gates`).
    """

    @tf.function(reduce_retracing=True)
    def forward(images):
        return model(images, training=False)

    correct, loss, images = 0, 0.0, 0
    on_per_image: list[np.ndarray] = []
    on_per_gate = np.zeros(0, np.int64)
    for batch, labels in batches:
        outputs = forward(batch)
        logits = outputs["logits"]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        correct += int(np.sum(np.argmax(logits, axis=-1) == np.asarray(labels)))
        loss += float(tf.reduce_sum(losses))
        images += len(labels)
        if "gates" in outputs:
            on = np.asarray(outputs["gates"]) > 0
            on_per_image.append(on.sum(axis=1))
            on_per_gate = on_per_gate + on.sum(axis=0) if on_per_gate.size else on.sum(axis=0)
    if not images:
        raise ValueError("evaluation needs at least one image, and the dataset gave none")
    result = {"accuracy": correct / images, "loss": loss / images, "images": images}
    if on_per_image:
        per_image = np.concatenate(on_per_image)
        always_on = int(np.sum(on_per_gate == images))
        always_off = int(np.sum(on_per_gate == 0))
        result |= {
            "gates": len(on_per_gate),
            "gate_rate": float(per_image.mean() / len(on_per_gate)),
            "gates_always_on": always_on,
            "gates_always_off": always_off,
            "gates_input_dependent": len(on_per_gate) - always_on - always_off,
            "gates_on_min": int(per_image.min()),
            "gates_on_mean": float(per_image.mean()),
            "gates_on_max": int(per_image.max()),
        }
    return result


def evaluate_run(
    workdir: str | os.PathLike,
    dataset: str | None = None,
    data_dir: str | None = None,
    download: bool = True,
    batch_size: int = 250,
) -> dict:
    """Evaluates a finished run on the test split of a dataset with the run's classes.

    Returns:
      What `evaluate` does, with `dataset`, `version` and `split`. The run directory gets it as
      `evaluation-DATASET-SPLIT.json`.

    Raises:
      UserError: for no finished run, or a dataset that is not there or has other classes.
    """
    run = open_run(workdir)
    data = open_dataset(dataset or run.document["dataset"]["name"], data_dir, download)
    if list(data.labels) != run.labels:
        raise UserError(
            f"--dataset must have the classes that the run was trained on, {_some(run.labels)}, "
            f"and '{data.name}' has {_some(data.labels)}"
        )
    batches = evaluation_batches(data, run.preprocessing, batch_size)
    result = {
        "dataset": data.name,
        "version": data.version,
        "split": data.test_split,
        **evaluate(run.load_model(), batches),
    }
    write_json(run.path / f"evaluation-{data.name}-{data.test_split}.json", result)
    return result


def _some(labels):
    shown = ", ".join(labels[:4])
    return f"{len(labels)} ({shown}{', ...' if len(labels) > 4 else ''})"


def describe(result: dict) -> str:
    """Two lines for a person from what `evaluate` returned."""
    text = (
        f"test accuracy {result['accuracy']:.2%} ({round(result['accuracy'] * result['images'])} "
        f"of {result['images']}), test loss {result['loss']:.4f}"
    )
    if "gates" in result:
        text += (
            f"\ngates: {result['gates']}, {result['gate_rate']:.1%} on; "
            f"{result['gates_always_on']} always on, {result['gates_always_off']} always off, "
            f"{result['gates_input_dependent']} input-dependent; on per image "
            f"{result['gates_on_min']} to {result['gates_on_max']}, "
            f"mean {result['gates_on_mean']:.1f}"
        )
    return text
