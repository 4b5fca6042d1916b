"""The two files of an analysis, `gates.npz` and `analysis.json`; all others are drawn from them.

`analysis.json` holds the numbers, `gates.npz` the arrays. Gates are packed eight to a byte:
`numpy.unpackbits(arrays["gates"], axis=1, count=GATES, bitorder="little")` unpacks them.
"""

import dataclasses
import os
import pathlib

import numpy as np

from gaternet_tf.analysis.record import GateRecord
from gaternet_tf.documents import read_json, write_json
from gaternet_tf.errors import UserError
from gaternet_tf.models.gate_map import GateMap

FORMAT = "gaternet-analysis-2"
ARRAYS = "gates.npz"
DOCUMENT = "analysis.json"


@dataclasses.dataclass(frozen=True)
class Analysis:
    """An analysis, computed or read back.

    Attributes:
      record: the gates.
      document: the numbers, as in analysis.json.
      sample: int64 [n], images in the t-SNE picture, ascending.
      points: float32 [n, 2], their places; [0, 2] if there is no such picture.
      shown: int64 [m], images with a thumbnail, ascending.
      thumbnails: uint8 [m, height, width, channels].
    """

    record: GateRecord
    document: dict
    sample: np.ndarray
    points: np.ndarray
    shown: np.ndarray
    thumbnails: np.ndarray


def save(analysis: Analysis, directory: str | os.PathLike) -> None:
    """Writes the two files. The document comes last, so that it is never that of other arrays."""
    directory = pathlib.Path(directory)
    record = analysis.record
    (directory / DOCUMENT).unlink(missing_ok=True)
    np.savez_compressed(
        directory / ARRAYS,
        gates=record.packed,
        labels=record.labels,
        predictions=record.predictions,
        confidences=record.confidences,
        gate_macs=record.gate_macs,
        sample=analysis.sample,
        points=analysis.points,
        shown=analysis.shown,
        thumbnails=analysis.thumbnails,
    )
    write_json(directory / DOCUMENT, {"format": FORMAT, **analysis.document})


def load(directory: str | os.PathLike) -> Analysis:
    """Reads what `save` wrote.

    Raises:
      UserError: for a directory without these files, or files of another format.
    """
    directory = pathlib.Path(directory)
    try:
        document = read_json(directory / DOCUMENT)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}, not {FORMAT}")
        with np.load(directory / ARRAYS) as stored:
            arrays = dict(stored)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"'{directory}' must hold the {DOCUMENT} and {ARRAYS} of an analysis, and does not "
            f"({error}); run python -m gaternet_tf.analysis again"
        ) from error
    record = GateRecord(
        packed=arrays["gates"],
        labels=arrays["labels"],
        predictions=arrays["predictions"],
        confidences=arrays["confidences"],
        gate_map=GateMap.from_rows(document["gate_map"]),
        classes=document["classes"],
        macs=document["macs"]["total"],
        gate_macs=arrays["gate_macs"],
    )
    names = ("sample", "points", "shown", "thumbnails")
    return Analysis(record, document, *(arrays[name] for name in names))
