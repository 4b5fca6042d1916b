"""Trains a GaterNet from a configuration into a run directory, or resumes one."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from gaternet_tf.data import (
    Augmentation,
    Dataset,
    Preprocessing,
    channel_statistics,
    evaluation_batches,
    hold_out,
    open_dataset,
    training_batches,
    validation_batches,
)
from gaternet_tf.errors import UserError
from gaternet_tf.evaluation import Evaluator, describe, some_labels
from gaternet_tf.models import build_gaternet, gate_map
from gaternet_tf.runs import RunDirectory, prepare_run
from train.callbacks import (
    BestWeights,
    Checkpoints,
    CollapseAlarm,
    EpochLog,
    ReadableNames,
    SparsityWarmUp,
    StopOnNonFinite,
    Validation,
    saved_checkpoints,
)
from train.config import TrainingConfig
from train.distribution import (
    agree_on,
    check_replicas,
    choose_strategy,
    fit_on_workers,
    other_machines_may_fail,
    require_same_checkpoints,
    require_same_settings,
    worker_of,
)
from train.recipe import (
    compile_model,
    make_optimizer,
    set_weight_decay,
    with_targets,
)

SMALL_SET = 200_000
VALIDATION = {True: 0.1, False: 0.01}
"""Share of the training images held out by default, of small sets and of large ones."""
EVALUATION_BATCH = 250
ALARM_IMAGES = 1_000
"""Training images that are looked at for collapsed gates, where none are held out."""
PICTURES = 10


# Where the data lies and how many devices there are may differ when a run is resumed.
NOT_PART_OF_A_RUN = ("data_dir", "download", "strategy")


def train(
    config: TrainingConfig, workdir: str | os.PathLike, previous_checkpoint: bool = False
) -> dict:
    """Trains to the end, from the start or from the last checkpoint in `workdir`.

    `config.deterministic` is for the rest of the process, since TensorFlow cannot take it back:
    random operations that come after, here or elsewhere, must have a seed.

    Args:
      config: the settings.
      workdir: the run directory to write, see `gaternet_tf.runs`.
      previous_checkpoint: resumes from the checkpoint before the last one, which may be damaged.

    Returns:
      What result.json holds: `test_accuracy`, `test_loss`, gate statistics over the test set,
      `parameters`, `epochs`, `selected_epoch`, `seconds`.

    Raises:
      UserError: for settings, data or a directory that do not fit, before any training; and for
        a loss that stops being finite.
    """
    started = time.monotonic()
    config.check()
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = choose_strategy(config.strategy)
    replicas = strategy.num_replicas_in_sync
    check_replicas(replicas, config.batch_size, config.steps_per_execution)
    worker, workers = worker_of(strategy)
    with contextlib.ExitStack() as stack:
        if config.deterministic:
            stack.enter_context(refusing_what_is_not_deterministic())
        if workers > 1:
            stack.enter_context(other_machines_may_fail())
        if worker == 0:
            run = prepare_run(workdir, settings_of_a_run(config))
        else:
            # The first worker writes the run; the others write theirs where nobody looks.
            run = RunDirectory(stack.enter_context(tempfile.TemporaryDirectory()))
        return train_on(strategy, config, run, workdir, previous_checkpoint, started, stack)


def train_on(strategy, config, run, workdir, previous_checkpoint, started, stack) -> dict:
    """`train` once it is clear on which devices and where to write.

    `workdir` holds the checkpoints to resume from; `run` is it, but for workers after the first.
    `stack` holds what is to be given back at the end.
    """
    worker, workers = worker_of(strategy)
    if workers > 1:
        require_same_settings(strategy, dataclasses.asdict(config))
    if config.dataset.startswith("folder:") and not config.image_size:
        raise UserError(
            f"the pictures of '{config.dataset}' have no common size; give --image_size=PIXELS"
        )
    dataset = open_dataset(config.dataset, config.data_dir, config.download, config.skip_unreadable)
    dataset = hold_out(dataset, validation_share(config, dataset), config.seed)
    steps = dataset.training_images // config.batch_size
    if not steps:
        raise UserError(
            f"--batch_size must be at most the {dataset.training_images} training images of "
            f"'{config.dataset}', got {config.batch_size}"
        )
    steps = whole_executions(min(steps, config.steps_per_epoch or steps), config)
    preprocessing = choose_preprocessing(config, dataset)
    stack.enter_context(run.locked())
    record(run, config, dataset, preprocessing, strategy.num_replicas_in_sync)
    resumed_from = RunDirectory(workdir).checkpoints
    if workers > 1:
        found = [pathlib.Path(path).name for path in saved_checkpoints(resumed_from)]
        require_same_checkpoints(strategy, found)

    set_dtype_policy = keras.mixed_precision.set_dtype_policy
    stack.callback(set_dtype_policy, keras.mixed_precision.dtype_policy())
    set_dtype_policy(config.dtype_policy)
    with strategy.scope():
        model = build_and_compile(config, preprocessing, len(dataset.labels), steps, strategy)
    selecting = config.select == "best" and dataset.validation_images > 0
    best = BestWeights(model) if selecting else None
    with strategy.scope():
        agree = agree_on(strategy) if workers > 1 else bool
        checkpoints = Checkpoints(run, model, best, agree)
        first_epoch, first_step = checkpoints.restore(resumed_from, previous_checkpoint)
    run.truncate_metrics(first_epoch)
    announce(config, dataset, model, strategy, run, first_epoch, first_step)

    evaluator = Evaluator(model)
    on_terminal = sys.stdout.isatty() and worker == 0
    callbacks = [
        ReadableNames(),
        StopOnNonFinite(),
        *sparsity_warm_up(config, model, steps),
        watch_gates(dataset, preprocessing, evaluator),
        *([best] if best else []),
        EpochLog(run, config.epochs, not on_terminal and worker == 0, checkpoints),
        *tensorboard_callbacks(run),
        checkpoints,
    ]

    def fit(epochs, done=0):
        """Trains the epochs of a range, without the first `done` steps of the first one."""
        checkpoints.first_step, checkpoints.steps = done, steps
        batches = training_batches(
            dataset,
            preprocessing,
            choose_augmentation(config, dataset),
            config.batch_size,
            epochs,
            config.seed,
            steps,
            done,
            worker,
            workers,
        )
        batches = with_targets(batches, model)
        verbose = 1 if on_terminal else 0
        if workers > 1:
            fit_on_workers(model, strategy, batches, epochs, steps - done, callbacks, verbose)
            return
        model.fit(
            batches,
            epochs=epochs.stop,
            initial_epoch=epochs.start,
            steps_per_epoch=steps - done,
            shuffle=False,
            verbose=verbose,
            callbacks=callbacks,
        )

    with stopping_at_sigterm(checkpoints):
        if first_step:
            fit(range(first_epoch, first_epoch + 1), done=first_step)
            first_epoch += 1
        if first_epoch < config.epochs:
            fit(range(first_epoch, config.epochs))
    selected = config.epochs
    if best:
        selected = best.put_back(model)
        print(f"weights of epoch {selected}, the best on the validation images", flush=True)
    test = evaluator(evaluation_batches(dataset, preprocessing, EVALUATION_BATCH))
    print(describe(test), flush=True)
    result = {
        "test_accuracy": test.pop("accuracy"),
        "test_loss": test.pop("loss"),
        "test_images": test.pop("images"),
        **test,
        "parameters": count_parameters(model),
        "epochs": config.epochs,
        "selected_epoch": selected,
        "seconds": round(time.monotonic() - started, 1),
    }
    try:
        save_model(model, run)
        save_pictures(dataset, preprocessing, run)
        run.write_result(result)
    except OSError as error:
        raise UserError(
            f"the weights and the result must be written to '{run.path}', and could not be "
            f"({error.strerror or error}); make room, then the same command does so without "
            "training again"
        ) from error
    return result


def settings_of_a_run(config: TrainingConfig) -> dict:
    """Those that must be the same when it is resumed."""
    settings = dataclasses.asdict(config)
    return {key: settings[key] for key in settings if key not in NOT_PART_OF_A_RUN}


def record(run, config, dataset, preprocessing, replicas) -> None:
    """Writes config.json of a new run, or sees that one goes on with what it began with.

    Raises:
      UserError: when it does not.
    """
    if not run.config_file.exists():
        run.write_document(dataclasses.asdict(config), dataset.describe(), preprocessing, replicas)
        return
    # Again, now that no other process can write it: one that began at the same moment may have.
    prepare_run(run.path, settings_of_a_run(config))
    require_same_data(run, dataset, preprocessing)
    before = run.document.get("replicas", replicas)
    if before == replicas:
        return
    if config.deterministic:
        raise UserError(
            f"with --deterministic a run is resumed on as many replicas as it began on, {before}, "
            f"and here are {replicas} (--strategy, --logical_cpus, GPUs)"
        )
    print(
        f"the run began on {before} replica(s) and goes on on {replicas}: the gates' noise is each "
        "replica's own, so it will not end where an unbroken run ends",
        flush=True,
    )


def whole_executions(steps: int, config: TrainingConfig) -> int:
    """The steps of an epoch that `--steps_per_execution` divides; Keras would run into the next.

    Raises:
      UserError: when an epoch has fewer steps than one execution.
    """
    at_once = config.steps_per_execution
    if at_once > steps:
        raise UserError(
            f"--steps_per_execution must be at most the {steps} steps of an epoch, got {at_once}"
        )
    if left := steps % at_once:
        print(
            f"{left} of the {steps} steps of an epoch are left out, since "
            f"--steps_per_execution={at_once} does not divide them",
            flush=True,
        )
    return steps - left


def require_same_data(run: RunDirectory, dataset: Dataset, preprocessing: Preprocessing) -> None:
    """Raises `UserError` where a run to resume would go on with other data than it began with."""
    old, new = run.document, {**dataset.describe(), **preprocessing.to_dict()}
    before = {**old["dataset"], **Preprocessing.from_dict(old["preprocessing"]).to_dict()}
    differing = [key for key in new if key in before and before[key] != new[key]]
    if differing:
        changes = ", ".join(f"{key}: {before[key]} then, {new[key]} now" for key in differing)
        raise UserError(
            f"a run is resumed with the data that it began with, and for '{run.path}' it has "
            f"changed ({changes}); bring the old data back or choose another --workdir"
        )


@contextlib.contextmanager
def refusing_what_is_not_deterministic():
    """Turns TensorFlow's word that it has no deterministic form of an operation into ours."""
    try:
        yield
    except tf.errors.UnimplementedError as error:
        raise UserError(
            "--deterministic cannot be kept with these settings on this machine: "
            f"{error.message.splitlines()[0]}; leave it out or change them"
        ) from error


