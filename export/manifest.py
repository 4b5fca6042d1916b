"""The manifest of a version: where it came from, how to read its answers, what its files are."""

import hashlib
import pathlib

from gaternet_tf.errors import UserError
from gaternet_tf.models import gate_map
from gaternet_tf.runs import RunDirectory, git_commit, package_versions, read_json, write_json

FORMAT = "gaternet-export-2"
PLACE = pathlib.PurePath("assets.extra") / "gaternet.json"


def write_manifest(directory: pathlib.Path, run: RunDirectory, model, name: str, how: dict) -> None:
    """Writes the manifest of a version that is complete but for it.

    Args:
      directory: the version's.
      run: what was exported.
      model: its Keras model.
      name: the model's name.
      how: JSON-ready; how the graph was made (`optimize`, and what is known of it).
    """
    document = run.document
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
        "dataset": {key: document["dataset"][key] for key in ("name", "version")},
        "labels": run.labels,
        "preprocessing": document["preprocessing"],
        "gates": {"count": len(gate_map(model)), "segments": gate_map(model).to_rows()},
        "export": {"git_commit": git_commit(), "versions": package_versions(), **how},
        "sha256": checksums(directory),
    }
    write_json(directory / PLACE, manifest)


def read_manifest(directory: pathlib.Path) -> dict:
    """The manifest of a version.

    Raises:
      UserError: when there is none of ours.
    """
    try:
        manifest = read_json(directory / PLACE)
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']}, not {FORMAT}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"'{directory}' must be a version that export.main wrote, with {PLACE}, and it is not "
            f"({error})"
        ) from error
    return manifest


def is_export(directory: pathlib.Path) -> bool:
    """Whether a directory holds a version of ours."""
    try:
        read_manifest(directory)
    except UserError:
        return False
    return True


def checksums(directory: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file of a version but the manifest, by its path in there."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.relative_to(directory) != PLACE
    }
