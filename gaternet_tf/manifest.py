"""The manifest of an exported version, which says how it was made: what any room may read."""

import os
import pathlib

from gaternet_tf.errors import UserError
from gaternet_tf.runs import read_json

FORMAT = "gaternet-export-2"
PLACE = pathlib.PurePath("assets.extra") / "gaternet.json"


def read_manifest(directory: str | os.PathLike) -> dict:
    """The manifest of a version.

    Raises:
      UserError: when there is none of ours.
    """
    try:
        manifest = read_json(pathlib.Path(directory) / PLACE)
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}, not {FORMAT}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"'{directory}' must be a version that export.main wrote, with {PLACE}, and it is not "
            f"({error})"
        ) from error
    return manifest
