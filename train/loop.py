"""Trains a GaterNet from a configuration into a run directory, or resumes one."""

import contextlib
import dataclasses
import os
import signal
import tempfile
import threading
import time

import keras
import tensorflow as tf

from gaternet_tf.data import (
    Preprocessing,
    evaluation_batches,
    training_batches,
    validation_batches,
)
from gaternet_tf.errors import UserError
from gaternet_tf.evaluation import Evaluator, describe, some_labels
from gaternet_tf.models import NO_GATER, gate_map
from gaternet_tf.runs import RunDirectory, open_run, prepare_run
from train.callbacks import (
    BestWeights,
    Checkpoints,
    EpochLog,
    ProgressBar,
    ReadableNames,
    SparsityWarmUp,
    StopOnNonFinite,
    Validation,
    saved_checkpoints,
)
from train.config import ENVIRONMENT, TrainingConfig
from train.distribution import (
    check_replicas,
    choose_strategy,
    fit_on_workers,
    require_same_start,
    worker_of,
)
from train.inputs import (
    choose_augmentation,
    choose_preprocessing,
    open_training_data,
    steps_of_epoch,
)
from train.recipe import build_and_compile, count_parameters, freeze_backbone, with_targets

EVALUATION_BATCH = 250
COLLAPSE_IMAGES = 1_000
"""Training images that show whether gates have collapsed, where none are held out."""
FEW_STEPS = 300
"""Below so many steps in all, a run says that it is short."""
PICTURES = 10
"""Test pictures that a run keeps."""


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
        training = Training(config, workdir, stack)
        first_epoch, first_step = training.resume(previous_checkpoint)
        training.fit(first_epoch, first_step)
        return training.finish(started)


