"""Exports a finished run as a version of a servable model."""

import dataclasses
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from export.frozen import FrozenNetwork, can_be_frozen
from export.publish import (
    choose_version,
    publish,
    remove_old_versions,
    require_model_directory,
    staging_directory,
)
from export.session import Request, run_requests
from export.signatures import write_saved_model
from export.specializing import SpecializedNetwork, agreement, calibrate
from export.verification import problems_of
from export.warmup import warmup_pictures, write_warmup
from gaternet_tf.data import evaluation_batches
from gaternet_tf.errors import UserError
from gaternet_tf.evaluation import dataset_with_classes
from gaternet_tf.manifest import write_manifest
from gaternet_tf.models import gate_map
from gaternet_tf.runs import RunDirectory, open_run

BATCH = 250
TIMED_BATCHES = (1, 32)
TIMED_ROUNDS = 15
TOLERANCE = 1e-4
"""Largest difference between probabilities of the exported and of the trained network."""


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """All settings of an export; the flags of `export.main` explain each by the same name."""

    workdir: str | os.PathLike
    output_dir: str | os.PathLike
    version: int | None = None
    optimize: str = "auto"
    specialize_mode: str = "exact"
    calibration_split: str = "train"
    data_dir: str | None = None
    warmup_images: str | None = None
    keep: int | None = None


def export_run(config: ExportConfig) -> pathlib.Path:
    """Exports the run in `config.workdir` to `config.output_dir/VERSION`, verified.

    Returns:
      The version's directory.

    Raises:
      UserError: for a run that cannot be exported, a place where it cannot go, or an export that
        does not pass `export.verification`.
    """
    run = open_run(config.workdir)
    # Made absolute without following links: the last part is the model's name.
    base = pathlib.Path(os.path.abspath(config.output_dir))
    require_model_directory(base)
    choose_version(base, config.version)
    pictures, images = warmup_pictures(run, config.warmup_images)
    model = run.load_model()
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        # Gates would silently be off where the gater's weights are NaN.
        raise UserError(
            f"the weights of an exported run must be finite, and those in '{run.model_file}' are "
            "not; train again with a lower --learning_rate"
        )
    network, record = build_network(model, run, config)
    record["compared"] = compare_with_trained(model, network, run, images, record["optimize"])
    with staging_directory(base) as directory:
        write_saved_model(network, run.preprocessing, run.labels, str(directory))
        write_warmup(directory, pictures, images, base.name)
        if report := record.get("specialized"):
            report["milliseconds"] = compare_times(directory, model, run, images)
            print(describe(report), flush=True)
        write_manifest(directory, run, model, base.name, record)
        if problems := problems_of(directory):
            raise UserError(
                "the export does not pass its own verification, and nothing was published:\n  "
                + "\n  ".join(problems)
            )
        version = publish(directory, base, config.version)
    if config.keep is not None and (removed := remove_old_versions(base, version, config.keep)):
        print(f"removed versions {', '.join(map(str, removed))} of {config.output_dir}")
    return pathlib.Path(config.output_dir) / str(version)


def build_network(
    model: keras.Model, run: RunDirectory, config: ExportConfig
) -> tuple[Callable, dict]:
    """Returns the network to export, and a JSON-ready record of how it was made."""
    optimize = config.optimize
    half = {layer.compute_dtype for layer in model.layers} - {"float32"}
    if half and optimize == "auto":
        print(f"exported as trained, in {half.pop()}: folding would compute in float32")
        optimize = "none"
    known = can_be_frozen(model)
    if optimize == "auto" and not known:
        print(f"exported as trained: not all layers of {run.config['backbone']} can be folded")
        optimize = "none"
    if optimize == "none":
        return lambda images: model(images, training=False), {"optimize": "none"}
    if half:
        raise UserError(
            f"--optimize={optimize} computes in float32, and the run was trained in {half.pop()}; "
            "give --optimize=none to export it as it was evaluated"
        )
    if not known:
        raise UserError(
            f"--optimize={optimize} is for networks of convolutions, batch normalisation and sums, "
            f"and {run.config['backbone']} has other layers; give --optimize=none"
        )
    if optimize != "specialize":
        return FrozenNetwork(model), {"optimize": "fold"}
    if not gate_map(model):
        raise UserError(
            "--optimize=specialize leaves out gates that never change, and the run in "
            f"'{run.path}' has none; give --optimize=fold"
        )
    data = dataset_with_classes(
        run.labels, run.config, run.document["dataset"], None, config.data_dir, download=False
    )
    if config.calibration_split == data.test_split:
        raise UserError(
            f"--calibration_split must not be '{data.test_split}', on which the answers are "
            "compared afterwards; choose another, such as 'train'"
        )
    batches = evaluation_batches(data, run.preprocessing, BATCH, config.calibration_split)
    network = SpecializedNetwork(model, calibrate(model, batches), config.specialize_mode)
    held_out = evaluation_batches(data, run.preprocessing, max(TIMED_BATCHES))
    report = {
        "calibration_split": config.calibration_split,
        **network.report(),
        "held_out_split": data.test_split,
        **agreement(model, network, held_out),
    }
    return network, {"optimize": "specialize", "specialized": report}


