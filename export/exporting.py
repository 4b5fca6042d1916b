"""Exports a finished run as a version of a servable model."""

import os
import pathlib

import numpy as np
import tensorflow as tf

from export.publish import choose_version, published
from export.signatures import write_saved_model
from export.warmup import FILE_NAME, write_warmup
from gaternet_tf.errors import UserError
from gaternet_tf.models import gate_map
from gaternet_tf.runs import RunDirectory, git_commit, open_run, package_versions, write_json

MANIFEST = "gaternet.json"


def export_run(
    workdir: str | os.PathLike, output_dir: str | os.PathLike, version: int | None = None
) -> pathlib.Path:
    """Exports the run in `workdir` to `output_dir/version`.

    Args:
      workdir: a finished run.
      output_dir: the model's directory; its name is the model's name.
      version: number of the version, or None for one above the highest present.

    Returns:
      The version's directory.

    Raises:
      UserError: for a run that cannot be exported, or a place where it cannot go.
    """
    run = open_run(workdir)
    # Made absolute without following links: the last part is the model's name.
    base = pathlib.Path(os.path.abspath(output_dir))
    version = choose_version(base, version)
    model = run.load_model()
    check_finite(model)
    preprocessing = run.preprocessing
    with published(base, version) as directory:
        write_saved_model(model, preprocessing, run.labels, str(directory))
        extra = directory / "assets.extra"
        extra.mkdir()
        write_warmup(extra / FILE_NAME, warmup_pictures(run), preprocessing, base.name)
        write_json(extra / MANIFEST, manifest(run, model, base.name, version))
    return pathlib.Path(output_dir) / str(version)


def warmup_pictures(run: RunDirectory) -> list[bytes]:
    """The run's own pictures; for a converted run, which has none, a grey one."""
    pictures = [path.read_bytes() for path in sorted(run.pictures.glob("*/*.png"))]
    grey = tf.fill(run.preprocessing.shape, tf.constant(128, tf.uint8))
    return pictures or [tf.io.encode_png(grey).numpy()]


def check_finite(model) -> None:
    """Raises `UserError` naming the first weight that is not finite: such a run has diverged."""
    for variable in model.variables:
        value = np.asarray(variable)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UserError(
                f"the weights of an exported run must be finite, and {variable.path} is not; "
                "train again with a lower --learning_rate"
            )


def manifest(run: RunDirectory, model, name: str, version: int) -> dict:
    """What a version tells of itself: where it came from and how to read its answers."""
    document = run.document
    return {
        "format": "gaternet-export-1",
        "model": name,
        "version": version,
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
        "export": {"git_commit": git_commit(), "versions": package_versions()},
    }
