"""What happens beside the training steps: names, log lines, validation, checkpoints."""

import math
import pathlib
import shutil
import sys
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tqdm

from gaternet_tf.callbacks import constant_gates_warning
from gaternet_tf.errors import StoppedError, UserError
from gaternet_tf.runs import RunDirectory

READABLE = {
    "logits_loss": "task_loss",
    "gates_loss": "sparsity_loss",
    "logits_accuracy": "accuracy",
    "gates_gate_rate": "gate_rate",
}
PRINTED = (
    *("loss", "task_loss", "sparsity_loss", "accuracy", "gate_rate"),
    *("val_accuracy", "val_gate_rate", "learning_rate", "seconds"),
)
"""What the line of an epoch shows; metrics.jsonl and TensorBoard have all."""
DISPENSABLE = (
    *("learning_rate", "sparsity_loss", "task_loss", "val_gate_rate"),
    *("seconds", "accuracy"),
)
"""What it leaves out, in this order, until it fits into the terminal."""
BAR = "{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt}{postfix}"
USUAL_WIDTH = 6
"""Letters of a value, such as 0.1234."""


def step_of(model: keras.Model) -> int:
    """Returns the number of steps that a model has been trained."""
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


class ReadableNames(keras.callbacks.Callback):
    """Renames the logs, for every callback after this one and the progress bar.

    Keras prefixes metrics with the output's name in a model of two outputs and not in a model of
    one.
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
    """Stops a run that has diverged, before its weights are saved over good ones.

    The loss is checked after every step, the weights, which can be NaN behind a finite loss, after
    every epoch.
    """

    def on_train_batch_end(self, batch, logs=None):
        if logs and not math.isfinite(logs["loss"]):
            self._stop("loss", logs["loss"])

    def on_epoch_end(self, epoch, logs=None):
        for variable in self.model.weights:
            values = keras.ops.convert_to_numpy(variable)
            if not np.isfinite(values).all():
                self._stop(variable.path, values[~np.isfinite(values)][0])

    def _stop(self, name, value):
        raise UserError(
            f"{name} must stay finite, and was {value} at step {step_of(self.model)}; lower "
            "--learning_rate. The last checkpoint is from before and is kept."
        )


class SparsityWarmUp(keras.callbacks.Callback):
    """Raises the weight of a `SparsityLoss` linearly over the first `steps` steps of a run.

    With `steps_per_execution` it changes once per execution.
    """

    def __init__(self, loss, steps: int):
        super().__init__()
        self.loss = loss
        self.steps = steps

    def on_epoch_begin(self, epoch, logs=None):
        self.steps_before = step_of(self.model)

    def on_train_batch_begin(self, batch, logs=None):
        self.loss.scale.assign(min(1.0, (self.steps_before + batch + 1) / self.steps))


class Validation(keras.callbacks.Callback):
    """Evaluates images after each epoch, and warns of gates that have collapsed.

    The numbers of held-out images join the epoch's logs as `val_...`, for every callback after
    this one; `val_task_loss` is the loss that training reports as `task_loss`. (`fit`'s own
    validation fails on two replicas at a last batch that does not split evenly.) Without held-out
    images, a few training images show whether the gates have collapsed.

    Args:
      evaluator: a `gaternet_tf.evaluation.Evaluator`.
      batches: what it evaluates.
      held_out: whether these images are not trained on.
    """

    def __init__(self, evaluator, batches, held_out: bool = True):
        super().__init__()
        self.evaluator = evaluator
        self.batches = batches
        self.held_out = held_out

    def on_epoch_end(self, epoch, logs=None):
        result = self.evaluator(self.batches, self.model.loss["logits"])
        if "gates" in result:
            gates, on, off = (result[f"gates{kind}"] for kind in ("", "_always_on", "_always_off"))
            images = f"{result['images']} {'validation' if self.held_out else 'training'} images"
            if warning := constant_gates_warning(gates, on, off, images):
                print(warning, flush=True)
        if not self.held_out:
            return
        result["task_loss"] = result.pop("loss")
        for key, value in result.items():
            if key not in ("images", "gates", "macs"):
                logs[f"val_{key}"] = value
        for kind in ("always_on", "always_off", "input_dependent") if "gates" in result else ():
            logs[f"val_share_{kind}"] = result[f"gates_{kind}"] / result["gates"]


class BestWeights(keras.callbacks.Callback):
    """Keeps the weights of the epoch with the best validation accuracy, the latest among equals.

    Its variables are saved in the checkpoints, so that a resumed run knows the best epoch before
    it. To be made outside a strategy's scope: one copy is enough.
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

    def variables(self) -> dict:
        """Returns what a checkpoint saves, by name."""
        return {
            "best_accuracy": self.accuracy,
            "best_epoch": self.epoch,
            "best_weights": self.weights,
        }

    def restore(self, model: keras.Model) -> int:
        """Gives the model the weights of the best epoch, and returns that epoch's number."""
        model.set_weights([kept.numpy() for kept in self.weights])
        return int(self.epoch.numpy())


class EpochLog(keras.callbacks.Callback):
    """Appends each epoch to metrics.jsonl, and prints a line of it.

    The numbers of an epoch that was resumed in its middle are averages since then; its record
    says `resumed_after_step`, which is `first_step`.

    Args:
      run: the run that is trained.
      epochs: of the whole run.
      best: knows which epoch is the best one so far, which its line says.
      prints: whether lines are printed.
      first_step: steps of the first epoch that are already done.
    """

    def __init__(
        self,
        run: RunDirectory,
        epochs: int,
        best: BestWeights | None = None,
        prints: bool = True,
        first_step: int = 0,
    ):
        super().__init__()
        self.run = run
        self.epochs = epochs
        self.best = best
        self.prints = prints
        self.first_step = first_step

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        values = {key: float(value) for key, value in (logs or {}).items()}
        values["learning_rate"] = float(self.model.optimizer.learning_rate)
        values["seconds"] = round(time.monotonic() - self.started, 3)
        if self.first_step:
            values["resumed_after_step"] = self.first_step
        self.run.append_metrics({"epoch": epoch + 1, **values})
        if self.prints:
            best = self.best is not None and int(self.best.epoch.numpy()) == epoch + 1
            columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else math.inf
            print(epoch_line(epoch + 1, self.epochs, values, best, columns), flush=True)


