"""What happens beside the training steps: names, log lines, checkpoints, the alarm."""

import math
import pathlib
import re
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from gaternet_tf.errors import UserError
from gaternet_tf.runs import RunDirectory

READABLE = {
    "logits_loss": "task_loss",
    "gates_loss": "sparsity_loss",
    "logits_accuracy": "accuracy",
    "gates_gate_rate": "gate_rate",
}
PRINTED = (
    *("loss", "task_loss", "sparsity_loss", "accuracy", "gate_rate"),
    *("val_accuracy", "val_gate_rate", "learning_rate", "seconds", "resumed_after_step"),
)
"""What the line of an epoch shows; metrics.jsonl and TensorBoard have all."""


class ReadableNames(keras.callbacks.Callback):
    """Gives the logs our names, for every callback after this one, the progress bar included.

    Keras prefixes metrics with the output's name in a model of two outputs and leaves the prefix
    away in a model of one.
    """

    def on_train_batch_end(self, batch, logs=None):
        self._rename(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._rename(logs)

    @staticmethod
    def _rename(logs):
        for old, new in READABLE.items():
            if logs and old in logs:
                logs[new] = logs.pop(old)


class StopOnNonFinite(keras.callbacks.Callback):
    """Ends a run that has diverged, before its weights are saved over good ones.

    The loss is looked at after every step, the weights, which can be lost behind a finite loss,
    after every epoch.
    """

    def on_train_batch_end(self, batch, logs=None):
        if logs and not math.isfinite(logs["loss"]):
            self._stop("loss", logs["loss"])

    def on_epoch_end(self, epoch, logs=None):
        for variable in self.model.weights:
            values = keras.ops.convert_to_numpy(variable)
            if not np.isfinite(values).all():
                self._stop(variable.path, values[~np.isfinite(values)][0])

    def _stop(self, what, value):
        step = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        raise UserError(
            f"{what} must stay finite, and was {value} at step {step}; lower --learning_rate. The "
            "last checkpoint is from before and is kept."
        )


class SparsityWarmUp(keras.callbacks.Callback):
    """Raises the weight of a `SparsityLoss` linearly over the first `steps` steps of a run.

    With `steps_per_execution` it stays the same for so many steps.
    """

    def __init__(self, loss, steps: int):
        super().__init__()
        self.loss = loss
        self.steps = steps

    def on_epoch_begin(self, epoch, logs=None):
        self.steps_before = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    def on_train_batch_begin(self, batch, logs=None):
        self.loss.scale.assign(min(1.0, (self.steps_before + batch + 1) / self.steps))


class Validation(keras.callbacks.Callback):
    """Evaluates the held-out images after each epoch, and warns of gates that have collapsed.

    Its numbers join the epoch's logs as `val_...`, for every callback after this one. `fit`'s own
    validation stops on two replicas at a last batch that does not split evenly.
    """

    def __init__(self, evaluator, batches):
        super().__init__()
        self.evaluator = evaluator
        self.batches = batches

    def on_epoch_end(self, epoch, logs=None):
        result = self.evaluator(self.batches)
        warn_of_collapse(result, "validation")
        for key, value in result.items():
            if key not in ("images", "gates", "macs"):
                logs[f"val_{key}"] = value
        for kind in ("always_on", "always_off", "input_dependent") if "gates" in result else ():
            logs[f"val_share_{kind}"] = result[f"gates_{kind}"] / result["gates"]


class CollapseAlarm(keras.callbacks.Callback):
    """Warns of collapsed gates after each epoch of a run that holds no images out."""

    def __init__(self, evaluator, batches):
        """Args: `batches` of a few training images, as they are."""
        super().__init__()
        self.evaluator = evaluator
        self.batches = batches

    def on_epoch_end(self, epoch, logs=None):
        warn_of_collapse(self.evaluator(self.batches), "training")


def warn_of_collapse(result: dict, images: str) -> None:
    """Prints what `collapse` says of the numbers of an evaluation, if anything."""
    if problem := collapse(result, images):
        print(f"warning: {problem}", flush=True)


def collapse(result: dict, images: str = "validation") -> str | None:
    """What is wrong with gates that no longer choose, from the numbers of an evaluation."""
    gates = result.get("gates")
    if not gates:
        return None
    on, off = result["gates_always_on"], result["gates_always_off"]
    numbers = f"{on} of {gates} always on, {off} always off on {result['images']} {images} images"
    if on == gates:
        return f"all gates are on for every image ({numbers}); raise --sparsity"
    if off == gates:
        return f"all gates are off for every image ({numbers}); lower --sparsity"
    if on + off == gates:
        return f"the gates are the same for every image ({numbers}); lower --sparsity"
    return None


class BestWeights(keras.callbacks.Callback):
    """Keeps the weights of the epoch with the best validation accuracy, of equals the latest.

    They travel in the checkpoints, so that a resumed run knows the best epoch before it. To be
    made outside a strategy's scope: one copy is enough.
    """

    def __init__(self, model: keras.Model):
        super().__init__()
        self.accuracy = tf.Variable(0.0, dtype=tf.float64)
        self.epoch = tf.Variable(0, dtype=tf.int64)
        with tf.device("CPU:0"):
            self.weights = [tf.Variable(weight) for weight in model.get_weights()]

    def on_epoch_end(self, epoch, logs=None):
        if logs["val_accuracy"] >= self.accuracy.numpy():
            self.accuracy.assign(logs["val_accuracy"])
            self.epoch.assign(epoch + 1)
            for kept, weight in zip(self.weights, self.model.get_weights(), strict=True):
                kept.assign(weight)

    def put_back(self, model: keras.Model) -> int:
        """Gives the model the weights of the best epoch, and returns that epoch's number."""
        model.set_weights([kept.numpy() for kept in self.weights])
        return int(self.epoch.numpy())


class EpochLog(keras.callbacks.Callback):
    """Appends each epoch to metrics.jsonl, and prints a line an epoch if asked to.

    The numbers of an epoch that was resumed in its middle are of the steps since then; its record
    says `resumed_after_step`.
    """

    def __init__(
        self, run: RunDirectory, epochs: int, print_lines: bool, checkpoints: "Checkpoints"
    ):
        super().__init__()
        self.checkpoints = checkpoints
        self.run = run
        self.epochs = epochs
        self.print_lines = print_lines

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        values = {key: float(value) for key, value in (logs or {}).items()}
        values["learning_rate"] = float(self.model.optimizer.learning_rate)
        values["seconds"] = round(time.monotonic() - self.started, 3)
        if self.checkpoints.first_step:
            # What `fit` averages, it does since the run was resumed.
            values["resumed_after_step"] = self.checkpoints.first_step
        self.run.append_metrics({"epoch": epoch + 1, **values})
        if self.print_lines:
            text = "  ".join(f"{key} {values[key]:.4g}" for key in PRINTED if key in values)
            print(f"epoch {epoch + 1}/{self.epochs}  {text}", flush=True)


class Checkpoints(keras.callbacks.Callback):
    """Saves weights, optimizer, step and random state after every epoch, and restores them.

    `tf.train.CheckpointManager` writes a checkpoint whole before it becomes the latest one, so
    that a run killed at any moment has a good one left. A run that is asked to stop by `stop()`,
    which a signal handler may call, saves in the middle of its epoch and raises `Stopped`.
    """

    def __init__(
        self,
        run: RunDirectory,
        model: keras.Model,
        best: BestWeights | None = None,
        agree: Callable[[bool], bool] = bool,
    ):
        """Args: `agree` says whether any machine is to stop, from whether this one is."""
        super().__init__()
        self.agree = agree
        self.epochs_done = tf.Variable(0, dtype=tf.int64)
        self.steps_done = tf.Variable(0, dtype=tf.int64)
        self.stopping = False
        self.first_step = 0
        self.steps = 0
        model.optimizer.build(model.trainable_variables)
        # TensorFlow does not find the state of Keras' seed generators by itself: with the model
        # alone, a resumed run would draw the noise of its first epochs again.
        weights = {id(variable) for variable in model.weights}
        random_state = [v.value for v in model.variables if id(v) not in weights]
        best_state = {}
        if best:
            best_state = {
                "best_accuracy": best.accuracy,
                "best_epoch": best.epoch,
                "best_weights": best.weights,
            }
        checkpoint = tf.train.Checkpoint(
            model=model,
            optimizer=model.optimizer,
            random_state=random_state,
            epochs_done=self.epochs_done,
            steps_done=self.steps_done,
            **best_state,
        )
        saved_checkpoints(run.checkpoints)
        self.manager = tf.train.CheckpointManager(checkpoint, run.checkpoints, max_to_keep=2)

    def restore(self, directory: pathlib.Path, previous: bool = False) -> tuple[int, int]:
        """Restores the latest checkpoint in `directory`, if any, or the one before it.

        Returns:
          (epochs, steps): how many whole epochs are done, and how many steps of the next one.

        Raises:
          UserError: for a damaged checkpoint, or none before the latest.
        """
        found = saved_checkpoints(directory)
        if previous and len(found) < 2:
            raise UserError(
                f"--previous_checkpoint needs two checkpoints, and {directory} has "
                f"{len(found)}; leave it out or start anew in another --workdir"
            )
        if found:
            path = found[-2] if previous else found[-1]
            try:
                self.manager.checkpoint.restore(path).assert_existing_objects_matched()
            except (tf.errors.OpError, AssertionError, LookupError, ValueError) as error:
                raise UserError(
                    f"the checkpoint to resume from must be readable, and {path} is not "
                    f"({str(error).splitlines()[0]}); give --previous_checkpoint to resume from "
                    "the one before, or start anew in another --workdir"
                ) from error
        return int(self.epochs_done.numpy()), int(self.steps_done.numpy())

    def stop(self) -> None:
        """Asks the run to save and stop after its current step."""
        self.stopping = True

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        done = self.first_step + batch + 1
        # After its last step an epoch is evaluated and saved as a whole.
        if done < self.steps and self.agree(self.stopping):
            self._save(self.epoch, done)
            raise Stopped(f"saved after step {done} of epoch {self.epoch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        self._save(epoch + 1, 0)
        if self.agree(self.stopping):
            raise Stopped(f"saved after epoch {epoch + 1}")

    def _save(self, epochs, steps):
        self.epochs_done.assign(epochs)
        self.steps_done.assign(steps)
        # Numbered by the step, so that no checkpoint is ever written over an older one.
        number = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        try:
            self.manager.save(number)
        except (OSError, tf.errors.OpError) as error:
            last = self.manager.latest_checkpoint
            goes_on = f"resumes from the last good one, {last}" if last else "begins again"
            raise UserError(
                f"a checkpoint must be written to {self.manager.directory}, and could not be "
                f"({str(error).splitlines()[0]}); make room, then the same command {goes_on}"
            ) from error


def saved_checkpoints(directory: pathlib.Path) -> list[str]:
    """Paths of the checkpoints in a directory, oldest first.

    The list that names them is written after the files of each. Files of one checkpoint without a
    list are of the first one, whose writing was interrupted, and are none.

    Raises:
      UserError: when there are some, and the list is damaged or missing.
    """
    directory = pathlib.Path(directory)
    names = directory / "checkpoint"
    try:
        state = tf.train.get_checkpoint_state(directory)
    except ValueError:
        state = None
    numbers = {re.split("[._]", path.name)[0] for path in directory.glob("ckpt-*")}
    if state is None and (names.exists() or len(numbers) > 1):
        raise UserError(
            f"the list of checkpoints, {names}, must be readable, and is damaged or missing; bring "
            "it back from a copy, or start anew in another --workdir"
        )
    return list(state.all_model_checkpoint_paths) if state else []


class Stopped(UserError):  # noqa: N818 - a message for the user, not a fault
    """The run was asked to stop, and is saved."""
