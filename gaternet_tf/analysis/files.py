"""The two files of an analysis, `gates.npz` and `analysis.json`; all others are drawn from them.

`analysis.json` holds the numbers, `gates.npz` these arrays:

- `gates`: uint8 [images, ceil(gates / 8)], packed eight to a byte;
  `numpy.unpackbits(arrays["gates"], axis=1, count=GATES, bitorder="little")` unpacks them
- `labels`, `predictions`: int32 [images]
- `confidences`: float32 [images], probability of the predicted class
- `macs`: int64 [images], multiply-accumulates without what the gates that are off save
- `sample`: int64 [n], images in the t-SNE picture, ascending
- `points`: float32 [n, 2], their places; [0, 2] if there is no such picture
- `shown`: int64 [m], images with a thumbnail, ascending
- `thumbnails`: uint8 [m, height, width, channels]
"""

import os
import pathlib

import numpy as np

from gaternet_tf.documents import read_json, write_json
from gaternet_tf.errors import UserError
from gaternet_tf.runs import require_new, require_writable

FORMAT = "gaternet-analysis-4"
ARRAYS = "gates.npz"
DOCUMENT = "analysis.json"


def save(document: dict, arrays: dict[str, np.ndarray], directory: pathlib.Path) -> None:
    """Writes the two files. The document comes last, so that it is never that of other arrays."""
    (directory / DOCUMENT).unlink(missing_ok=True)
    np.savez_compressed(directory / ARRAYS, **arrays)  # type: ignore[arg-type]
    write_json(directory / DOCUMENT, {"format": FORMAT, **document})


def load(directory: str | os.PathLike) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns the document and the arrays that `save` wrote.

    Raises:
      UserError: for a directory without these files, or files of another format.
    """
    directory = pathlib.Path(directory)
    try:
        document = read_json(directory / DOCUMENT)
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}, not {FORMAT}")
        with np.load(directory / ARRAYS) as stored:
            return document, dict(stored)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"'{directory}' must hold the {DOCUMENT} and {ARRAYS} of an analysis, and does not "
            f"({error}); run python -m gaternet_tf.analysis again"
        ) from error


def prepare_output(directory: str | os.PathLike) -> pathlib.Path:
    """Checks that an analysis can be written to `directory`: new, empty, or an earlier analysis.

    Raises:
      UserError: otherwise.
    """
    path = pathlib.Path(directory)
    earlier = any((path / name).exists() for name in (ARRAYS, DOCUMENT))
    (require_writable if earlier else require_new)(path, "--output_dir")
    return path