@contextlib.contextmanager
def stopping_at_sigterm(checkpoints: Checkpoints):
    """Lets SIGTERM save and stop the run inside the block, where the process allows it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: checkpoints.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def validation_share(config: TrainingConfig, dataset: Dataset) -> float:
    """`--validation`, or by the size of the set."""
    if config.validation is not None:
        return config.validation
    return VALIDATION[dataset.size(dataset.train_split) <= SMALL_SET]


def choose_preprocessing(config: TrainingConfig, dataset: Dataset) -> Preprocessing:
    """Picture size and normalisation of a run."""
    height, width, channels = dataset.image_shape
    side = config.image_size or dataset.defaults.image_size
    if side:
        height = width = side
    if height is None or width is None:
        raise UserError(
            f"the pictures of '{dataset.name}' have no common size; give --image_size=PIXELS"
        )
    # The dataset's own resize belongs to the dataset's own size.
    resize = config.resize if config.resize is not None else dataset.defaults.resize
    if config.resize is None and config.image_size:
        resize = round(resize * side / (dataset.defaults.image_size or side))
    if 0 < resize < max(height, width):
        raise UserError(
            f"--resize must be 0 or at least the {max(height, width)} pixels that are cut out "
            f"afterwards (--image_size), got {resize}"
        )
    unknown = Preprocessing(
        height, width, channels, mean=(0.0,) * channels, std=(1.0,) * channels, resize=resize
    )
    mean, std = dataset.defaults.statistics or channel_statistics(dataset, unknown)
    return dataclasses.replace(unknown, mean=mean, std=std)


def choose_augmentation(config: TrainingConfig, dataset: Dataset) -> Augmentation:
    """The dataset's own augmentation, with what the settings change of it."""
    asked: dict[str, Any] = {
        "padding": config.crop_padding,
        "flip": config.flip,
        "resized_crop": config.resized_crop,
    }
    return dataclasses.replace(
        dataset.defaults.augmentation,
        **{name: value for name, value in asked.items() if value is not None},
    )


