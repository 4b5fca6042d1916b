"""Writes a version's manifest: where it came from, how to read its answers, what its files are."""

import pathlib

from gaternet_tf.documents import read_json, sha256, write_json
from gaternet_tf.macs import gate_macs, layer_macs
from gaternet_tf.manifest import FORMAT, PLACE
from gaternet_tf.models import gate_map
from gaternet_tf.runs import RunDirectory, git_commit, package_versions


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
        "dataset": {
            # `content` tells pictures of one's own from what they become later.
            key: document["dataset"].get(key, "")
            for key in ("name", "version", "content")
        },
        "labels": run.labels,
        "preprocessing": document["preprocessing"],
        "gates": {"count": len(gate_map(model)), "segments": gate_map(model).to_rows()},
        # Of the network as it was trained, see gaternet_tf.macs.
        "macs": {"total": sum(layer_macs(model).values()), "gates": gate_macs(model).tolist()},
        "export": {"git_commit": git_commit(), "versions": package_versions(), **how},
        "sha256": checksums(directory),
    }
    write_json(directory / PLACE, manifest)


def is_export(directory: pathlib.Path) -> bool:
    """Whether a directory holds a version of ours, of this or an earlier format."""
    try:
        return read_json(directory / PLACE)["format"].startswith(FORMAT.rpartition("-")[0])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def strange_entries(directory: pathlib.Path) -> list[str]:
    """What a version must not hold, a sentence each: anything but files and directories.

    A link to a file counts as the file. One to a directory would hide what is in there from
    `checksums`, and whoever opens a pipe waits.
    """
    sentences = []
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() and not path.is_file():
            kind = f"a link to {'a directory' if path.is_dir() else 'no file'}"
        elif not path.is_file() and not path.is_dir():
            kind = "a pipe, a socket or a device"
        else:
            continue
        sentences.append(
            f"{path.relative_to(directory)} is {kind}, and a version holds files and directories"
        )
    return sentences


def checksums(directory: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file of a version but the manifest, by its path in there."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): sha256(path)
        for path in files
        if path.relative_to(directory) != PLACE
    }
