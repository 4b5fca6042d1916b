"""Runs a network over a split: once for its gates, then again over a few changed pictures."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from gaternet_tf.analysis.networks import Network
from gaternet_tf.analysis.record import GateRecord, pack
from gaternet_tf.data import Dataset, picture_batches, some_pictures
from gaternet_tf.errors import UserError

STRONGEST = 6
"""Pictures kept for each gate and state."""
THUMBNAIL = 32
"""Longest side of the pictures that are kept, pixels."""
NOISE = 8.0
"""Standard deviation of the noise, grey levels of 255."""


@dataclasses.dataclass(frozen=True)
class Collected:
    """What the first pass finds.

    Attributes:
      record: gates, labels and predictions.
      strongest: int32 [2, STRONGEST, gates], the images that switch each gate off (0) and on (1)
        most, strongest first; -1 where there are not so many.
    """

    record: GateRecord
    strongest: np.ndarray


def collect(network: Network, dataset: Dataset, split: str, batch_size: int = 250) -> Collected:
    """Asks the network about every image of a split.

    Raises:
      UserError: for an empty split or one that the dataset has not, and for answers that are not
        finite.
    """
    batches = picture_batches(dataset, network.preprocessing, batch_size, split)
    images = dataset.size(split)
    if not images:
        raise UserError(
            f"an analysis needs images, and split '{split}' of '{dataset.name}' has none; choose "
            "another --split"
        )
    known = dataset.labels_of(split)
    if known.min() < 0 or known.max() >= len(network.labels):
        raise UserError(
            f"an analysis needs images with a label, and those of split '{split}' of "
            f"'{dataset.name}' go from {known.min()} to {known.max()}; choose another --split"
        )
    packed, labels, predictions, confidences = [], [], [], []
    strongest = Strongest(len(network.gate_map))
    seen = 0
    with progress(images, "gates") as bar:
        for batch, batch_labels in batches:
            probabilities, strengths = _finite(
                network, batch, np.arange(seen, seen + len(batch_labels))
            )
            packed.append(pack(strengths > 0))
            labels.append(batch_labels.numpy())
            predictions.append(probabilities.argmax(axis=1))
            confidences.append(probabilities.max(axis=1))
            strongest.add(strengths, seen)
            seen += len(strengths)
            bar.update(len(strengths))
    record = GateRecord(
        packed=np.concatenate(packed),
        labels=np.concatenate(labels).astype(np.int32),
        predictions=np.concatenate(predictions).astype(np.int32),
        confidences=np.concatenate(confidences).astype(np.float32),
        gate_map=network.gate_map,
        classes=network.labels,
        macs=network.macs,
        gate_macs=network.gate_macs,
    )
    return Collected(record, strongest.images)


class Strongest:
    """Keeps, for each gate, the images that it is most off and most on for."""

    def __init__(self, gates: int):
        self._strengths = np.full((2, STRONGEST, gates), -np.inf, np.float32)
        self.images = np.full((2, STRONGEST, gates), -1, np.int32)

    def add(self, strengths: np.ndarray, first: int) -> None:
        """Takes in images `first`, `first + 1`, ... with strengths float32 [n, gates]."""
        numbers = np.arange(first, first + len(strengths), dtype=np.int32)[:, None]
        for state, values in enumerate((-strengths, strengths)):
            # On is above 0, off is 0 or below.
            there = values > 0 if state else values >= 0
            values = np.concatenate(
                [self._strengths[state], np.where(there, values, -np.inf)], dtype=np.float32
            )
            images = np.concatenate(
                [self.images[state], np.broadcast_to(numbers, strengths.shape)], dtype=np.int32
            )
            best = np.argpartition(-values, STRONGEST - 1, axis=0)[:STRONGEST]
            order = np.argsort(-np.take_along_axis(values, best, axis=0), axis=0, kind="stable")
            order = np.take_along_axis(best, order, axis=0)
            self._strengths[state] = np.take_along_axis(values, order, axis=0)
            kept = np.take_along_axis(images, order, axis=0)
            self.images[state] = np.where(np.isneginf(self._strengths[state]), -1, kept)


def changed_pictures(seed: int) -> dict[str, tuple[str, Callable]]:
    """Small changes: name to (what it is, a function of uint8 images and their numbers)."""

    def flip(images, _):
        return tf.image.flip_left_right(images)

    def shift(images, _):
        return tf.concat([images[:, :, :1], images[:, :, :-1]], axis=2)

    def noise(images, numbers):
        # By the image's number, so that the batch size does not matter.
        generators = [np.random.default_rng([seed, number]) for number in numbers]
        noisy = np.empty(images.shape, np.uint8)
        for place, rng in enumerate(generators):
            added = NOISE * rng.standard_normal(images.shape[1:], np.float32)
            noisy[place] = (images[place].numpy() + added).round().clip(0, 255)
        return tf.constant(noisy)

    return {
        "flip": ("mirrored left to right", flip),
        "shift": ("shifted by one pixel to the right", shift),
        "noise": (f"with normal noise of {NOISE:g} grey levels", noise),
    }


def agreement(
    network: Network,
    dataset: Dataset,
    split: str,
    record: GateRecord,
    chosen: np.ndarray,
    dependent: np.ndarray,
    seed: int = 0,
    batch_size: int = 250,
) -> dict:
    """How much of gates and predictions stays the same when the pictures change a little.

    Args:
      network: what made the record.
      dataset: where the pictures are.
      split: their split.
      record: the gates of the unchanged pictures.
      chosen: indices of the images to look at, ascending.
      dependent: indices of the input-dependent gates.
      seed: of the noise.
      batch_size: images at a time.

    Returns:
      JSON-ready, by change: `gates` (share of gates that stay as they are), `input_dependent`
      (the same among the input-dependent ones), `images_unchanged` (share of images whose gates
      all stay) and `predictions` (share of images that keep their predicted class).
    """
    changes = changed_pictures(seed)
    same = {name: np.zeros(record.gates, np.int64) for name in changes}
    whole, kept = dict.fromkeys(changes, 0), dict.fromkeys(changes, 0)
    with progress(len(chosen) * len(changes), "changed pictures") as bar:
        done = 0
        for batch in _chosen(network, dataset, split, chosen).batch(batch_size):
            part = chosen[done : done + len(batch)]
            before, predicted = record.rows(part) > 0, record.predictions[part]
            for name, (_, change) in changes.items():
                probabilities, strengths = _finite(network, change(batch, part), part)
                equal = (strengths > 0) == before
                same[name] += equal.sum(axis=0)
                whole[name] += int(equal.all(axis=1).sum())
                kept[name] += int(np.sum(probabilities.argmax(axis=1) == predicted))
                bar.update(len(batch))
            done += len(batch)
    return {
        name: {
            "change": text,
            "images": len(chosen),
            "gates": float(same[name].mean() / len(chosen)),
            "input_dependent": float(same[name][dependent].mean() / len(chosen))
            if len(dependent)
            else {"absent": "no gate depends on the input"},
            "images_unchanged": whole[name] / len(chosen),
            "predictions": kept[name] / len(chosen),
        }
        for name, (text, _) in changes.items()
    }


def thumbnails(network: Network, dataset: Dataset, split: str, chosen: np.ndarray) -> np.ndarray:
    """Some pictures (indices, ascending), uint8 [n, h, w, c], at most 32 pixels a side."""
    height, width, channels = network.preprocessing.shape
    scale = min(1.0, THUMBNAIL / max(height, width))
    sides = (max(1, round(height * scale)), max(1, round(width * scale)))

    def small(picture):
        if scale == 1.0:
            return picture
        resized = tf.image.resize(picture, sides, antialias=True)
        return tf.saturate_cast(tf.round(resized), tf.uint8)

    pictures = np.empty((len(chosen), *sides, channels), np.uint8)
    with progress(len(chosen), "pictures") as bar:
        done = 0
        for batch in _chosen(network, dataset, split, chosen).map(small).batch(1000):
            pictures[done : done + len(batch)] = batch
            done += len(batch)
            bar.update(len(batch))
    return pictures


def progress(total: int, name: str):
    """A progress bar on a terminal's stderr, and nothing elsewhere."""
    return tqdm(total=total, desc=name, unit=" images", disable=None, leave=False)


def _chosen(network, dataset, split, chosen):
    """`tf.data` of the pictures with these indices, ascending."""
    wanted = np.zeros(dataset.size(split), bool)
    wanted[chosen] = True
    return some_pictures(dataset, network.preprocessing, split, wanted)


def _finite(network, batch, numbers):
    """(probabilities, strengths) of a batch, the images with these numbers, as arrays."""
    answer = network.answer(batch)
    probabilities, strengths = answer["probabilities"].numpy(), answer["strengths"].numpy()
    bad = ~(np.isfinite(probabilities).all(axis=1) & np.isfinite(strengths).all(axis=1))
    if strengths.shape[1] != len(network.gate_map):
        raise UserError(
            f"a network must have the gates of its map, {len(network.gate_map)}, and that of "
            f"'{network.source['path']}' gives {strengths.shape[1]}: the files of two are mixed"
        )
    if bad.any():
        raise UserError(
            f"a network must give finite numbers, and that of '{network.source['path']}' gives "
            f"none for {int(bad.sum())} of {len(bad)} images, the first of them number "
            f"{numbers[bad.argmax()]} of the split; train it again"
        )
    return probabilities, strengths
