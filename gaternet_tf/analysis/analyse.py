"""Analyses a network on a split of a dataset."""

import numpy as np

from gaternet_tf.analysis.collecting import agreement, collect, thumbnails
from gaternet_tf.analysis.networks import Network
from gaternet_tf.analysis.separation import separate
from gaternet_tf.analysis.statistics import count, statistics_of
from gaternet_tf.evaluation import dataset_with_classes

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
) -> tuple[dict, dict[str, np.ndarray]]:
    """Runs a network over a split and computes everything; the settings are the command's flags.

    Returns:
      The content of the two files, see `files`.

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
    statistics = statistics_of(record, counts)
    sample, points, separation = separate(record, counts.dependent, perplexity, seed)
    shown = set(sample.tolist()) if len(points) else set()
    if len(network.labels) <= CLASSES_WITH_PICTURES:
        for row in (row for rows in statistics["characteristic"] for row in rows):
            off, on = strongest[:, :, row["gate"]].tolist()
            row["images_on"] = [image for image in on if image >= 0]
            row["images_off"] = [image for image in off if image >= 0]
            shown.update(row["images_on"], row["images_off"])
    images = np.array(sorted(shown), np.int64)
    document = {
        "source": network.source,
        "dataset": {"name": data.name, "version": data.version, "split": split},
        "training": network.training,
        **statistics,
        "separation": separation,
        "changed_pictures": agreement(
            network, data, split, batch_size, record, counts.dependent, seed
        ),
        "strength": network.strength,
        "gate_map": record.gate_map.to_rows(),
        "on_per_gate": counts.on.tolist(),
    }
    arrays = {
        "gates": record.packed,
        "labels": record.labels,
        "predictions": record.predictions,
        "confidences": record.confidences,
        "macs": counts.macs_per_image,
        "sample": sample,
        "points": points,
        "shown": images,
        "thumbnails": thumbnails(network, data, split, images),
    }
    return document, arrays
