"""Trains a GaterNet from a configuration into a run directory, or resumes one."""

import contextlib
import dataclasses
import os
import signal
import sys
import tempfile
import threading
import time

import keras
import tensorflow as tf

from gaternet_tf.data import (
    Dataset,
    Preprocessing,
    evaluation_batches,
    training_batches,
    validation_batches,
)
from gaternet_tf.errors import UserError
from gaternet_tf.evaluation import Evaluator, describe, some_labels
from gaternet_tf.models import NO_GATER, gate_map
from gaternet_tf.runs import RunDirectory, prepare_run
from train.callbacks import (
    BestWeights,
    Checkpoints,
    EpochLog,
    ReadableNames,
    SparsityWarmUp,
    StopOnNonFinite,
    Validation,
    saved_checkpoints,
)
from train.config import TrainingConfig
from train.distribution import (
    check_replicas,
    choose_strategy,
    fit_on_workers,
    require_same_start,
    reraise_lost_workers,
    worker_of,
)
from train.inputs import (
    choose_augmentation,
    choose_preprocessing,
    open_training_data,
    steps_of_epoch,
)
from train.recipe import build_and_compile, count_parameters, with_targets

EVALUATION_BATCH = 250
COLLAPSE_IMAGES = 1_000
"""Training images that show whether gates have collapsed, where none are held out."""
PICTURES = 10
"""Test pictures that a run keeps."""
NOT_PART_OF_A_RUN = ("data_dir", "download", "strategy")
"""Settings that may differ when a run is resumed: where the data lies, and the devices."""


@dataclasses.dataclass
class Training:
    """What `prepare` opens and builds, for `fit` and `finish`."""

    config: TrainingConfig
    run: RunDirectory
    strategy: tf.distribute.Strategy
    worker: int
    workers: int
    dataset: Dataset
    preprocessing: Preprocessing
    steps: int
    model: keras.Model
    best: BestWeights | None
    checkpoints: Checkpoints
    evaluator: Evaluator


