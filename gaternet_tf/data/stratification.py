"""Chooses a random share of a split, class by class."""

import typing

import numpy as np

if typing.TYPE_CHECKING:
    from gaternet_tf.data.sources import Dataset

STRATIFIED_IMAGES = 200_000
"""Beyond so many images reading all labels takes long, and a plain random choice is as good."""
TEST_SHARE = 0.2
"""What a set that is published, or laid out, without splits gives to the test."""


def random_share(
    dataset: "Dataset", split: str, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Marks `share` of a split's images, bool [images].

    Each class gives the same share, rounded, and keeps at least one image.
    """
    images = dataset.size(split)
    if images > STRATIFIED_IMAGES:
        chosen = rng.permutation(images)[: round(images * share)]
    else:
        labels = dataset.labels_of(split)
        groups = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
        chosen = np.concatenate(
            [group[: min(round(len(group) * share), len(group) - 1)] for group in groups]
        )
    marked = np.zeros(images, bool)
    marked[chosen] = True
    return marked
