"""Exports a finished run as a version of a servable model."""

import collections
import contextlib
import dataclasses
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf

from export.conditional import ConditionalNetwork, gate_places
from export.costs import Costs, choose
from export.folding import fold
from export.program import read_program
from export.publish import (
    choose_version,
    named_versions,
    publish,
    remove_old_versions,
    require_model_directory,
    staging_directory,
)
from export.session import Request, run_requests
from export.signatures import write_saved_model
from export.specializing import CALIBRATED, EXACT, SpecializedNetwork, agreement, calibrate
from export.verification import problems_of
from export.warmup import warmup_pictures, write_warmup
from gaternet_tf.data import evaluation_batches
from gaternet_tf.errors import UserError
from gaternet_tf.evaluation import dataset_with_classes
from gaternet_tf.manifest import write_manifest
from gaternet_tf.models import gate_map
from gaternet_tf.runs import RunDirectory, open_run

BATCH = 250
TIMED_BATCHES = (1, 8, 32)
TIMED_ROUNDS = 7
TOLERANCE = 1e-4
"""Largest difference between probabilities of the exported and of the trained network."""


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """All settings of an export; the flags of `export.main` explain each by the same name."""

    workdir: str | os.PathLike
    output_dir: str | os.PathLike
    version: int | None = None
    optimize: str = "auto"
    specialize_mode: str = "calibrated"
    calibration_split: str = "train"
    data_dir: str | None = None
    cost: str | None = None
    warmup_images: str | None = None
    keep: int | None = None
    server_config: str | None = None


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
    named_versions(config.server_config, base.name)
    pictures, images = warmup_pictures(run, config.warmup_images)
    model = run.load_model()
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        # Gates would silently be off where the gater's weights are NaN.
        raise UserError(
            f"the weights of an exported run must be finite, and those in '{run.model_file}' are "
            "not; train again with a lower --learning_rate"
        )
    network, record = build_network(model, run, config, images)
    record["compared"] = compare_with_trained(model, network, run, images)
    with staging_directory(base) as directory:
        write_saved_model(network, run.preprocessing, run.labels, str(directory))
        write_warmup(directory, pictures, images, base.name)
        if report := record.get("specialized"):
            print(describe(report), flush=True)
        write_manifest(directory, run, model, base.name, record)
        if problems := problems_of(directory):
            raise UserError(
                "the export does not pass its own verification, and nothing was published:\n  "
                + "\n  ".join(problems)
            )
        if len(gate_map(model)) and not half_precision(model):
            print("timing the export and the plain network, without gates ...", flush=True)
            plain = fold(read_program(model)).without_gates()
            try:
                times = compare_times({"exported": directory, "plain": plain}, run, images)
            except RuntimeError as error:  # Such as too little memory for both.
                print(f"not timed: {error}", flush=True)
            else:
                print(describe_times(times), flush=True)
                record["milliseconds"] = times
                write_manifest(directory, run, model, base.name, record)
        version = publish(directory, base, config.version)
    if config.keep is not None:
        # Read again, since labels may have moved in the meantime.
        named = named_versions(config.server_config, base.name)
        if removed := remove_old_versions(base, version, config.keep, named):
            print(f"removed versions {', '.join(map(str, removed))} of {config.output_dir}")
    return pathlib.Path(config.output_dir) / str(version)