def train(
    config: TrainingConfig, workdir: str | os.PathLike, previous_checkpoint: bool = False
) -> dict:
    """Trains to the end, from the start or from the last checkpoint in `workdir`.

    `config.deterministic` holds for the rest of the process, since TensorFlow cannot take it back:
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
    with contextlib.ExitStack() as stack:
        training = prepare(config, workdir, stack)
        first_epoch, first_step = resume(training, workdir, previous_checkpoint)
        fit(training, first_epoch, first_step)
        return finish(training, started)


def prepare(
    config: TrainingConfig, workdir: str | os.PathLike, stack: contextlib.ExitStack
) -> Training:
    """Checks directory and data, and builds the model; `stack` gives back what must be given back.

    Nothing is written unless all fits.
    """
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
        stack.enter_context(reraise_missing_determinism())
    strategy = choose_strategy(config.strategy)
    replicas = strategy.num_replicas_in_sync
    check_replicas(replicas, config.batch_size, config.steps_per_execution)
    worker, workers = worker_of(strategy)
    if workers > 1:
        stack.enter_context(reraise_lost_workers())
    if worker == 0:
        run = prepare_run(workdir, settings_of_a_run(config))
    else:
        # Every worker must save, since that adds up variables of all, but only the first one's
        # files are used.
        run = RunDirectory(stack.enter_context(tempfile.TemporaryDirectory()))

    dataset = open_training_data(config)
    steps = steps_of_epoch(config, dataset)
    preprocessing = choose_preprocessing(config, dataset)
    stack.enter_context(run.locked())
    write_or_compare_document(run, config, dataset, preprocessing, replicas)

    set_dtype_policy = keras.mixed_precision.set_dtype_policy
    stack.callback(set_dtype_policy, keras.mixed_precision.dtype_policy())
    set_dtype_policy(config.dtype_policy)
    with strategy.scope():
        model = build_and_compile(config, preprocessing.shape, len(dataset.labels), steps, replicas)
    selects = config.select == "best" and dataset.validation_images > 0
    best = BestWeights(model) if selects else None
    with strategy.scope():
        checkpoints = Checkpoints(run, model, best, steps)
    return Training(
        config,
        run,
        strategy,
        worker,
        workers,
        dataset,
        preprocessing,
        steps,
        model,
        best,
        checkpoints,
        Evaluator(model),
    )


def settings_of_a_run(config: TrainingConfig) -> dict:
    """Returns the settings that must be the same when a run is resumed."""
    settings = dataclasses.asdict(config)
    return {key: settings[key] for key in settings if key not in NOT_PART_OF_A_RUN}


def write_or_compare_document(run, config, dataset, preprocessing, replicas) -> None:
    """Writes config.json of a new run, or compares that of a run to resume.

    Raises:
      UserError: when the run began with other data.
    """
    if not run.config_file.exists():
        run.write_document(dataclasses.asdict(config), dataset.describe(), preprocessing, replicas)
        return
    # Another process may have trained here since this one looked.
    prepare_run(run.path, settings_of_a_run(config))
    document = run.document
    before = {**document["dataset"], **Preprocessing.from_dict(document["preprocessing"]).to_dict()}
    now = {**dataset.describe(), **preprocessing.to_dict()}
    differing = [key for key in now if key in before and before[key] != now[key]]
    if differing:
        changes = ", ".join(f"{key}: {before[key]} then, {now[key]} now" for key in differing)
        raise UserError(
            f"a run is resumed with the data that it began with, and for '{run.path}' it has "
            f"changed ({changes}); bring the old data back or choose another --workdir"
        )
    if document["replicas"] != replicas:
        print(
            f"the run began on {document['replicas']} replica(s) and is resumed on {replicas}: "
            "every replica draws its own noise for the gates, so it will not end where an unbroken "
            "run ends",
            flush=True,
        )


def resume(training: Training, workdir, previous_checkpoint: bool) -> tuple[int, int]:
    """Restores the last checkpoint in `workdir`, if any, and says what is about to be trained.

    Returns:
      (epochs, steps): how many whole epochs are done, and how many steps of the next one.
    """
    config, run, dataset = training.config, training.run, training.dataset
    directory = RunDirectory(workdir).checkpoints
    paths = saved_checkpoints(directory)
    if training.workers > 1:
        latest = os.path.basename(paths[-1]) if paths else ""
        require_same_start(training.strategy, settings_of_a_run(config), latest)
    # One record without a checkpoint is that of a run which was killed between the two.
    if not paths and len(run.metrics()) > 1:
        raise UserError(
            f"a run to resume must have its checkpoints, and '{directory}' has none; bring them "
            "back from a copy, or start anew in another --workdir"
        )
    with training.strategy.scope():
        epochs, steps = training.checkpoints.restore(directory, previous_checkpoint)
    run.truncate_metrics(epochs)

    replicas = training.strategy.num_replicas_in_sync
    remarks = "".join(f"{remark}\n" for remark in dataset.remarks)
    print(
        f"{config.backbone}, gater {config.gater}: {count_parameters(training.model):,} "
        f"parameters, {len(gate_map(training.model))} gates\n"
        f"dataset {dataset.name} {dataset.version}: {dataset.training_images} images of "
        f"'{dataset.train_split}' train, {dataset.validation_images} validate, "
        f"{dataset.size(dataset.test_split)} of '{dataset.test_split}' test "
        f"({dataset.data_dir}); classes: {some_labels(dataset.labels)}\n"
        f"{remarks}{config.epochs} epochs, batch {config.batch_size} on {replicas} replica"
        f"{'s' if replicas > 1 else ''}, into {run.path}",
        flush=True,
    )
    if epochs or steps:
        print(f"resuming after epoch {epochs}{f' and {steps} steps' if steps else ''}", flush=True)
    return epochs, steps


def fit(training: Training, first_epoch: int, first_step: int) -> None:
    """Trains the epochs that are left, the first of them without its first `first_step` steps."""
    config, checkpoints = training.config, training.checkpoints
    on_terminal = sys.stdout.isatty() and training.worker == 0
    print_lines = not on_terminal and training.worker == 0
    warm_up = (
        round(config.sparsity_warmup_epochs * training.steps) if config.gater != NO_GATER else 0
    )
    callbacks = [
        ReadableNames(),
        StopOnNonFinite(),
        *([SparsityWarmUp(training.model.loss["gates"], warm_up)] if warm_up else []),
        validation(training),
        *([training.best] if training.best else []),
        EpochLog(training.run, config.epochs, print_lines, checkpoints),
        keras.callbacks.TensorBoard(training.run.tensorboard, write_graph=False),
        checkpoints,
    ]

    def fit_epochs(epochs, done=0):
        checkpoints.first_step = done
        batches = training_batches(
            training.dataset,
            training.preprocessing,
            choose_augmentation(config, training.dataset),
            config.batch_size,
            epochs,
            config.seed,
            training.steps,
            done,
            training.worker,
            training.workers,
        )
        batches = with_targets(batches, training.model)
        steps = training.steps - done
        verbose = 1 if on_terminal else 0
        if training.workers > 1:
            fit_on_workers(
                training.model, training.strategy, batches, epochs, steps, callbacks, verbose
            )
            return
        training.model.fit(
            batches,
            epochs=epochs.stop,
            initial_epoch=epochs.start,
            steps_per_epoch=steps,
            shuffle=False,
            verbose=verbose,
            callbacks=callbacks,
        )

    with stop_at_sigterm(training):
        if first_step:
            fit_epochs(range(first_epoch, first_epoch + 1), done=first_step)
            first_epoch += 1
        if first_epoch < config.epochs:
            fit_epochs(range(first_epoch, config.epochs))


def validation(training: Training) -> Validation:
    """Returns the callback that evaluates held-out images, or a few training images without any."""
    dataset, preprocessing = training.dataset, training.preprocessing
    if dataset.validation_images:
        batches = validation_batches(dataset, preprocessing, EVALUATION_BATCH)
        return Validation(training.evaluator, batches)
    batches = evaluation_batches(dataset, preprocessing, EVALUATION_BATCH, dataset.train_split)
    batches = batches.take(COLLAPSE_IMAGES // EVALUATION_BATCH)
    return Validation(training.evaluator, batches, held_out=False)


@contextlib.contextmanager
def stop_at_sigterm(training: Training):
    """Lets SIGTERM save and stop the run inside the block, on one machine and the main thread."""
    if training.workers > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: training.checkpoints.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def reraise_missing_determinism():
    """Re-raises TensorFlow's missing-determinism error as a `UserError`."""
    try:
        yield
    except tf.errors.UnimplementedError as error:
        raise UserError(
            "--deterministic is not possible with these settings on this machine: "
            f"{error.message.splitlines()[0]}; leave it out or change them"
        ) from error