def compare_with_trained(
    model: keras.Model, network: Callable, run: RunDirectory, images: np.ndarray, optimize: str
) -> dict:
    """Compares the network's answers for the warm-up pictures with the trained model's.

    Returns:
      JSON-ready: the number of `pictures`, the `largest_difference` of their probabilities, and
      the number of `gates_changed`.

    Raises:
      UserError: when probabilities of a picture with the same gates differ by more than 1e-4,
        unless gates were settled.
    """
    normalized = run.preprocessing.normalize(images)
    exported, trained = network(normalized), model(normalized, training=False)
    probabilities = [
        tf.nn.softmax(tf.cast(each["logits"], tf.float32)).numpy() for each in (exported, trained)
    ]
    difference = np.abs(probabilities[0] - probabilities[1]).max(axis=1)
    # A pre-activation of almost 0 may fall to the other side by rounding.
    changed = np.zeros(len(images), np.int64)
    if "gates" in trained:
        changed = np.sum((exported["gates"] > 0) != (trained["gates"] > 0), axis=1)
    largest = difference[changed == 0].max(initial=0)
    if optimize != "specialize" and not largest <= TOLERANCE:
        raise UserError(
            "the exported network must answer as the trained one, and its probabilities differ by "
            f"up to {largest:.2g}; export with --optimize=none"
        )
    return {
        "pictures": len(images),
        "gates_changed": int(changed.sum()),
        "largest_difference": float(difference.max()),
    }


def compare_times(
    directory: pathlib.Path, model: keras.Model, run: RunDirectory, images: np.ndarray
) -> dict:
    """Returns median milliseconds of a call by batch size, `specialized` and `folded`.

    Both take turns in one process; compare their ratio, the times are this machine's.
    """
    with tempfile.TemporaryDirectory() as folded:
        write_saved_model(FrozenNetwork(model), run.preprocessing, run.labels, folded)
        versions = {"specialized": directory, "folded": pathlib.Path(folded)}
        requests = [
            Request(
                version, "serving_default", {"images": np.resize(images, (n, *images[0].shape))}
            )
            for version in versions.values()
            for n in TIMED_BATCHES
        ]
        answers = iter(run_requests(requests, warm_up=3, rounds=TIMED_ROUNDS))
    return {
        name: {
            str(n): round(1000 * statistics.median(next(answers).seconds), 3) for n in TIMED_BATCHES
        }
        for name in versions
    }


def describe(report: dict) -> str:
    """Returns the report of a specialised network as text."""
    times = report["milliseconds"]
    measured = ", ".join(
        f"batch {size}: {times['specialized'][size]:.2f} ms, folded {times['folded'][size]:.2f} ms"
        for size in times["folded"]
    )
    fallback = ""
    if report["mode"] == "exact":
        fallback = (
            f"; {report['batches_in_full']} of {report['batches']} batches of "
            f"{report['batch_size']} take the full network"
        )
    return (
        f"specialized ({report['mode']}) on {report['calibration_images']} images of "
        f"'{report['calibration_split']}':\n"
        f"  gates    {report['gates']}: {report['gates_settled_on']} settled on, "
        f"{report['gates_settled_off']} settled off, {report['gates_free']} depend on the image\n"
        f"  removed  {report['filters_removed']} filters, {report['units_removed']} units\n"
        f"  MACs     {report['macs_before']:,} before, {report['macs_after']:,} after\n"
        f"  measured {measured} (on the warm-up pictures)\n"
        f"  held out {report['held_out_images']} images of '{report['held_out_split']}': "
        f"{report['images_with_a_settled_gate_changed']} change a gate that was settled, "
        f"{report['images_with_another_prediction']} get another prediction{fallback}"
    )
