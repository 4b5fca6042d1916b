"""Analyses a network on a split of a dataset."""

import os
import pathlib

import numpy as np

from gaternet_tf.analysis.collecting import agreement, collect, progress, thumbnails
from gaternet_tf.analysis.files import ARRAYS, DOCUMENT, Analysis
from gaternet_tf.analysis.networks import Network
from gaternet_tf.analysis.separation import separate, stratified_sample
from gaternet_tf.analysis.statistics import count, statistics_of
from gaternet_tf.errors import UserError
from gaternet_tf.evaluation import dataset_with_classes
from gaternet_tf.runs import require_writable

CHANGED_IMAGES = 2_000
"""Images of which changed copies are tried."""
BATCH_PIXELS = 1_000_000
"""Pixels in a batch, unless its size is given."""
CLASSES_WITH_PICTURES = 100
"""With more classes, characteristic gates are listed without pictures."""


def analyse(
    network: Network,
    dataset: str | None = None,
    data_dir: str | None = None,
    download: bool = True,
    split: str | None = None,
    perplexity: float = 30.0,
    seed: int = 0,
    batch_size: int | None = None,
) -> Analysis:
    """Runs a network over a split and computes everything.

    Args:
      network: the network.
      dataset: a dataset with the network's classes; None for the one that it was trained on.
      data_dir: the TFDS directory; None for TFDS' own default.
      download: whether a dataset that is not on disk may be fetched.
      split: None for the test split.
      perplexity: of t-SNE.
      seed: of samples, noise, PCA and t-SNE.
      batch_size: images in a batch; None for 250, or fewer if they are large.

    Raises:
      UserError: for a dataset that is not there or has other classes, a split that does not exist
        or has no labels, and a network that gives numbers that are not finite.
    """
    data = dataset_with_classes(
        network.labels, network.config, network.dataset, dataset, data_dir, download
    )
    split = split or data.test_split
    height, width, _ = network.preprocessing.shape
    batch_size = batch_size or max(1, min(250, BATCH_PIXELS // (height * width)))
    record, strongest = collect(network, data, split, batch_size)
    counts = count(record)
    document = statistics_of(record, counts)
    with progress(1, "t-SNE") as bar:
        separation = separate(record, counts.on, perplexity, seed)
        bar.update()
    characteristic = [row for rows in document["characteristic"] for row in rows]
    if len(network.labels) <= CLASSES_WITH_PICTURES:
        for row in characteristic:
            off, on = strongest[:, :, row["gate"]].tolist()
            row["images_on"] = [image for image in on if image >= 0]
            row["images_off"] = [image for image in off if image >= 0]
    images = set(separation.sample.tolist()) if len(separation.points) else set()
    for row in characteristic:
        images.update(row.get("images_on", []), row.get("images_off", []))
    shown = np.array(sorted(images), np.int64)
    chosen = stratified_sample(record.labels, CHANGED_IMAGES, seed)
    dependent = np.flatnonzero((counts.on > 0) & (counts.on < record.images))
    changed = agreement(network, data, split, record, chosen, dependent, seed, batch_size)
    return Analysis(
        record=record,
        document={
            "source": network.source,
            "dataset": {"name": data.name, "version": data.version, "split": split},
            **document,
            "separation": separation.document,
            "changed_pictures": changed,
            "strength": network.strength,
            "gate_map": record.gate_map.to_rows(),
            "on_per_gate": counts.on.tolist(),
        },
        sample=separation.sample,
        points=separation.points,
        shown=shown,
        thumbnails=thumbnails(network, data, split, shown),
    )


def prepare_output(directory: str | os.PathLike) -> pathlib.Path:
    """Checks that an analysis can be written to `directory`: new, empty, or an earlier analysis.

    Raises:
      UserError: otherwise.
    """
    path = pathlib.Path(directory)
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir must be a directory, and '{path}' is a file; choose another")
    earlier = any((path / name).exists() for name in (ARRAYS, DOCUMENT))
    if path.is_dir() and any(path.iterdir()) and not earlier:
        raise UserError(
            f"--output_dir must be new, empty or an earlier analysis, and '{path}' holds other "
            "files; choose another"
        )
    require_writable(path, "--output_dir")
    return path
