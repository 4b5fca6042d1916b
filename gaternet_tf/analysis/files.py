"""The two files of an analysis, `gates.npz` and `analysis.json`; the rest is drawn of them.

`gates.npz` holds what `Analysis` does in arrays. Its `gates` is bit-packed: gate 0 of an image is
the lowest bit of byte 0, `numpy.unpackbits(gates, axis=1, count=GATES, bitorder="little")`.
`analysis.json` holds the numbers (`document`) and the SHA-256 of its `gates.npz`.
"""

import dataclasses
import os
import pathlib
import zipfile

import numpy as np

from gaternet_tf.analysis.document import require_document
from gaternet_tf.analysis.record import GateRecord
from gaternet_tf.documents import read_json, require_parts, sha256, write_json
from gaternet_tf.errors import UserError
from gaternet_tf.models.gate_map import GateMap

FORMAT = "gaternet-analysis-2"
ARRAYS = "gates.npz"
DOCUMENT = "analysis.json"
ARRAY_NAMES = (
    *("gates", "labels", "predictions", "confidences", "gate_macs"),
    *("sample", "points", "shown", "thumbnails"),
)


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
    head = {"format": FORMAT, "sha256": {ARRAYS: sha256(directory / ARRAYS)}}
    # Of an analysis that was read back they are replaced.
    write_json(directory / DOCUMENT, {**head, **analysis.document, **head})


def load(directory: str | os.PathLike) -> Analysis:
    """Reads what `save` wrote.

    Raises:
      UserError: for a directory without these files, damaged ones, and files that do not fit each
        other.
    """
    directory = pathlib.Path(directory)
    try:
        document = read_json(directory / DOCUMENT, {"format": str})
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}, not {FORMAT}")
        require_parts(document, {"sha256": {ARRAYS: str}})
        require_document(document)
        arrays = _read_arrays(directory / ARRAYS, document["sha256"][ARRAYS])
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
        analysis = Analysis(record, document, *(arrays[name] for name in ARRAY_NAMES[-4:]))
        _require_fitting(analysis)
        return analysis
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"'{directory}' must hold the {DOCUMENT} and {ARRAYS} of one analysis, and does not "
            f"({error}); run python -m gaternet_tf.analysis again"
        ) from error


def _read_arrays(path, checksum):
    if sha256(path) != checksum:
        raise ValueError(f"{path.name} is damaged, or not that of this {DOCUMENT}")
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    if missing := [name for name in ARRAY_NAMES if name not in arrays]:
        raise ValueError(f"{path.name} has no '{missing[0]}'")
    return arrays


def _require_fitting(analysis):
    """Raises `ValueError` for arrays that are not those of the document."""
    record, document = analysis.record, analysis.document
    if record.images != document["images"]:
        raise ValueError(
            f"{DOCUMENT} is of {document['images']} images and {ARRAYS} of {record.images}"
        )
    of_class = [row.get("images", 0) for row in document["gates_on"]["by_class"]]
    if of_class != np.bincount(record.labels, minlength=len(of_class)).tolist():
        raise ValueError(f"{DOCUMENT} and {ARRAYS} have other numbers of images of a class")
    for name in ("sample", "shown"):
        numbers = getattr(analysis, name)
        if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
            raise ValueError(f"{name} must be numbers of images, got {numbers.dtype}")
        if len(numbers) and not (
            numbers[0] >= 0 and numbers[-1] < record.images and (np.diff(numbers) > 0).all()
        ):
            raise ValueError(f"{name} must be ascending and below {record.images}")
    points, thumbnails = analysis.points, analysis.thumbnails
    places = 0 if "absent" in document["separation"]["t_sne"] else len(analysis.sample)
    if points.shape != (places, 2) or not np.isfinite(points).all():
        raise ValueError(f"points must be finite and of shape ({places}, 2), got {points.shape}")
    pictures = len(analysis.shown)
    if thumbnails.dtype != np.uint8 or thumbnails.ndim != 4 or len(thumbnails) != pictures:
        raise ValueError(f"thumbnails must be {pictures} pictures, got {thumbnails.shape}")
    if 0 in thumbnails.shape[1:3] or thumbnails.shape[3] not in (1, 3):
        raise ValueError(f"thumbnails must be grey or RGB, got {thumbnails.shape}")
    used = {
        image
        for gates in document["characteristic"]
        for row in gates
        for image in (*row.get("images_on", ()), *row.get("images_off", ()))
    }
    if missing := used - set(analysis.shown.tolist()):
        raise ValueError(f"no picture of image {min(missing)} is there")