def build_network(
    model: keras.Model, run: RunDirectory, config: ExportConfig, images: np.ndarray
) -> tuple[Callable, dict]:
    """Returns the network to export, and a JSON-ready record of how it was made."""
    optimize = config.optimize
    if optimize != "conditional" and config.cost:
        raise UserError(f"--cost is for --optimize=conditional, got --optimize={optimize}")
    if optimize == "conditional" and config.specialize_mode == EXACT:
        raise UserError("--specialize_mode=exact is for --optimize=specialize, got conditional")
    costs = Costs(config.cost)
    half = half_precision(model)
    if half and optimize == "auto":
        print(f"exported as trained, in {half}: folding would compute in float32")
        optimize = "none"
    if optimize == "none":
        return lambda images: model(images, training=False), {"optimize": "none"}
    if half:
        raise UserError(
            f"--optimize={optimize} computes in float32, and the run was trained in {half}; "
            "give --optimize=none to export it as it was evaluated"
        )
    program = fold(read_program(model))
    if optimize in ("auto", "fold"):
        return program, {"optimize": "fold"}
    if not gate_map(model):
        raise UserError(
            f"--optimize={optimize} is for networks with gates, and the run in '{run.path}' has "
            "none; give --optimize=fold"
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
    calibration = calibrate(model, batches)
    mode = CALIBRATED if optimize == "conditional" else config.specialize_mode
    specialized = SpecializedNetwork(program, calibration, mode)
    network: Callable = specialized
    report = {"calibration_split": config.calibration_split, **specialized.report()}
    if optimize == "conditional":
        network, report["conditional"] = build_conditional(specialized, run, images, costs)
    held_out = evaluation_batches(data, run.preprocessing, max(TIMED_BATCHES))
    report["held_out_split"] = data.test_split
    report.update(agreement(model, network, calibration, held_out))
    return network, {"optimize": optimize, "specialized": report}


def build_conditional(
    specialized: SpecializedNetwork, run: RunDirectory, images: np.ndarray, costs: Costs
) -> tuple[Callable, dict]:
    """Returns the network that computes filters picture by picture where measured time says so.

    Returns:
      The network, and JSON-ready how many gates `gather` channels, multiply the `kernel` or
      `multiply` the value, and the largest `batch` whose pictures are computed one by one.
    """
    program = specialized.short
    places, calibration = gate_places(program), specialized.calibration
    rates = calibration.rates
    if places and program.shapes[places[0].gate.inputs[1]][-1] != len(rates):
        rates = rates[calibration.free]  # Only these are computed.
    print("timing layers and batches ...", flush=True)
    chosen = choose(program, places, rates, costs)
    costs.save()
    alone = ConditionalNetwork(program, chosen, max(TIMED_BATCHES))
    times = compare_times({"alone": alone, "together": program}, run, images)
    faster = [n for n in TIMED_BATCHES if times["alone"][str(n)] <= times["together"][str(n)]]
    network = ConditionalNetwork(program, chosen, max(faster, default=0))
    counts = collections.Counter(chosen.values())
    return network, {**counts, "batch": network.batch, "costs_measured_here": costs.measured}


def half_precision(model: keras.Model) -> str | None:
    """Returns the type that a network computes in, if it is not float32."""
    return next(iter({layer.compute_dtype for layer in model.layers} - {"float32"}), None)


def compare_with_trained(
    model: keras.Model, network: Callable, run: RunDirectory, images: np.ndarray
) -> dict:
    """Compares the network's answers for the warm-up pictures with the trained model's.

    Returns:
      JSON-ready: the number of `pictures`, the `largest_difference` of their probabilities, and
      the number of `gates_changed`.

    Raises:
      UserError: when probabilities of a picture with the same gates differ by more than 1e-4.
    """
    normalized = run.preprocessing.normalize(images)
    traced = tf.function(lambda batch: network(batch), reduce_retracing=True)
    exported, trained = traced(normalized), model(normalized, training=False)
    # A conditional network computes few pictures otherwise than many.
    first = traced(normalized[:1])
    exported = {name: tf.concat([first[name], output[1:]], 0) for name, output in exported.items()}
    probabilities = [
        tf.nn.softmax(tf.cast(each["logits"], tf.float32)).numpy() for each in (exported, trained)
    ]
    difference = np.abs(probabilities[0] - probabilities[1]).max(axis=1)
    # A pre-activation of almost 0 may fall to the other side by rounding.
    changed = np.zeros(len(images), np.int64)
    if "gates" in trained:
        changed = np.sum((exported["gates"] > 0) != (trained["gates"] > 0), axis=1)
    largest = difference[changed == 0].max(initial=0)
    if not largest <= TOLERANCE:
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
    versions: Mapping[str, Callable | pathlib.Path], run: RunDirectory, images: np.ndarray
) -> dict:
    """Returns median milliseconds of a call by batch size, of versions or networks by name.

    All take turns in one process; compare their ratios, the times are this machine's.
    """
    with contextlib.ExitStack() as stack:
        requests = []
        for network in versions.values():
            if isinstance(network, pathlib.Path):
                directory = network
            else:
                directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
                write_saved_model(network, run.preprocessing, run.labels, str(directory))
            for n in TIMED_BATCHES:
                batch = np.resize(images, (n, *images[0].shape))
                requests.append(Request(directory, "serving_default", {"images": batch}))
        answers = iter(run_requests(requests, warm_up=2, rounds=TIMED_ROUNDS))
    return {
        name: {
            str(n): round(1000 * statistics.median(next(answers).seconds), 3) for n in TIMED_BATCHES
        }
        for name in versions
    }


def describe_times(times: dict) -> str:
    """Returns the times of an export and of the plain network as text."""
    pairs = {size: (times["exported"][size], times["plain"][size]) for size in times["plain"]}
    shares = ", ".join(
        f"batch {size} {ours / plain:.2f} ({ours:.2f} of {plain:.2f} ms)"
        for size, (ours, plain) in pairs.items()
    )
    text = f"time, as a share of the plain network's: {shares}"
    if slower := [size for size, (ours, plain) in pairs.items() if ours > plain]:
        text += (
            f"\nits gates do not pay here at batch {', '.join(slower)}: the plain network, without "
            "gates, is faster"
        )
    return text


def describe(report: dict) -> str:
    """Returns the report of a specialised network as text."""
    fallback, lines = "", []
    if report["mode"] == EXACT:
        fallback = (
            f"; {report['batches_in_full']} of {report['batches']} batches of "
            f"{report['batch_size']} take the full network"
        )
    if rest := report.get("conditional"):
        lines.append(
            f"  gathered {rest.get('gather', 0)} layers' channels, picture by picture up to batch "
            f"{rest['batch']}; {rest['costs_measured_here']} costs measured here"
        )
    return "\n".join(
        [
            f"specialized ({report['mode']}) on {report['calibration_images']} images of "
            f"'{report['calibration_split']}':",
            f"  gates    {report['gates']}: {report['gates_settled_on']} settled on, "
            f"{report['gates_settled_off']} settled off, {report['gates_free']} depend on the "
            "image",
            f"  removed  {report['filters_removed']} filters, {report['layers_removed']} layers",
            f"  MACs     {report['macs_before']:,} before, {report['macs_after']:,} after",
            *lines,
            f"  held out {report['held_out_images']} images of '{report['held_out_split']}': "
            f"{report['images_with_a_settled_gate_changed']} change a gate that was settled, "
            f"{report['images_with_another_prediction']} get another prediction{fallback}",
        ]
    )