def epoch_line(epoch: int, epochs: int, values: dict, best: bool, columns: float) -> str:
    """Returns the line of an epoch.

    On a narrow terminal it leaves out `DISPENSABLE` values, in every epoch the same ones.
    """
    shown = [key for key in PRINTED if key in values]
    usual = len(f"epoch {epochs}/{epochs} (best)") + sum(
        len(key) + USUAL_WIDTH + 3 for key in shown
    )
    for key in DISPENSABLE:
        if usual >= columns and key in shown:
            shown.remove(key)
            usual -= len(key) + USUAL_WIDTH + 3
    parts = [f"epoch {epoch}/{epochs}"]
    for key in shown:
        mark = " (best)" if best and key == "val_accuracy" else ""
        parts.append(f"{key} {values[key]:.4g}{mark}")
    return "  ".join(parts)


class ProgressBar(keras.callbacks.Callback):
    """Shows on a terminal how far an epoch is, and the time that it and the run still take.

    Args:
      epochs: of the whole run.
    """

    def __init__(self, epochs: int):
        super().__init__()
        self.epochs = epochs
        self.bar: Any = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch + 1
        # Without a terminal on stderr it shows nothing.
        self.bar = tqdm.tqdm(
            total=self.params["steps"],
            desc=f"epoch {self.epoch}/{self.epochs}",
            bar_format=BAR,
            leave=False,
            disable=None,
            dynamic_ncols=True,
        )

    def on_train_batch_end(self, batch, logs=None):
        bar = self.bar
        bar.n = batch + 1
        seconds = bar.format_dict["elapsed"] / bar.n
        steps_left = {"epoch": bar.total - bar.n}
        if self.epoch < self.epochs:
            steps_left["run"] = (self.epochs - self.epoch) * bar.total + steps_left["epoch"]
        left = [f"{n} {bar.format_interval(seconds * steps)}" for n, steps in steps_left.items()]
        bar.set_postfix_str(f"{', '.join(left)} left, loss {logs['loss']:.4g}", refresh=False)
        bar.update(0)

    def on_epoch_end(self, epoch, logs=None):
        self.close()

    def close(self):
        """Takes the bar off the terminal."""
        if self.bar is not None:
            self.bar.close()


class Checkpoints(keras.callbacks.Callback):
    """Saves weights, optimizer, step and random state after every epoch, and restores them.

    `tf.train.CheckpointManager` writes a checkpoint whole before it becomes the latest one, so
    that a run killed at any moment has a good one. A run that is asked to stop by `stop()`,
    which a signal handler may call, saves in the middle of its epoch and raises `StoppedError`.

    Args:
      run: the run whose checkpoints these are.
      model: compiled.
      best: saved too.
      steps: steps of an epoch.
    """

    def __init__(self, run: RunDirectory, model: keras.Model, best: BestWeights | None, steps: int):
        super().__init__()
        self.epochs_done = tf.Variable(0, dtype=tf.int64)
        self.steps_done = tf.Variable(0, dtype=tf.int64)
        self.stopping = False
        self.first_step = 0
        self.steps = steps
        model.optimizer.build(model.trainable_variables)
        # TensorFlow does not find the state of Keras' seed generators by itself: with the model
        # alone, a resumed run would draw the noise of its first epochs again.
        weights = {id(variable) for variable in model.weights}
        random_state = [v.value for v in model.variables if id(v) not in weights]
        best_epoch = best.variables() if best else {}
        checkpoint = tf.train.Checkpoint(
            model=model,
            optimizer=model.optimizer,
            random_state=random_state,
            epochs_done=self.epochs_done,
            steps_done=self.steps_done,
            **best_epoch,
        )
        self.manager = tf.train.CheckpointManager(checkpoint, run.checkpoints, max_to_keep=2)

    def restore(self, directory: pathlib.Path, previous: bool = False) -> tuple[int, int]:
        """Restores the latest checkpoint in `directory`, if any, or the one before it.

        Returns:
          (epochs, steps): how many whole epochs are done, and how many steps of the next one.

        Raises:
          UserError: for a damaged checkpoint, or none before the latest.
        """
        paths = saved_checkpoints(directory)
        if previous and len(paths) < 2:
            raise UserError(
                f"--previous_checkpoint needs two checkpoints, and {directory} has "
                f"{len(paths)}; leave it out or start anew in another --workdir"
            )
        if paths:
            path = paths[-2] if previous else paths[-1]
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
        if self.stopping and done < self.steps:
            self._save(self.epoch, done, f"step {done} of epoch {self.epoch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        self._save(epoch + 1, 0, f"epoch {epoch + 1}")

    def _save(self, epochs, steps, last):
        self.epochs_done.assign(epochs)
        self.steps_done.assign(steps)
        # Numbered by the step, so that no checkpoint is ever written over an older one.
        self.manager.save(step_of(self.model))
        if self.stopping:
            raise StoppedError(f"stopped and saved after {last}; the same command resumes it")


def saved_checkpoints(directory: pathlib.Path) -> list[str]:
    """Returns the paths of the checkpoints in a directory, oldest first."""
    state = tf.train.get_checkpoint_state(directory)
    return list(state.all_model_checkpoint_paths) if state else []
