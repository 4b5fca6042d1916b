"""The gates of a network on every image of a split."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from gaternet_tf.macs import Macs
from gaternet_tf.models.gate_map import GateMap


@dataclasses.dataclass(frozen=True)
class GateRecord:
    """Gates, labels and predictions of all images of a split, in stored order.

    For the arrays see `files`; `packed` are its `gates`. `classes` are the names of the classes,
    `macs` the multiply-accumulates of an image by its gates, including the gater's.
    """

    packed: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray
    gate_map: GateMap
    classes: Sequence[str]
    macs: Macs

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.packed)

    def rows(self, index) -> np.ndarray:
        """Returns the gates of some images (a slice or indices), uint8 [n, gates] of 0 and 1."""
        return np.unpackbits(
            self.packed[index], axis=1, count=len(self.gate_map), bitorder="little"
        )


def pack(gates: np.ndarray) -> np.ndarray:
    """Packs bools [n, gates] to uint8 [n, ceil(gates / 8)]; gate 0 is the lowest bit of byte 0."""
    return np.packbits(gates, axis=1, bitorder="little")