def build_and_compile(config, preprocessing, num_classes, steps_per_epoch, strategy):
    """Builds the model with its losses, metrics, weight decay and optimizer."""
    model = build_gaternet(
        backbone=config.backbone,
        gater=config.gater,
        input_shape=preprocessing.shape,
        num_classes=num_classes,
        bottleneck=config.bottleneck,
        gated_convs=config.gated_convs,
        head_batch_norm=config.head_batch_norm,
        seed=config.seed,
        synchronized_batch_norm=(
            config.synchronized_batch_norm and strategy.num_replicas_in_sync > 1
        ),
        width=config.width,
        attention=config.attention,
        gate_bias=config.gate_bias,
    )
    set_weight_decay(model, config.weight_decay)
    compile_model(
        model,
        make_optimizer(config, steps_per_epoch),
        config.sparsity,
        config.label_smoothing,
        config.jit_compile,
        config.steps_per_execution,
    )
    return model


def count_parameters(model: keras.Model) -> int:
    """Number of trainable parameters."""
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def announce(config, dataset, model, strategy, run, first_epoch, first_step):
    """Says what is about to be trained, on what, and where it goes."""
    gates = len(gate_map(model))
    replicas = strategy.num_replicas_in_sync
    remarks = "".join(f"{remark}\n" for remark in dataset.remarks)
    print(
        f"{config.backbone}, gater {config.gater}: {count_parameters(model):,} parameters, "
        f"{gates} gates\n"
        f"dataset {dataset.name} {dataset.version}: {dataset.training_images} images of "
        f"'{dataset.train_split}' train, {dataset.validation_images} validate, "
        f"{dataset.size(dataset.test_split)} of '{dataset.test_split}' test "
        f"({dataset.data_dir}); classes: {some_labels(dataset.labels)}\n"
        f"{remarks}{config.epochs} epochs, batch {config.batch_size} on {replicas} replica"
        f"{'s' if replicas > 1 else ''}, into {run.path}",
        flush=True,
    )
    if first_epoch or first_step:
        steps = f" and {first_step} steps" if first_step else ""
        print(f"resuming after epoch {first_epoch}{steps}", flush=True)


