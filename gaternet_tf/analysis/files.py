"""The two files of an analysis, `gates.npz` and `analysis.json`; the rest is drawn of them.

`gates.npz` holds what `Analysis` does in arrays. Its `gates` is bit-packed: gate 0 of an image is
the lowest bit of byte 0, `numpy.unpackbits(gates, axis=1, count=GATES, bitorder="little")`.
"""

import dataclasses
import os
import pathlib
import zipfile

import numpy as np

from gaternet_tf.analysis.record import GateRecord
from gaternet_tf.documents import read_json, write_json
from gaternet_tf.errors import UserError
from gaternet_tf.models.gate_map import GateMap

FORMAT = "gaternet-analysis-1"
ARRAYS = "gates.npz"
DOCUMENT = "analysis.json"


@dataclasses.dataclass(frozen=True)
class Analysis:
    """An analysis, computed or read back.

    Attributes:
      record: the gates.
      document: the numbers, what analysis.json holds.
      sample: int64 [n], images that the t-SNE picture shows.
      points: float32 [n, 2], their places; [0, 2] if there is no such picture.
      shown: int64 [m], images of which there is a small picture, ascending.
      thumbnails: uint8 [m, height, width, channels].
    """

    record: GateRecord
    document: dict
    sample: np.ndarray
    points: np.ndarray
    shown: np.ndarray
    thumbnails: np.ndarray

    def thumbnail(self, image: int) -> np.ndarray:
        """The small picture of an image, uint8 [height, width, channels].

        Raises:
          KeyError: if there is none of it.
        """
        place = int(np.searchsorted(self.shown, image))
        if place == len(self.shown) or self.shown[place] != image:
            raise KeyError(f"no picture of image {image} was kept")
        return self.thumbnails[place]


def save(analysis: Analysis, directory: str | os.PathLike) -> None:
    """Writes the two files, analysis.json last."""
    directory = pathlib.Path(directory)
    record = analysis.record
    np.savez_compressed(
        directory / ARRAYS,
        gates=record.packed,
        labels=record.labels,
        predictions=record.predictions,
        confidences=record.confidences,
        gate_macs=np.zeros(0, np.int64) if record.gate_macs is None else record.gate_macs,
        sample=analysis.sample,
        points=analysis.points,
        shown=analysis.shown,
        thumbnails=analysis.thumbnails,
    )
    write_json(directory / DOCUMENT, {"format": FORMAT, **analysis.document})


def load(directory: str | os.PathLike) -> Analysis:
    """Reads what `save` wrote.

    Raises:
      UserError: for a directory without these files, and files that do not fit each other.
    """
    directory = pathlib.Path(directory)
    try:
        document = read_json(directory / DOCUMENT)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}, not {FORMAT}")
        with np.load(directory / ARRAYS, allow_pickle=False) as file:
            arrays = dict(file)
        record = GateRecord(
            packed=arrays["gates"],
            labels=arrays["labels"],
            predictions=arrays["predictions"],
            confidences=arrays["confidences"],
            gate_map=GateMap.from_rows(document["gate_map"]),
            classes=document["classes"],
            macs=document["macs"].get("total"),
            gate_macs=arrays["gate_macs"] if len(arrays["gate_macs"]) else None,
        )
        if record.images != document["images"]:
            raise ValueError(
                f"{DOCUMENT} is of {document['images']} images and {ARRAYS} of {record.images}"
            )
        return Analysis(
            record,
            document,
            *(arrays[name] for name in ("sample", "points", "shown", "thumbnails")),
        )
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"'{directory}' must hold the {DOCUMENT} and {ARRAYS} of one analysis, and does not "
            f"({error}); run python -m gaternet_tf.analysis again"
        ) from error
