"""Exports a finished run as a version of a servable model."""

import dataclasses
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from export.frozen import FrozenNetwork
from export.manifest import is_export, write_manifest
from export.publish import choose_version, published, remove_old_versions
from export.served import Request, Served
from export.signatures import write_saved_model
from export.specializing import MODES, SpecializedNetwork, agreement, calibrate
from export.verification import problems_of
from export.warmup import FILE_NAME, write_warmup
from gaternet_tf.data import evaluation_batches
from gaternet_tf.errors import UserError
from gaternet_tf.evaluation import dataset_with_classes
from gaternet_tf.models import gate_map
from gaternet_tf.runs import RunDirectory, open_run

OPTIMIZE = ("auto", "none", "fold", "specialize")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
BATCH = 250
TIMED_BATCHES = (1, 32)
TIMED_ROUNDS = 15
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """All settings of an export; `export.main`'s flags have the same names and say what each is."""

    workdir: str | os.PathLike
    output_dir: str | os.PathLike
    version: int | None = None
    optimize: str = "auto"
    specialize_mode: str = "exact"
    calibration_split: str = "train"
    data_dir: str | None = None
    warmup_images: str | None = None
    keep: int | None = None

    def check(self) -> None:
        """Raises `UserError` for a setting that cannot work."""
        choices = {"optimize": OPTIMIZE, "specialize_mode": MODES}
        for name, legal in choices.items():
            if (value := getattr(self, name)) not in legal:
                raise UserError(f"--{name} must be one of {', '.join(legal)}, got '{value}'")
        if self.keep is not None and self.keep < 1:
            raise UserError(f"--keep must be 1 or more, got {self.keep}")


def export_run(config: ExportConfig) -> pathlib.Path:
    """Exports the run in `config.workdir` to `config.output_dir/VERSION`, verified.

    Returns:
      The version's directory.

    Raises:
      UserError: for a run that cannot be exported, a place where it cannot go, or an export that
        does not pass `export.verification`.
    """
    config.check()
    run = open_run(config.workdir)
    # Made absolute without following links: the last part is the model's name.
    base = pathlib.Path(os.path.abspath(config.output_dir))
    choose_version(base, config.version)
    pictures = warmup_pictures(run, config.warmup_images)
    model = run.load_model()
    check_finite(model)
    network, how = optimized(model, run, config)
    how["compared"] = compare_with_trained(model, network, run, pictures, how["optimize"])
    try:
        with published(base, config.version) as staged:
            directory = staged.directory
            write_saved_model(network, run.preprocessing, run.labels, str(directory))
            extra = directory / "assets.extra"
            extra.mkdir()
            write_warmup(extra / FILE_NAME, pictures, run.preprocessing, base.name)
            if report := how.get("specialized"):
                report["milliseconds"] = compare_times(directory, model, run, pictures)
                print(describe(report), flush=True)
            write_manifest(directory, run, model, base.name, how)
            if problems := problems_of(directory):
                raise UserError(
                    "the export does not pass its own verification, and nothing was published:\n  "
                    + "\n  ".join(problems)
                )
    except (tf.errors.OpError, OSError) as error:
        raise UserError(
            f"the export must be written to '{base}', and through '{tempfile.gettempdir()}', and "
            f"could not be ({str(error).splitlines()[0]}); make room, or choose another "
            "--output_dir or environment variable TMPDIR"
        ) from error
    if config.keep is not None:
        try:
            removed = remove_old_versions(base, staged.version, config.keep, is_export)
        except OSError as error:
            # The version is out: what follows must not look as if it were not.
            print(f"old versions of {config.output_dir} could not be removed: {error}", flush=True)
        else:
            if removed:
                print(f"removed versions {', '.join(map(str, removed))} of {config.output_dir}")
    return pathlib.Path(config.output_dir) / str(staged.version)


def optimized(model, run: RunDirectory, config: ExportConfig) -> tuple[Callable, dict]:
    """The network to export, and how it was made, for the manifest."""
    choice = config.optimize
    if choice == "auto":
        dtypes = {layer.compute_dtype for layer in model.layers} - {"float32"}
        choice = "none" if dtypes else "fold"
        if dtypes:
            print(f"exported as trained, in {dtypes.pop()}: folding would compute in float32")
    how: dict = {"optimize": choice}
    if choice == "none":
        return lambda images: model(images, training=False), how
    if choice == "fold":
        return shared(FrozenNetwork(model), run), how
    if not gate_map(model):
        raise UserError(
            "--optimize=specialize leaves out gates that never change, and the run in "
            f"'{run.path}' has none; give --optimize=fold"
        )
    require_float32(model)
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
    return shared(network, run), {**how, "specialized": report}


