"""What a network's gates were on each image of a split."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from gaternet_tf.models.gate_map import GateMap

CHUNK = 1000


@dataclasses.dataclass(frozen=True)
class GateRecord:
    """Gates, labels and predictions of `images` images in stored order.

    Attributes:
      packed: uint8 [images, ceil(gates / 8)], the gates as `pack` packs them.
      labels, predictions: int32 [images], classes.
      confidences: float32 [images], the probability of the predicted class.
      gate_map: the place of each gate.
      classes: names of the classes.
      macs: multiply-accumulates of an image with all filters, the gater's included, see
        `gaternet_tf.macs`; None where it is not known.
      gate_macs: int64 [gates], what each gate saves that is off; None where it is not known.

    Raises:
      ValueError: for parts that do not fit each other, and for no image or no gate.
    """

    packed: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    confidences: np.ndarray
    gate_map: GateMap
    classes: Sequence[str]
    macs: int | None = None
    gate_macs: np.ndarray | None = None

    def __post_init__(self):
        gates = len(self.gate_map)
        if not gates:
            raise ValueError("an analysis needs gates, and this network has none")
        width = (gates + 7) // 8
        if self.packed.ndim != 2 or self.packed.shape[1] != width or self.packed.dtype != np.uint8:
            raise ValueError(
                f"{gates} gates take {width} bytes an image, and the gate matrix has shape "
                f"{self.packed.shape} of {self.packed.dtype}: it is of another network"
            )
        if not self.images:
            raise ValueError("an analysis needs images, and the split has none")
        if gates % 8 and np.any(self.packed[:, -1] >> gates % 8):
            raise ValueError(
                f"the gate matrix has gates on beyond the last of {gates}: it is of another network"
            )
        for name in ("labels", "predictions", "confidences"):
            values = getattr(self, name)
            if values.shape != (self.images,):
                raise ValueError(f"{name} must have shape ({self.images},), got {values.shape}")
        for name in ("labels", "predictions"):
            values = getattr(self, name)
            if not np.issubdtype(values.dtype, np.integer):
                raise ValueError(f"{name} must be whole numbers, got {values.dtype}")
            if values.min() < 0 or values.max() >= len(self.classes):
                raise ValueError(
                    f"{name} must be from 0 to {len(self.classes) - 1}, got {values.min()} to "
                    f"{values.max()}"
                )
        if not np.isfinite(self.confidences).all():
            raise ValueError("confidences must be finite numbers")
        if self.gate_macs is not None and self.gate_macs.shape != (gates,):
            raise ValueError(f"gate_macs must have shape ({gates},), got {self.gate_macs.shape}")

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.packed)

    @property
    def gates(self) -> int:
        """Number of gates."""
        return len(self.gate_map)

    def rows(self, index) -> np.ndarray:
        """Gates of some images (a slice or indices), uint8 [n, gates] of 0 and 1."""
        return unpack(self.packed[index], self.gates)

    def chunks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All images, a thousand at a time: (slice, uint8 [n, gates])."""
        for start in range(0, self.images, CHUNK):
            part = slice(start, min(start + CHUNK, self.images))
            yield part, self.rows(part)


def pack(gates: np.ndarray) -> np.ndarray:
    """Bools [n, gates] to uint8 [n, ceil(gates / 8)]; gate 0 is the lowest bit of byte 0."""
    return np.packbits(gates, axis=1, bitorder="little")


def unpack(packed: np.ndarray, gates: int) -> np.ndarray:
    """What `pack` packed, as uint8 of 0 and 1."""
    return np.unpackbits(packed, axis=1, count=gates, bitorder="little")
