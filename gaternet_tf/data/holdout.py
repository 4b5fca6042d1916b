"""Holds a validation split out of the training split, so that the test split is touched once."""

import dataclasses

import numpy as np

from gaternet_tf.data.sources import Dataset
from gaternet_tf.data.stratification import random_share
from gaternet_tf.errors import UserError
from gaternet_tf.seeds import derive_seed


def hold_out(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Holds `share` of the training images out for validation.

    The choice depends on `seed` and the dataset alone. Each class gives the same share, rounded,
    and keeps at least one image to train on.

    Args:
      dataset: one without a validation split.
      share: from 0, for none, to below 1.
      seed: the run's.

    Raises:
      UserError: for a share that leaves nothing to train on, or holds out nothing.
    """
    if not 0 <= share < 1:
        raise UserError(f"--validation must be a share from 0 to below 1, got {share}")
    if share == 0:
        return dataset
    rng = np.random.default_rng(derive_seed(seed, "validation"))
    held_out = random_share(dataset, dataset.train_split, share, rng)
    if not held_out.any():
        raise UserError(
            f"--validation={share} holds no image out of the {len(held_out)} of '{dataset.name}'; "
            "give a larger share, or 0 for no validation"
        )
    return dataclasses.replace(dataset, held_out=held_out)