def compare_with_trained(
    model, network: Callable, run: RunDirectory, pictures: list[bytes], optimize: str
) -> dict:
    """How far the network's answers for the warm-up pictures are from the trained model's.

    Raises:
      UserError: when probabilities of a picture with the same gates differ by more than 1e-4,
        unless gates were settled.
    """
    decoded = [run.preprocessing.decode(tf.constant(picture)) for picture in pictures]
    images = run.preprocessing.normalize(tf.stack(decoded))
    ours, trained = network(images), model(images, training=False)
    probabilities = [
        tf.nn.softmax(tf.cast(each["logits"], tf.float32)).numpy() for each in (ours, trained)
    ]
    difference = np.abs(probabilities[0] - probabilities[1]).max(axis=1)
    # A pre-activation of almost 0 may fall to the other side by rounding.
    changed = np.zeros(len(images), np.int64)
    if "gates" in trained:
        changed = np.sum((ours["gates"] > 0) != (trained["gates"] > 0), axis=1)
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


def require_float32(model) -> None:
    """Raises `UserError` for a model that computes in another precision."""
    if others := {layer.compute_dtype for layer in model.layers} - {"float32"}:
        raise UserError(
            "--optimize=specialize computes in float32, and the run was trained in "
            f"{others.pop()}; export it with --optimize=none"
        )


def shared(network: Callable, run: RunDirectory) -> tf.function:
    """A function that all signatures call, so that its constants are stored once."""
    shape = (None, *run.preprocessing.shape)
    return tf.function(network, input_signature=[tf.TensorSpec(shape, tf.float32)])


def compare_times(directory, model, run: RunDirectory, pictures: list[bytes]) -> dict:
    """Median milliseconds of a call, specialized and folded, by batch size, as a server runs it.

    Both take turns in one process; compare their ratio, the times are this machine's.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folded = pathlib.Path(scratch) / "folded"
        network = shared(FrozenNetwork(model), run)
        write_saved_model(network, run.preprocessing, run.labels, str(folded))
        served = Served({"specialized": directory, "folded": folded})
        requests = []
        for size in TIMED_BATCHES:
            images = [run.preprocessing.decode(tf.constant(picture)) for picture in pictures]
            batch = np.resize(np.stack(images), (size, *run.preprocessing.shape))
            for name in served.directories:
                requests.append(Request("serving_default", {"images": batch}, name))
        try:
            answers = served.run(requests, warm_up=3, rounds=TIMED_ROUNDS)
        except RuntimeError as error:
            raise UserError(f"the process that times the export failed: {error}") from error
    if errors := [answer.error for answer in answers if answer.error]:
        raise UserError(f"the specialized export cannot be run: {errors[0]}")
    return {
        name: {
            str(size): round(1000 * statistics.median(answer.seconds), 3)
            for size, answer in zip(
                TIMED_BATCHES, answers[place :: len(served.directories)], strict=True
            )
        }
        for place, name in enumerate(served.directories)
    }


def describe(report: dict) -> str:
    """A specialisation's report for a person."""
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


def warmup_pictures(run: RunDirectory, given: str | None = None) -> list[bytes]:
    """Encoded pictures to warm up with: those given, or the run's own.

    Args:
      run: a finished run, which keeps a few test pictures; a converted run has none, and gets a
        grey one, with a line that says so.
      given: a directory of pictures, or one picture.

    Raises:
      UserError: where there is no picture, or one that cannot be decoded.
    """
    if given is not None:
        place = pathlib.Path(given)
        paths = sorted(place.rglob("*")) if place.is_dir() else [place]
        paths = [path for path in paths if path.suffix.lower() in PICTURES and path.is_file()]
        if not paths:
            raise UserError(
                f"--warmup_images must be a directory with pictures ({', '.join(PICTURES)}) or "
                f"one, and '{given}' has none"
            )
        return read_pictures(paths[:BATCH], run, "--warmup_images must hold pictures", "")
    if paths := sorted(run.pictures.glob("*/*.png")):
        return read_pictures(
            paths,
            run,
            f"'{run.pictures}' must hold the pictures that training wrote there",
            "; bring it back from a copy, or give other pictures with --warmup_images",
        )
    if "converted_from" not in run.result:
        raise UserError(
            f"a version is warmed up with the run's pictures, and there are none in "
            f"'{run.pictures}'; bring them back from a copy, or give others with --warmup_images"
        )
    print(
        "warmed up with a grey picture: a converted run has none; --warmup_images gives real ones"
    )
    grey = tf.fill(run.preprocessing.shape, tf.constant(128, tf.uint8))
    return [tf.io.encode_png(grey).numpy()]


def read_pictures(
    paths: Sequence[pathlib.Path], run: RunDirectory, wanted: str, advice: str
) -> list[bytes]:
    """Encoded pictures from files.

    Raises:
      UserError: naming the first that cannot be decoded, between what is `wanted` and an `advice`.
    """
    pictures = []
    for path in paths:
        pictures.append(path.read_bytes())
        try:
            run.preprocessing.decode(tf.constant(pictures[-1]))
        except tf.errors.OpError as error:
            raise UserError(
                f"{wanted}, and '{path}' cannot be decoded ({str(error).splitlines()[0]}){advice}"
            ) from error
    return pictures


def check_finite(model) -> None:
    """Raises `UserError` naming the first weight that is not finite: such a run has diverged."""
    for variable in model.variables:
        value = np.asarray(variable)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UserError(
                f"the weights of an exported run must be finite, and {variable.path} is not; "
                "train again with a lower --learning_rate"
            )
