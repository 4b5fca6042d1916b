"""From a network and a split to an analysis."""

import dataclasses
import math
import os
import pathlib

import numpy as np

from gaternet_tf.analysis.collecting import Collected, agreement, collect, progress, thumbnails
from gaternet_tf.analysis.figures import FIGURE_NAMES
from gaternet_tf.analysis.files import DOCUMENT, Analysis
from gaternet_tf.analysis.networks import Network
from gaternet_tf.analysis.separation import separate, stratified_sample
from gaternet_tf.analysis.statistics import count, statistics_of
from gaternet_tf.errors import UserError
from gaternet_tf.evaluation import dataset_with_classes
from gaternet_tf.runs import require_writable

CHANGED_IMAGES = 2_000
"""Images whose pictures are changed a little."""
BATCH_PIXELS = 1_000_000
"""Pixels that the network gets at a time, at most."""
CLASSES_WITH_PICTURES = 100
"""Of more classes, the characteristic gates are listed without pictures."""
LARGEST_SEED = 2**32 - 1
"""That scikit-learn takes."""
LARGEST_BATCH = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class AnalysisConfig:
    """Settings of an analysis.

    Attributes:
      dataset: a dataset with the network's classes; None for the one that it was trained on.
      data_dir: the TFDS directory; None for TFDS' own default.
      download: whether a set that is not on disk may be fetched.
      split: None for the test split.
      perplexity: of t-SNE.
      seed: of samples, noise, PCA and t-SNE.
      batch_size: images that the network gets at a time; None for 250, or fewer if they are large.

    Raises:
      UserError: for a setting that cannot work, before anything is opened.
    """

    dataset: str | None = None
    data_dir: str | None = None
    download: bool = True
    split: str | None = None
    perplexity: float = 30.0
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self):
        # Written so that NaN is refused too.
        if not 1 <= self.perplexity < math.inf:
            raise UserError(f"--perplexity must be 1 or more, and finite; got {self.perplexity}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UserError(f"--seed must be from 0 to {LARGEST_SEED}, got {self.seed}")
        if self.batch_size is not None and not 1 <= self.batch_size <= LARGEST_BATCH:
            raise UserError(
                f"--batch_size must be from 1 to {LARGEST_BATCH}, got {self.batch_size}"
            )


def analyse(network: Network, config: AnalysisConfig) -> Analysis:
    """Runs the network over the split and computes everything.

    Raises:
      UserError: for a dataset that is not there or has other classes, an empty split or one that
        it has not, and a network that answers with numbers that are not finite.
    """
    dataset = dataset_with_classes(
        network.labels,
        network.config,
        network.dataset,
        config.dataset,
        config.data_dir,
        config.download,
    )
    split = config.split or dataset.test_split
    height, width, _ = network.preprocessing.shape
    batch_size = config.batch_size or max(1, min(250, BATCH_PIXELS // (height * width)))
    collected = collect(network, dataset, split, batch_size)
    record = collected.record
    counts = count(record)
    document = statistics_of(record, counts)
    with progress(1, "t-SNE") as bar:
        separation = separate(record, counts.on, config.perplexity, config.seed)
        bar.update()
    _add_pictures(document, collected)
    chosen = stratified_sample(record.labels, CHANGED_IMAGES, config.seed)
    dependent = np.flatnonzero((counts.on > 0) & (counts.on < record.images))
    changed = agreement(network, dataset, split, record, chosen, dependent, config.seed, batch_size)
    shown = _shown(document, separation)
    return Analysis(
        record=record,
        document={
            "source": network.source,
            "dataset": {"name": dataset.name, "version": dataset.version, "split": split},
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
        thumbnails=thumbnails(network, dataset, split, shown),
    )


def _add_pictures(document: dict, collected: Collected) -> None:
    """Names, for each characteristic gate, the images that switch it most, on and off."""
    if len(document["classes"]) > CLASSES_WITH_PICTURES:
        return
    for gates in document["characteristic"]:
        for row in gates:
            off, on = collected.strongest[:, :, row["gate"]].tolist()
            row["images_on"] = [image for image in on if image >= 0]
            row["images_off"] = [image for image in off if image >= 0]


def _shown(document, separation):
    """Images that the report has pictures of, ascending."""
    images = set(separation.sample.tolist()) if len(separation.points) else set()
    for gates in document["characteristic"]:
        for row in gates:
            images.update(row.get("images_on", []), row.get("images_off", []))
    return np.array(sorted(images), np.int64)


def prepare_output(directory: str | os.PathLike) -> pathlib.Path:
    """Checks that an analysis can be written to `directory`: new, empty, or an earlier analysis.

    Raises:
      UserError: otherwise.
    """
    path = pathlib.Path(directory)
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir must be a directory, and '{path}' is a file; choose another")
    if path.is_dir() and any(path.iterdir()) and not (path / DOCUMENT).exists():
        raise UserError(
            f"--output_dir must be new, empty or an earlier analysis, and '{path}' holds other "
            "files; choose another"
        )
    require_writable(path, "--output_dir")
    return path


def put_in_place(new: pathlib.Path, directory: pathlib.Path) -> None:
    """Moves the files of a finished analysis from `new` to `directory`, over an earlier one.

    Figures of the earlier one that this one has not are removed; files of others stay. The
    document comes last of those that are moved.
    """
    names = sorted((path.name for path in new.iterdir()), key=lambda name: (name == DOCUMENT, name))
    for name in names:
        os.replace(new / name, directory / name)
    for path in directory.iterdir():
        if path.stem in FIGURE_NAMES and path.name not in names:
            path.unlink()
