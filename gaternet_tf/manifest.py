"""The manifest of an exported version, which says how it was made: what any room may read."""

import os
import pathlib

from gaternet_tf.data import Preprocessing
from gaternet_tf.documents import NUMBER, OPTIONAL_TEXT, read_json, require_parts
from gaternet_tf.errors import UserError
from gaternet_tf.models.gate_map import GateMap

FORMAT = "gaternet-export-2"
PLACE = pathlib.PurePath("assets.extra") / "gaternet.json"
VERSIONS = {"python": str, "tensorflow": str, "keras": str}
PARTS = {
    "format": str,
    "model": str,
    "run": {
        "workdir": str,
        "config": {
            "backbone": str,
            "gater": str,
            "gated_convs": str,
            "sparsity": NUMBER,
            "dataset": str,
        },
        "git_commit": OPTIONAL_TEXT,
        "versions": VERSIONS,
        "result": dict,
    },
    "dataset": {"name": str, "version": str},
    "labels": [str],
    "preprocessing": dict,
    "gates": {"count": int, "segments": [dict]},
    "export": {"optimize": str, "git_commit": OPTIONAL_TEXT, "versions": VERSIONS},
    "sha256": dict,
}
"""What every manifest has at least."""
MACS = {"total": int, "gates": [int]}
"""And in `macs`, which readers do without."""


def read_manifest(directory: str | os.PathLike) -> dict:
    """The manifest of a version.

    Raises:
      UserError: when there is none of ours.
    """
    try:
        manifest = read_json(pathlib.Path(directory) / PLACE)
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}, not {FORMAT}")
        require_parts(manifest, PARTS)
        Preprocessing.from_dict(manifest["preprocessing"])
        gates = len(GateMap.from_rows(manifest["gates"]["segments"]))
        if gates != manifest["gates"]["count"]:
            raise ValueError(f"it counts {manifest['gates']['count']} gates, and lists {gates}")
        if "macs" in manifest:
            require_parts(manifest["macs"], MACS, "'macs'")
            if len(manifest["macs"]["gates"]) != gates:
                raise ValueError(f"'macs' is not of {gates} gates")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"'{directory}' must be a version that export.main wrote, with {PLACE}, and it is not "
            f"({error})"
        ) from error
    return manifest
