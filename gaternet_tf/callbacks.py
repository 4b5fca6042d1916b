"""What happens beside the training steps: names, log lines, checkpoints, the alarm."""

import math
import time

import keras
import tensorflow as tf

from gaternet_tf.errors import UserError
from gaternet_tf.runs import RunDirectory

READABLE = {
    "logits_loss": "task_loss",
    "gates_loss": "sparsity_loss",
    "logits_accuracy": "accuracy",
    "gates_gate_rate": "gate_rate",
}


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


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Ends a run that has diverged, before its weights are saved over good ones."""

    def on_train_batch_end(self, batch, logs=None):
        if logs and not math.isfinite(logs["loss"]):
            step = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
            raise UserError(
                f"the loss must stay finite, and was {logs['loss']} at step {step}; lower "
                "--learning_rate. The last checkpoint is from before and is kept."
            )


class EpochLog(keras.callbacks.Callback):
    """Appends each epoch to metrics.jsonl, and prints a line an epoch if asked to."""

    def __init__(self, run: RunDirectory, epochs: int, print_lines: bool):
        super().__init__()
        self.run = run
        self.epochs = epochs
        self.print_lines = print_lines

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        values = {key: float(value) for key, value in (logs or {}).items()}
        values["learning_rate"] = float(self.model.optimizer.learning_rate)
        values["seconds"] = round(time.monotonic() - self.started, 3)
        self.run.append_metrics({"epoch": epoch + 1, **values})
        if self.print_lines:
            text = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
            print(f"epoch {epoch + 1}/{self.epochs}  {text}", flush=True)


class Checkpoints(keras.callbacks.Callback):
    """Saves weights, optimizer, step and random state after every epoch, and restores them.

    `tf.train.CheckpointManager` writes a checkpoint whole before it becomes the latest one, so
    that a run killed at any moment has a good one left.
    """

    def __init__(self, run: RunDirectory, model: keras.Model):
        super().__init__()
        self.epochs_done = tf.Variable(0, dtype=tf.int64)
        model.optimizer.build(model.trainable_variables)
        # TensorFlow does not find the state of Keras' seed generators by itself: with the model
        # alone, a resumed run would draw the noise of its first epochs again.
        weights = {id(variable) for variable in model.weights}
        random_state = [v.value for v in model.variables if id(v) not in weights]
        checkpoint = tf.train.Checkpoint(
            model=model,
            optimizer=model.optimizer,
            random_state=random_state,
            epochs_done=self.epochs_done,
        )
        self.manager = tf.train.CheckpointManager(checkpoint, run.checkpoints, max_to_keep=2)

    def restore(self) -> int:
        """Restores the latest checkpoint, if any, and returns the number of epochs done."""
        if latest := self.manager.latest_checkpoint:
            try:
                self.manager.checkpoint.restore(latest).assert_existing_objects_matched()
            except (tf.errors.OpError, AssertionError, LookupError, ValueError) as error:
                raise UserError(
                    f"the checkpoint to resume from must be readable, and {latest} is not "
                    f"({str(error).splitlines()[0]}); start anew in another --workdir"
                ) from error
        return int(self.epochs_done.numpy())

    def on_epoch_end(self, epoch, logs=None):
        self.epochs_done.assign(epoch + 1)
        self.manager.save(epoch + 1)
