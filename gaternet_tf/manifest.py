"""The manifest of an exported version, which says how it was made: what any room may read."""

import os
import pathlib

from gaternet_tf.data import Preprocessing
from gaternet_tf.errors import UserError
from gaternet_tf.models.gate_map import GateMap
from gaternet_tf.runs import read_json

FORMAT = "gaternet-export-2"
PLACE = pathlib.PurePath("assets.extra") / "gaternet.json"
PARTS = {
    "model": str,
    "run": dict,
    "dataset": dict,
    "labels": list,
    "preprocessing": dict,
    "gates": dict,
    "export": dict,
    "sha256": dict,
}
"""What every manifest has, and of which type."""


def read_manifest(directory: str | os.PathLike) -> dict:
    """The manifest of a version.

    Raises:
      UserError: when there is none of ours.
    """
    try:
        manifest = read_json(pathlib.Path(directory) / PLACE)
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}, not {FORMAT}")
        for part, kind in PARTS.items():
            if not isinstance(manifest.get(part), kind):
                raise ValueError(f"'{part}' is missing or no {kind.__name__}")
        Preprocessing.from_dict(manifest["preprocessing"])
        GateMap.from_rows(manifest["gates"]["segments"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"'{directory}' must be a version that export.main wrote, with {PLACE}, and it is not "
            f"({error})"
        ) from error
    return manifest