class Training:
    """A run that is being trained. Opens its data and builds its model; writes only if all fits.

    Args:
      config: the settings.
      workdir: the run directory.
      stack: undoes at the end of the training what must be undone.
    """

    def __init__(
        self, config: TrainingConfig, workdir: str | os.PathLike, stack: contextlib.ExitStack
    ):
        self.config = config
        if config.deterministic:
            tf.config.experimental.enable_op_determinism()
        self.strategy = choose_strategy(config.strategy)
        self.replicas = self.strategy.num_replicas_in_sync
        check_replicas(
            self.replicas, config.batch_size, config.steps_per_execution, config.jit_compile
        )
        self.worker, self.workers = worker_of(self.strategy)
        self.shared_checkpoints = RunDirectory(workdir).checkpoints
        self.settings = dataclasses.asdict(config)
        lasting = {key: self.settings[key] for key in self.settings if key not in ENVIRONMENT}
        defaults = dataclasses.asdict(TrainingConfig())
        if self.workers > 1:
            latest = [os.path.basename(path) for path in saved_checkpoints(self.shared_checkpoints)]
            require_same_start(self.strategy, [lasting, latest[-1:]])
        if self.worker == 0:
            self.run = prepare_run(workdir, lasting, defaults)
        else:
            # Every worker must save, since that adds up variables of all, but only the first one's
            # files are used.
            self.run = RunDirectory(stack.enter_context(tempfile.TemporaryDirectory()))

        self.dataset = open_training_data(config)
        self.steps = steps_of_epoch(config, self.dataset)
        self.preprocessing = choose_preprocessing(config, self.dataset)
        set_dtype_policy = keras.mixed_precision.set_dtype_policy
        stack.callback(set_dtype_policy, keras.mixed_precision.dtype_policy())
        set_dtype_policy(config.dtype_policy)
        shape, classes = self.preprocessing.shape, len(self.dataset.labels)
        with self.strategy.scope():
            self.model = build_and_compile(config, shape, classes, self.steps, self.replicas)
        if config.init_from and not self.run.config_file.exists():
            self._take_weights(config.init_from)
        stack.enter_context(self.run.locked())
        if self.run.config_file.exists():
            # Another process may have trained here before this one locked the run.
            prepare_run(workdir, lasting, defaults)
            self._compare_document()
        else:
            self.run.write_document(
                self.settings, self.dataset.describe(), self.preprocessing, self.replicas
            )
            with tf.summary.create_file_writer(str(self.run.tensorboard / "train")).as_default():
                rows = [f"| {name} | {value} |" for name, value in self.settings.items()]
                tf.summary.text("configuration", "\n".join(["| | |", "|---|---|", *rows]), step=0)
        selects = config.select == "best" and self.dataset.validation_images > 0
        self.best = BestWeights(self.model) if selects else None
        with self.strategy.scope():
            self.checkpoints = Checkpoints(self.run, self.model, self.best, self.steps)
        self.evaluator = Evaluator(self.model)
        self.trainable = {layer.name: layer.trainable for layer in self.model.layers}
        self.bar = ProgressBar(config.epochs)
        stack.callback(self.bar.close)

    def _describe_pictures(self):
        pictures = self.preprocessing
        mean, std = (", ".join(f"{v:.3g}" for v in part) for part in (pictures.mean, pictures.std))
        size = " x ".join(map(str, pictures.shape))
        return f"pictures {size}, from 0 to 1 minus {mean}, divided by {std}"

    def _take_weights(self, workdir):
        """Starts from the weights of a finished run.

        Raises:
          UserError: when it is none, or its network is another.
        """
        other = open_run(workdir, "--init_from").load_model()
        ours, theirs = (
            {weight.path: tuple(weight.shape) for weight in model.weights}
            for model in (self.model, other)
        )
        if differing := [path for path in ours | theirs if ours.get(path) != theirs.get(path)]:
            first = differing[0]
            raise UserError(
                "--init_from must be a run of the same network and classes, and in "
                f"'{workdir}' {first} is {theirs.get(first)}, here {ours.get(first)}; give the "
                "settings of the network that the run's config.json has"
            )
        self.model.set_weights(other.get_weights())

    def _compare_document(self):
        """Raises `UserError` if the run to resume began with other data."""
        document = self.run.document
        before = {
            **document["dataset"],
            **Preprocessing.from_dict(document["preprocessing"]).to_dict(),
        }
        now = {**self.dataset.describe(), **self.preprocessing.to_dict()}
        if differing := [key for key in now if key in before and before[key] != now[key]]:
            changes = ", ".join(f"{key}: {before[key]} then, {now[key]} now" for key in differing)
            raise UserError(
                f"a run is resumed with the data that it began with, and for '{self.run.path}' it "
                f"has changed ({changes}); bring the old data back or choose another --workdir"
            )
        if document["replicas"] != self.replicas:
            print(
                f"the run began on {document['replicas']} replica(s) and is resumed on "
                f"{self.replicas}: every replica draws its own noise for the gates, so it will not "
                "end where an unbroken run ends",
                flush=True,
            )

    def resume(self, previous_checkpoint: bool) -> tuple[int, int]:
        """Restores the last checkpoint, if any, and prints what is about to be trained.

        Returns:
          (epochs, steps): how many whole epochs are done, and how many steps of the next one.
        """
        config, dataset, directory = self.config, self.dataset, self.shared_checkpoints
        # One record without a checkpoint is that of a run which was killed between the two.
        if not saved_checkpoints(directory) and len(self.run.metrics()) > 1:
            raise UserError(
                f"a run to resume must have its checkpoints, and '{directory}' has none; bring "
                "them back from a copy, or start anew in another --workdir"
            )
        with self.strategy.scope():
            epochs, steps = self.checkpoints.restore(directory, previous_checkpoint)
        self.run.truncate_metrics(epochs)
        print(
            f"{config.backbone}, gater {config.gater_network}: {count_parameters(self.model):,} "
            f"parameters, {len(gate_map(self.model))} gates\n"
            f"dataset {dataset.name} {dataset.version}: {dataset.training_images} images of "
            f"'{dataset.train_split}' train, {dataset.validation_images} validate, "
            f"{dataset.size(dataset.test_split)} of '{dataset.test_split}' test "
            f"({dataset.builder.data_dir}); classes: {some_labels(dataset.labels)}\n"
            f"{self._describe_pictures()}\n"
            f"{config.epochs} epochs of {self.steps} steps, batch {config.batch_size} on "
            f"{self.replicas} replica{'s' if self.replicas > 1 else ''}, into {self.run.path}",
            flush=True,
        )
        if epochs or steps:
            after = f"step {steps} of epoch {epochs + 1}" if steps else f"epoch {epochs}"
            print(f"resuming after {after}", flush=True)
        if (total := config.epochs * self.steps) < FEW_STEPS and not config.init_from:
            print(
                f"note: networks learn little in {total} steps; raise --epochs, or lower "
                "--batch_size for more steps in an epoch",
                flush=True,
            )
        return epochs, steps

    def fit(self, first_epoch: int, first_step: int) -> None:
        """Trains the epochs that are left, the first of them without its first `first_step` steps.

        SIGTERM and Ctrl-C save and stop the run, on one machine and in the main thread; a second
        one ends it at once.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        caught = (signal.SIGTERM, signal.SIGINT) if self.workers == 1 and in_main_thread else ()
        before = {number: signal.getsignal(number) for number in caught}

        def stop(number, _):
            self.checkpoints.stop()
            signal.signal(number, before[number])

        for number in caught:
            signal.signal(number, stop)
        try:
            if first_step:
                self._fit_epochs(range(first_epoch, first_epoch + 1), first_step)
                first_epoch += 1
            frozen = self.config.freeze_backbone_epochs
            for begin, end in ((0, frozen), (frozen, self.config.epochs)):
                epochs = range(max(begin, first_epoch), min(end, self.config.epochs))
                if epochs:
                    self._fit_epochs(epochs)
        finally:
            for number in caught:
                signal.signal(number, before[number])

    def _fit_epochs(self, epochs, first_step=0):
        if self.config.freeze_backbone_epochs:
            frozen = epochs.start < self.config.freeze_backbone_epochs
            freeze_backbone(self.model, self.trainable, frozen)
        batches = training_batches(
            self.dataset,
            self.preprocessing,
            choose_augmentation(self.config, self.dataset),
            self.config.batch_size,
            epochs,
            self.config.seed,
            self.steps,
            first_step,
            self.worker,
            self.workers,
        )
        batches = with_targets(batches, self.model)
        steps = self.steps - first_step
        callbacks = self._callbacks(first_step)
        if self.workers > 1:
            fit_on_workers(self.model, self.strategy, batches, epochs, steps, callbacks)
            return
        self.model.fit(
            batches,
            epochs=epochs.stop,
            initial_epoch=epochs.start,
            steps_per_epoch=steps,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        )

    def _callbacks(self, first_step):
        """Returns the callbacks in their order: each sees what those before it add to the logs."""
        config = self.config
        self.checkpoints.first_step = first_step
        warm_up = round(config.sparsity_warmup_epochs * self.steps)
        return [
            ReadableNames(),
            StopOnNonFinite(),
            *([self.bar] if self.worker == 0 else []),
            *(
                [SparsityWarmUp(self.model.loss["gates"], warm_up)]
                if warm_up and config.gater != NO_GATER
                else []
            ),
            self._validation(),
            *([self.best] if self.best else []),
            EpochLog(self.run, config.epochs, self.best, self.worker == 0, first_step),
            keras.callbacks.TensorBoard(self.run.tensorboard, write_graph=False),
            self.checkpoints,
        ]

    def _validation(self):
        """Returns the callback that evaluates held-out images, or without any training images."""
        data, preprocessing = self.dataset, self.preprocessing
        if data.validation_images:
            batches = validation_batches(data, preprocessing, EVALUATION_BATCH)
            return Validation(self.evaluator, batches)
        batches = evaluation_batches(data, preprocessing, EVALUATION_BATCH, data.train_split)
        batches = batches.take(COLLAPSE_IMAGES // EVALUATION_BATCH)
        return Validation(self.evaluator, batches, held_out=False)

    def finish(self, started: float) -> dict:
        """Selects the weights, evaluates the test split once, and writes model and result."""
        selected = self.config.epochs
        if self.best:
            selected = self.best.restore(self.model)
            print(f"weights of epoch {selected}, the best on the validation images", flush=True)
        batches = evaluation_batches(self.dataset, self.preprocessing, EVALUATION_BATCH)
        test = self.evaluator(batches)
        print(describe(test), flush=True)
        result = {
            "test_accuracy": test.pop("accuracy"),
            "test_loss": test.pop("loss"),
            "test_images": test.pop("images"),
            **test,
            "parameters": count_parameters(self.model),
            "epochs": self.config.epochs,
            "selected_epoch": selected,
            "seconds": round(time.monotonic() - started, 1),
        }
        if self.config.freeze_backbone_epochs:
            freeze_backbone(self.model, self.trainable, frozen=False)
        self.run.save_model(self.model)
        self._save_pictures()
        self.run.write_result(result)
        return result

    def _save_pictures(self):
        """Writes the first test pictures as PNG files, pictures/CLASS/NUMBER.png."""
        examples = self.dataset.examples(self.dataset.test_split).take(PICTURES)
        for number, (image, label) in enumerate(examples):
            directory = self.run.pictures / self.dataset.labels[int(label)].replace("/", "_")
            directory.mkdir(parents=True, exist_ok=True)
            png = tf.io.encode_png(self.preprocessing.fit(image)).numpy()
            (directory / f"{number:04d}.png").write_bytes(png)
