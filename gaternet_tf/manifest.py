"""The manifest of an exported version: its origin, its labels and gates, its files' checksums."""

import os
import pathlib

import keras

from gaternet_tf.documents import read_json, sha256, write_json
from gaternet_tf.errors import UserError
from gaternet_tf.macs import macs_of
from gaternet_tf.models import gate_map
from gaternet_tf.runs import RunDirectory, git_commit, package_versions

FORMAT = "gaternet-export-3"
PLACE = pathlib.PurePath("assets.extra") / "gaternet.json"
"""Where a version holds its manifest."""


def write_manifest(
    directory: pathlib.Path, run: RunDirectory, model: keras.Model, name: str, record: dict
) -> None:
    """Writes the manifest of a version whose other files are complete.

    Args:
      directory: the version's directory.
      run: the exported run.
      model: its Keras model.
      name: the name that the model is served under.
      record: JSON-ready; how the exported graph was made (`optimize`, `compared`, ...).
    """
    document = run.document
    gates, macs = gate_map(model), macs_of(model)
    manifest = {
        "format": FORMAT,
        "model": name,
        "run": {
            "workdir": str(run.path),
            "config": document["config"],
            "git_commit": document["git_commit"],
            "versions": document["versions"],
            "result": run.result,
        },
        "dataset": {
            # `content` identifies the pictures of datasets that have no published version.
            key: document["dataset"].get(key, "")
            for key in ("name", "version", "content")
        },
        "labels": run.labels,
        "preprocessing": document["preprocessing"],
        "gates": {"count": len(gates), "segments": gates.to_rows()},
        # Of the trained network, before anything was left out; see gaternet_tf.macs.
        "macs": {"total": macs.total, "products": macs.to_rows()},
        "export": {"git_commit": git_commit(), "versions": package_versions(), **record},
        "sha256": checksums(directory),
    }
    write_json(directory / PLACE, manifest)


def read_manifest(directory: str | os.PathLike) -> dict:
    """Reads the manifest of a version.

    Raises:
      UserError: when `directory` holds none of this format.
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


def checksums(directory: pathlib.Path) -> dict[str, str]:
    """Returns the SHA-256 of each file of a version but its manifest, by path in the version."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    paths = [path.relative_to(directory) for path in files]
    return {str(path): sha256(directory / path) for path in paths if path != PLACE}