def finish(training: Training, started: float) -> dict:
    """Selects the weights, evaluates the test split once, and writes model and result."""
    run, model, dataset = training.run, training.model, training.dataset
    selected = training.config.epochs
    if training.best:
        selected = training.best.restore(model)
        print(f"weights of epoch {selected}, the best on the validation images", flush=True)
    batches = evaluation_batches(dataset, training.preprocessing, EVALUATION_BATCH)
    test = training.evaluator(batches)
    print(describe(test), flush=True)
    result = {
        "test_accuracy": test.pop("accuracy"),
        "test_loss": test.pop("loss"),
        "test_images": test.pop("images"),
        **test,
        "parameters": count_parameters(model),
        "epochs": training.config.epochs,
        "selected_epoch": selected,
        "seconds": round(time.monotonic() - started, 1),
    }
    run.save_model(model)
    save_pictures(dataset, training.preprocessing, run)
    run.write_result(result)
    return result


def save_pictures(dataset: Dataset, preprocessing: Preprocessing, run: RunDirectory) -> None:
    """Writes the first test pictures as PNG files, pictures/CLASS/NUMBER.png."""
    examples = dataset.examples(dataset.test_split).take(PICTURES)
    for number, (image, label) in enumerate(examples):
        directory = run.pictures / dataset.labels[int(label)].replace("/", "_")
        directory.mkdir(parents=True, exist_ok=True)
        png = tf.io.encode_png(preprocessing.fit(image)).numpy()
        (directory / f"{number:04d}.png").write_bytes(png)
