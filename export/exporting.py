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

from export.frozen import FrozenNetwork
from export.publish import (
    choose_version,
    publish,
    remove_old_versions,
    require_model_directory,
    staging_directory,
)
from export.session import Request, run_requests
from export.signatures import write_saved_model
from export.specializing import MODES, SpecializedNetwork, agreement, calibrate
from export.verification import problems_of
from export.warmup import warmup_pictures, write_warmup
from gaternet_tf.data import evaluation_batches
from gaternet_tf.errors import UserError
from gaternet_tf.evaluation import dataset_with_classes
from gaternet_tf.manifest import write_manifest
from gaternet_tf.models import gate_map
from gaternet_tf.runs import RunDirectory, open_run

OPTIMIZE = ("auto", "none", "fold", "specialize")
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

    def __post_init__(self):
        for name, choices in {"optimize": OPTIMIZE, "specialize_mode": MODES}.items():
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"--{name} must be one of {', '.join(choices)}, got '{value}'")


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
    pictures = warmup_pictures(run, config.warmup_images)
    model = run.load_model()
    require_finite(model)
    network, record = build_network(model, run, config)
    record["compared"] = compare_with_trained(model, network, run, pictures, record["optimize"])
    with staging_directory(base) as directory:
        write_saved_model(network, run.preprocessing, run.labels, str(directory))
        write_warmup(directory, pictures, run.preprocessing, base.name)
        if report := record.get("specialized"):
            report["milliseconds"] = compare_times(directory, model, run, pictures)
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
    if optimize == "auto":
        optimize = "none" if half else "fold"
        if half:
            print(f"exported as trained, in {half.pop()}: folding would compute in float32")
    if optimize == "none":
        network = shared(lambda images: model(images, training=False), run)
        return network, {"optimize": "none"}
    if optimize == "fold":
        return shared(FrozenNetwork(model), run), {"optimize": "fold"}
    if not gate_map(model):
        raise UserError(
            "--optimize=specialize leaves out gates that never change, and the run in "
            f"'{run.path}' has none; give --optimize=fold"
        )
    if half:
        raise UserError(
            "--optimize=specialize computes in float32, and the run was trained in "
            f"{half.pop()}; export it with --optimize=none"
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
    return shared(network, run), {"optimize": "specialize", "specialized": report}


def shared(network: Callable, run: RunDirectory) -> tf.function:
    """Returns one function for all signatures, so that its constants are stored once."""
    shape = (None, *run.preprocessing.shape)
    return tf.function(network, input_signature=[tf.TensorSpec(shape, tf.float32)])


def compare_with_trained(
    model: keras.Model, network: Callable, run: RunDirectory, pictures: list[bytes], optimize: str
) -> dict:
    """Compares the network's answers for the warm-up pictures with the trained model's.

    Returns:
      JSON-ready: the number of `pictures`, the `largest_difference` of their probabilities, and
      the number of `gates_changed`.

    Raises:
      UserError: when probabilities of a picture with the same gates differ by more than 1e-4,
        unless gates were settled.
    """
    decoded = [run.preprocessing.decode(tf.constant(picture)) for picture in pictures]
    images = run.preprocessing.normalize(tf.stack(decoded))
    exported, trained = network(images), model(images, training=False)
    probabilities = [
        tf.nn.softmax(tf.cast(each["logits"], tf.float32)).numpy() for each in (exported, trained)
    ]
    difference = np.abs(probabilities[0] - probabilities[1]).max(axis=1)
    # A pre-activation of almost 0 may fall to the other side by rounding.
    changed = np.zeros(len(images), np.int64)
    if "gates" in trained:
        changed = np.sum((exported["gates"] > 0) != (trained["gates"] > 0), axis=1)
    same = difference[changed == 0]
    if optimize != "specialize" and same.size and same.max() > TOLERANCE:
        raise UserError(
            f"the exported network must answer as the trained one, and its probabilities differ by "
            f"up to {same.max():.2g}; export with --optimize=none"
        )
    return {
        "pictures": len(images),
        "gates_changed": int(changed.sum()),
        "largest_difference": float(difference.max()),
    }


def compare_times(
    directory: pathlib.Path, model: keras.Model, run: RunDirectory, pictures: list[bytes]
) -> dict:
    """Returns median milliseconds of a call by batch size, `specialized` and `folded`.

    Both take turns in one process; compare their ratio, the times are this machine's.
    """
    images = np.stack([run.preprocessing.decode(tf.constant(picture)) for picture in pictures])
    with tempfile.TemporaryDirectory() as scratch:
        network = shared(FrozenNetwork(model), run)
        write_saved_model(network, run.preprocessing, run.labels, scratch)
        versions = {"specialized": directory, "folded": pathlib.Path(scratch)}
        cases = [(name, size) for name in versions for size in TIMED_BATCHES]
        requests = []
        for name, size in cases:
            batch = np.resize(images, (size, *run.preprocessing.shape))
            requests.append(Request(versions[name], "serving_default", {"images": batch}))
        answers = run_requests(requests, warm_up=3, rounds=TIMED_ROUNDS)
    times: dict[str, dict[str, float]] = {name: {} for name in versions}
    for (name, size), answer in zip(cases, answers, strict=True):
        times[name][str(size)] = round(1000 * statistics.median(answer.seconds), 3)
    return times


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


def require_finite(model: keras.Model) -> None:
    """Raises `UserError` naming the first weight that is not finite: such a run has diverged."""
    for variable in model.variables:
        value = np.asarray(variable)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UserError(
                f"the weights of an exported run must be finite, and {variable.path} is not; "
                "train again with a lower --learning_rate"
            )
