"""Runs a network over a split: once for its gates, then again over changed copies of pictures."""

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from gaternet_tf.analysis.networks import Network
from gaternet_tf.analysis.record import GateRecord, pack
from gaternet_tf.analysis.separation import stratified_sample
from gaternet_tf.data import Dataset, picture_batches, some_pictures
from gaternet_tf.errors import UserError

STRONGEST = 6
"""Pictures kept for each gate and state."""
CHANGED_IMAGES = 2_000
"""Images of which changed copies are tried."""
THUMBNAIL = 32
"""Longest side of the thumbnails, pixels."""
NOISE = 8.0
"""Standard deviation of the noise, grey levels of 255."""


def collect(
    network: Network, dataset: Dataset, split: str, batch_size: int
) -> tuple[GateRecord, np.ndarray]:
    """Runs the network over every image of a split.

    Returns:
      The record, and int32 [2, STRONGEST, gates]: the images for which each gate is off (0) and on
      (1) most strongly, the strongest first; -1 where there are fewer.

    Raises:
      UserError: for a split that does not exist or has no labelled images, and a network that gives
        numbers that are not finite.
    """
    batches = picture_batches(dataset, network.preprocessing, batch_size, split)
    if not dataset.is_labelled(split):
        raise UserError(
            f"an analysis needs images with labels, and split '{split}' of '{dataset.name}' has "
            "none; choose another --split"
        )
    packed, labels, predictions, confidences = [], [], [], []
    strongest = Strongest(len(network.gate_map))
    with progress(dataset.size(split), "gates") as bar:
        for images, batch_labels in batches:
            probabilities, strengths = _predict(network, images)
            strongest.add(strengths)
            packed.append(pack(strengths > 0))
            labels.append(batch_labels.numpy())
            predictions.append(probabilities.argmax(axis=1))
            confidences.append(probabilities.max(axis=1))
            bar.update(len(strengths))
    record = GateRecord(
        packed=np.concatenate(packed),
        labels=np.concatenate(labels).astype(np.int32),
        predictions=np.concatenate(predictions).astype(np.int32),
        confidences=np.concatenate(confidences).astype(np.float32),
        gate_map=network.gate_map,
        classes=network.labels,
        macs=network.macs,
    )
    return record, strongest.images


class Strongest:
    """Keeps the images for which each gate is off and on most strongly."""

    def __init__(self, gates: int):
        self._seen = 0
        self._strengths = np.full((2, STRONGEST, gates), -np.inf, np.float32)
        self.images = np.full((2, STRONGEST, gates), -1, np.int32)

    def add(self, strengths: np.ndarray) -> None:
        """Adds the next images, with strengths float32 [n, gates]."""
        numbers = np.arange(self._seen, self._seen + len(strengths), dtype=np.int32)[:, None]
        self._seen += len(strengths)
        for state, values in enumerate((-strengths, strengths)):
            # On is above 0, off is 0 or below.
            in_state = values > 0 if state else values >= 0
            values = np.concatenate(
                [self._strengths[state], np.where(in_state, values, -np.inf)], dtype=np.float32
            )
            images = np.concatenate([self.images[state], np.where(in_state, numbers, -1)])
            best = np.argpartition(-values, STRONGEST - 1, axis=0)[:STRONGEST]
            order = np.argsort(-np.take_along_axis(values, best, axis=0), axis=0, kind="stable")
            best = np.take_along_axis(best, order, axis=0)
            self._strengths[state] = np.take_along_axis(values, best, axis=0)
            self.images[state] = np.take_along_axis(images, best, axis=0)


def flip(images, numbers, seed):
    """Mirrors pictures left to right."""
    return tf.image.flip_left_right(images)


def shift(images, numbers, seed):
    """Shifts pictures by one pixel to the right and repeats the first column."""
    return tf.concat([images[:, :, :1], images[:, :, :-1]], axis=2)


def noise(images, numbers, seed):
    """Adds normal noise, drawn by each image's number so that the batch size does not matter."""
    noisy = np.empty(images.shape, np.uint8)
    for place, number in enumerate(numbers):
        rng = np.random.default_rng([seed, number])
        added = NOISE * rng.standard_normal(images.shape[1:], np.float32)
        noisy[place] = (images[place].numpy() + added).round().clip(0, 255)
    return tf.constant(noisy)


CHANGES = {
    flip: "mirrored left to right",
    shift: "shifted by one pixel to the right",
    noise: f"with normal noise of {NOISE:g} grey levels",
}
"""Small changes of pictures, and their names in the report."""


def agreement(
    network: Network,
    dataset: Dataset,
    split: str,
    batch_size: int,
    record: GateRecord,
    dependent: np.ndarray,
    seed: int,
) -> dict:
    """Measures the share of gates and predictions that stay when pictures change a little.

    `record` holds the gates of the unchanged pictures, `dependent` the indices of the
    input-dependent gates; `seed` is that of the choice of pictures and of the noise.

    Returns:
      JSON-ready, by change: `gates` (share of gates that stay as they are), `input_dependent`
      (the same among the input-dependent ones), `images_unchanged` (share of images whose gates
      all stay) and `predictions` (share of images that keep their predicted class).
    """
    result = {}
    chosen = stratified_sample(record.labels, CHANGED_IMAGES, seed)
    pictures = some_pictures(dataset, network.preprocessing, split, chosen).batch(batch_size)
    with progress(len(chosen) * len(CHANGES), "changed pictures") as bar:
        for change, text in CHANGES.items():
            stay, predictions = [], []
            for number, images in enumerate(pictures):
                part = chosen[number * batch_size :][:batch_size]
                probabilities, strengths = _predict(network, change(images, part, seed))
                stay.append((strengths > 0) == record.rows(part))
                predictions.append(probabilities.argmax(axis=1))
                bar.update(len(part))
            same = np.concatenate(stay)
            kept = np.concatenate(predictions) == record.predictions[chosen]
            result[change.__name__] = {
                "change": text,
                "images": len(chosen),
                "gates": float(same.mean()),
                "input_dependent": float(same[:, dependent].mean())
                if len(dependent)
                else {"absent": "no gate depends on the input"},
                "images_unchanged": float(same.all(axis=1).mean()),
                "predictions": float(kept.mean()),
            }
    return result


def thumbnails(network: Network, dataset: Dataset, split: str, chosen: np.ndarray) -> np.ndarray:
    """Returns small copies of some pictures (indices, ascending), uint8 [n, h, w, c]."""
    height, width, channels = network.preprocessing.shape
    scale = min(1.0, THUMBNAIL / max(height, width))
    sides = (max(1, round(height * scale)), max(1, round(width * scale)))
    parts = [np.zeros((0, *sides, channels), np.uint8)]
    for images in some_pictures(dataset, network.preprocessing, split, chosen).batch(100):
        resized = tf.image.resize(images, sides, antialias=True)
        parts.append(tf.saturate_cast(tf.round(resized), tf.uint8).numpy())
    return np.concatenate(parts)


def progress(total: int, name: str):
    """Returns a progress bar, which shows on terminals only."""
    return tqdm(total=total, desc=name, unit=" images", disable=None, leave=False)


def _predict(network, images):
    """Returns (probabilities, strengths) of a batch as arrays."""
    probabilities, strengths = (output.numpy() for output in network.predict(images))
    if not (np.isfinite(probabilities).all() and np.isfinite(strengths).all()):
        raise UserError(
            f"a network must give finite numbers, and that of '{network.source['path']}' does not; "
            "train it again"
        )
    return probabilities, strengths
