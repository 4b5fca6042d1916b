"""From settings to the dataset of a run, its preprocessing and its augmentation."""

import dataclasses
import os
from typing import Any

import keras
import numpy as np

from gaternet_tf.data import (
    Augmentation,
    Dataset,
    Preprocessing,
    channel_statistics,
    hold_out,
    open_dataset,
)
from gaternet_tf.errors import UserError
from gaternet_tf.models import find_backbone
from gaternet_tf.models.backbones import load_plain
from gaternet_tf.runs import RunDirectory, is_run
from train.config import TrainingConfig

SAME_NORMALIZATION = 0.01
"""How far the means and deviations of pictures from 0 to 1 may lie apart, as those of seeds do."""
SMALL_SET = 200_000
VALIDATION = {True: 0.1, False: 0.01}
"""Share of the training images held out by default, of small sets and of large ones."""


def open_training_data(config: TrainingConfig) -> Dataset:
    """Opens the dataset and holds the validation images out.

    Raises:
      UserError: for a dataset that is not there, or one that cannot be held out as asked for.
    """
    dataset = open_dataset(config.dataset, config.data_dir, config.download, config.skip_unreadable)
    for remark in dataset.remarks:
        print(remark, flush=True)
    share = config.validation
    if share is None:
        share = VALIDATION[dataset.size(dataset.train_split) <= SMALL_SET]
    return hold_out(dataset, share, config.seed)


def choose_preprocessing(config: TrainingConfig, dataset: Dataset) -> Preprocessing:
    """Returns picture size and normalisation of a run."""
    height, width, channels = dataset.image_shape
    side = config.image_size or dataset.defaults.image_size
    if side:
        height = width = side
    if height is None or width is None:
        raise UserError(
            f"the pictures of '{dataset.name}' have no common size; give --image_size=PIXELS"
        )
    # The dataset's own resize belongs to the dataset's own size.
    resize = config.resize if config.resize is not None else dataset.defaults.resize
    if config.resize is None and config.image_size:
        resize = round(resize * side / (dataset.defaults.image_size or side))
    if 0 < resize < max(height, width):
        raise UserError(
            f"--resize must be 0 or at least the {max(height, width)} pixels that are cut out "
            f"afterwards (--image_size), got {resize}"
        )
    gater = normalization_of_run(config.gater_network)
    own = normalization_of_weights(config) or gater
    if own:
        channels = len(own[0])
    if not config.normalize:
        own = (0.0,) * channels, (1 / 255,) * channels
    if own and gater and not np.allclose(own, gater, atol=SAME_NORMALIZATION):
        raise UserError(
            "the gater sees the pictures as the backbone does, and the run of "
            f"--gater={config.gater_network} normalised them otherwise (mean and deviation "
            f"{gater}, here {own}); give a gater that was trained with this run's normalisation"
        )
    raw = Preprocessing(
        height, width, channels, mean=(0.0,) * channels, std=(1.0,) * channels, resize=resize
    )
    mean, std = own or dataset.defaults.statistics or channel_statistics(dataset, raw)
    return dataclasses.replace(raw, mean=mean, std=std)


def normalization_of_weights(config: TrainingConfig) -> tuple[tuple, tuple] | None:
    """Returns mean and standard deviation that the backbone's weights require, or None.

    Those of a run's model.keras are the run's, those of keras.applications Keras' own.
    """
    for file in (config.weights, config.backbone):
        if of_run := normalization_of_run(file):
            return of_run
    if config.backbone.endswith(".keras"):
        network = load_plain(config.backbone)
        if isinstance(network.layers[1], keras.layers.Rescaling | keras.layers.Normalization):
            # It scales pixels itself.
            channels = network.inputs[0].shape[-1]
            return (0.0,) * channels, (1 / 255,) * channels
    values = find_backbone(config.backbone, config.width, config.attention).normalization
    if values is None:
        return None
    mean, std = (tuple(value / 255.0 for value in part) for part in values)
    return mean, std


def normalization_of_run(file: str | None) -> tuple[tuple, tuple] | None:
    """Returns mean and standard deviation of the run whose model.keras a file is, or None."""
    if file and file.endswith(".keras") and is_run(os.path.dirname(file)):
        preprocessing = RunDirectory(os.path.dirname(file)).preprocessing
        return preprocessing.mean, preprocessing.std
    return None


def choose_augmentation(config: TrainingConfig, dataset: Dataset) -> Augmentation:
    """Returns the dataset's own augmentation, with what the settings change of it."""
    changes: dict[str, Any] = {
        "padding": config.crop_padding,
        "flip": config.flip,
        "resized_crop": config.resized_crop,
    }
    return dataclasses.replace(
        dataset.defaults.augmentation,
        **{name: value for name, value in changes.items() if value is not None},
    )


def steps_of_epoch(config: TrainingConfig, dataset: Dataset) -> int:
    """Returns the steps of an epoch, a multiple of `--steps_per_execution`.

    Keras would run into the next epoch otherwise.

    Raises:
      UserError: when the images do not fill a batch, or an epoch has fewer steps than an execution.
    """
    steps = dataset.training_images // config.batch_size
    if not steps:
        raise UserError(
            f"--batch_size must be at most the {dataset.training_images} training images of "
            f"'{config.dataset}', got {config.batch_size}"
        )
    steps = min(steps, config.steps_per_epoch or steps)
    if config.steps_per_execution > steps:
        raise UserError(
            f"--steps_per_execution must be at most the {steps} steps of an epoch, got "
            f"{config.steps_per_execution}"
        )
    if left := steps % config.steps_per_execution:
        print(
            f"{left} of the {steps} steps of an epoch are left out, since "
            f"--steps_per_execution={config.steps_per_execution} does not divide them",
            flush=True,
        )
    return steps - left