def sparsity_warm_up(config, model, steps_per_epoch) -> list:
    """What raises lambda over the first epochs, if that is asked for."""
    steps = round(config.sparsity_warmup_epochs * steps_per_epoch)
    if not steps or "gates" not in model.output_names:
        return []
    return [SparsityWarmUp(model.loss["gates"], steps)]


def watch_gates(dataset, preprocessing, evaluator) -> keras.callbacks.Callback:
    """What evaluates the held-out images after every epoch; without any, sees to the gates only."""
    if dataset.validation_images:
        held_out = validation_batches(dataset, preprocessing, EVALUATION_BATCH)
        return Validation(evaluator, held_out)
    batches = evaluation_batches(dataset, preprocessing, EVALUATION_BATCH, dataset.train_split)
    return CollapseAlarm(evaluator, batches.take(ALARM_IMAGES // EVALUATION_BATCH))


def tensorboard_callbacks(run: RunDirectory) -> list:
    """Logs for TensorBoard."""
    return [keras.callbacks.TensorBoard(run.tensorboard, write_graph=False)]


def save_model(model: keras.Model, run: RunDirectory) -> None:
    """Writes model.keras whole or not at all; the optimizer stays with the checkpoints."""
    beside = run.path / ".model.keras"
    model.save(beside, include_optimizer=False)
    os.replace(beside, run.model_file)


def save_pictures(dataset: Dataset, preprocessing: Preprocessing, run: RunDirectory) -> None:
    """Writes the first test pictures as PNG files, pictures/CLASS/NUMBER.png."""
    examples = dataset.examples(dataset.test_split).take(PICTURES)
    for number, (image, label) in enumerate(examples):
        directory = run.pictures / dataset.labels[int(label)].replace("/", "_")
        directory.mkdir(parents=True, exist_ok=True)
        png = tf.io.encode_png(preprocessing.fit(image)).numpy()
        (directory / f"{number:04d}.png").write_bytes(png)
