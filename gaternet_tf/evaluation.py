"""Accuracy, loss and gate statistics of a model at inference."""

import os
import re
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from gaternet_tf.data import Dataset, evaluation_batches, open_dataset
from gaternet_tf.documents import write_json
from gaternet_tf.errors import UserError
from gaternet_tf.losses import SmoothedCrossentropy
from gaternet_tf.macs import macs_of
from gaternet_tf.models import gate_map
from gaternet_tf.runs import open_run


class Evaluator:
    """Evaluates a model with hard gates and without noise. It may be called many times.

    Args:
      model: a GaterNet model or a plain backbone; its weights may change between calls.
    """

    def __init__(self, model: keras.Model):
        self.segments = gate_map(model).segments
        self.macs = macs_of(model)
        self._forward = tf.function(
            lambda images: model(images, training=False), reduce_retracing=True
        )

    def __call__(self, batches, loss: keras.losses.Loss | None = None) -> dict:
        """Evaluates batches.

        Args:
          batches: iterable of (images [batch, height, width, channels], labels [batch]).
          loss: a loss of labels and logits, such as the one that is trained; None for the plain
            cross-entropy.

        Returns:
          `accuracy`, `loss` (mean over images), `images`, and for a gated model the
          numbers of `gates_always_on`, `gates_always_off` and `gates_input_dependent` over these
          images, `gate_rate` (share of gates on), and
          `gates_on_min`, `gates_on_mean`, `gates_on_max` (gates on per image, of `gates`). `macs`
          are the multiply-accumulates of an image, `macs_on` their mean without what off gates
          save, see `gaternet_tf.macs`.
        """
        loss = loss or SmoothedCrossentropy()
        correct, total_loss, images = 0, 0.0, 0
        on_per_image: list[int] = []
        on_per_gate = np.zeros(sum(segment.channels for segment in self.segments), np.int64)
        macs_on = 0
        for batch, labels in batches:
            outputs = self._forward(batch)
            logits = outputs["logits"]
            correct += int(np.sum(np.argmax(logits, axis=-1) == np.asarray(labels)))
            total_loss += float(tf.reduce_sum(loss.call(labels, logits)))
            images += len(labels)
            if self.segments:
                on = np.asarray(outputs["gates"]) > 0
                on_per_image.extend(on.sum(axis=1))
                on_per_gate += on.sum(axis=0)
                macs_on += int(self.macs(on).sum())
        result = {
            "accuracy": correct / images,
            "loss": total_loss / images,
            "images": images,
            "macs": self.macs.total,
            "macs_on": float(self.macs.total),
        }
        if self.segments:
            always_on = int(np.sum(on_per_gate == images))
            always_off = int(np.sum(on_per_gate == 0))
            result |= {
                "gates": len(on_per_gate),
                "gate_rate": float(np.mean(on_per_image) / len(on_per_gate)),
                "gates_always_on": always_on,
                "gates_always_off": always_off,
                "gates_input_dependent": len(on_per_gate) - always_on - always_off,
                "gates_on_min": int(min(on_per_image)),
                "gates_on_mean": float(np.mean(on_per_image)),
                "gates_on_max": int(max(on_per_image)),
                "macs_on": macs_on / images,
            }
        return result


def count_gates(model: keras.Model, batches) -> tuple[np.ndarray, int]:
    """Returns for how many images each gate is on, int64 [gates], and the number of images."""
    on_for = np.zeros(len(gate_map(model)), np.int64)
    images = 0
    gates_of = tf.function(lambda batch: model(batch, training=False)["gates"] > 0)
    for batch, labels in batches:
        images += len(labels)
        if len(on_for):
            on_for += gates_of(batch).numpy().sum(axis=0)
    return on_for, images


def evaluate_run(
    workdir: str | os.PathLike,
    dataset: str | None = None,
    data_dir: str | None = None,
    download: bool = True,
) -> dict:
    """Evaluates a finished run on the test split of a dataset with the run's classes.

    Returns:
      The numbers of `Evaluator`, with `dataset`, `version` and `split`. They are written to the run
      directory too, as `evaluation-DATASET-SPLIT.json`.

    Raises:
      UserError: for no finished run, or a dataset that is not there or has other classes.
    """
    run = open_run(workdir)
    data = dataset_with_classes(
        run.labels, run.config, run.document["dataset"], dataset, data_dir, download
    )
    batches = evaluation_batches(data, run.preprocessing, 250)
    result = {
        "dataset": data.name,
        "version": data.version,
        "split": data.test_split,
        **Evaluator(run.load_model())(batches),
    }
    name = re.sub(r"[^\w.-]+", "-", data.name).strip("-")
    write_json(run.path / f"evaluation-{name}-{data.test_split}.json", result)
    return result


def dataset_with_classes(
    labels: list[str],
    config: dict,
    recorded: dict,
    dataset: str | None = None,
    data_dir: str | None = None,
    download: bool = True,
) -> Dataset:
    """Opens the dataset of a run with these settings, or another one with the same classes.

    Args:
      labels: the run's classes.
      config: its settings.
      recorded: the description of its dataset in its config.json, or in its export.
      dataset: another one, or None. If it is the run's own name, changes are accepted.
      data_dir: the TFDS directory; None for TFDS' own default.
      download: whether a set that is not on disk may be fetched.

    Raises:
      UserError: for a dataset that is not there or has other classes, and for the run's own if it
        has changed, since the test may then hold images that the run has trained on.
    """
    skip = config.get("skip_unreadable", False)
    data = open_dataset(dataset or config["dataset"], data_dir, download, skip)
    now = data.describe()
    # A published test split stays what it is in another version; a held-out one is drawn again.
    keys = ["content", "version"] if now["test_held_out_of"] else ["content"]
    for key in keys:
        if dataset is None and key in recorded and recorded[key] != now[key]:
            raise UserError(
                f"a run is tested on the data that it began with, and '{data.name}' has changed "
                f"since ({key}: {recorded[key]} then, {now[key]} now), so that its test may hold "
                "images that the run has trained on; bring the old data back. train.evaluate and "
                f"gaternet_tf.analysis take it as it is now with --dataset={data.name}"
            )
    if list(data.labels) != labels:
        raise UserError(
            f"--dataset must have the classes that the run was trained on, {some_labels(labels)}, "
            f"and '{data.name}' has {some_labels(data.labels)}"
        )
    return data


def some_labels(labels: Sequence[str]) -> str:
    """Returns the number of classes, and the names of the first four."""
    shown = ", ".join(labels[:4])
    return f"{len(labels)} ({shown}{', ...' if len(labels) > 4 else ''})"


def describe(result: dict) -> str:
    """Returns two lines of text from the numbers of `evaluate`."""
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
