"""Which devices and machines train: the strategies, and what several machines need beyond Keras."""

import contextlib
import functools
import hashlib
import json
import os

import keras
import tensorflow as tf

from gaternet_tf.errors import UserError

TF_CONFIG_EXAMPLE = (
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
)


def choose_strategy(name: str) -> tf.distribute.Strategy:
    """Returns the strategy for `--strategy=name`.

    `auto` takes all GPUs if there are several; `mirrored` also takes logical CPU devices, and
    `multi_worker` the CPU.

    Raises:
      UserError: for `multi_worker` without a TF_CONFIG that names the workers.
    """
    if name == "multi_worker":
        return _multi_worker_strategy(os.environ.get("TF_CONFIG", ""))
    devices = tf.config.list_logical_devices("GPU")
    if name == "mirrored" and not devices:
        devices = tf.config.list_logical_devices("CPU")
    if name == "mirrored" or (name == "auto" and len(devices) > 1):
        return _mirrored_strategy(tuple(device.name for device in devices))
    return tf.distribute.get_strategy()


@functools.cache
def _mirrored_strategy(devices):
    """Returns the process' only MirroredStrategy on these devices.

    A second one numbers its collective operations from the start again, and TensorFlow confuses
    them with those of the first: "shape mismatch in the collective instance".
    """
    return tf.distribute.MirroredStrategy(devices)


@functools.cache
def _multi_worker_strategy(tf_config):
    try:
        config = json.loads(tf_config)
        workers, index = config["cluster"]["worker"], config["task"]["index"]
        workers[index]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise UserError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG, which names all "
            f"workers and says which one this is, such as {TF_CONFIG_EXAMPLE}; got '{tf_config}'"
        ) from error
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"--strategy=multi_worker must reach all workers of TF_CONFIG ({', '.join(workers)}), "
            f"and could not: {str(error).splitlines()[0]}"
        ) from error


def worker_of(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Returns (this machine's number, number of machines): (0, 1) without `multi_worker`."""
    resolver = strategy.cluster_resolver
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or resolver is None:
        return 0, 1
    return resolver.task_id, len(resolver.cluster_spec().as_dict().get("worker", [""]))


def check_replicas(replicas: int, batch_size: int, steps_per_execution: int = 1) -> None:
    """Raises `UserError` for settings that this number of replicas cannot train with.

    Every replica must get the same number of images, at least one. Keras' loop of several steps in
    one execution fails on two replicas (seen with 3.15.1, on a model of one layer).
    """
    if replicas > 1 and steps_per_execution > 1:
        raise UserError(
            f"--steps_per_execution must be 1 on {replicas} replicas, where Keras cannot take "
            f"several steps at once, got {steps_per_execution}; leave it out, or give "
            "--strategy=none"
        )
    if batch_size % replicas:
        raise UserError(
            f"--batch_size is the global batch and must be a multiple of the {replicas} replicas, "
            f"got {batch_size}; take {max(1, batch_size // replicas) * replicas}"
        )


def require_same_start(strategy: tf.distribute.Strategy, settings: dict, checkpoint: str) -> None:
    """Raises `UserError` on every machine unless all begin with the same settings and checkpoint.

    With other seeds or batches their parts of a batch would overlap, and no error would say so.
    """
    start = json.dumps([settings, checkpoint], sort_keys=True)
    number = int.from_bytes(hashlib.blake2b(start.encode(), digest_size=3).digest())

    @tf.function
    def total():
        numbers = strategy.run(lambda: tf.constant(number, tf.int32))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, numbers, axis=None)

    if int(total()) != number * strategy.num_replicas_in_sync:
        raise UserError(
            "all workers must be started with the same flags and a --workdir that they share, and "
            f"were not; this one finds {checkpoint or 'no checkpoint'} and has the settings "
            f"{settings}"
        )


def fit_on_workers(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    batches,
    epochs: range,
    steps: int,
    callbacks: list,
    verbose: int = 0,
) -> None:
    """Does what `model.fit` does, for several machines, where Keras' own fails (seen with 3.15.1).

    Every step runs `model.train_step` on every replica; callbacks get the numbers of all replicas.

    Args:
      model: compiled, and made in the strategy's scope.
      strategy: a MultiWorkerMirroredStrategy.
      batches: `tf.data` of this machine's part of each global batch.
      epochs: numbers of the epochs to train.
      steps: steps of an epoch.
      callbacks: as `fit` takes them.
      verbose: 1 for a progress bar.
    """
    per_replica = strategy.num_replicas_in_sync // worker_of(strategy)[1]

    def batches_of_this_machine(context):
        del context  # `batches` is this machine's part already.
        size = batches.element_spec[0].shape[0]
        return batches.rebatch(size // per_replica)

    iterator = iter(strategy.distribute_datasets_from_function(batches_of_this_machine))

    @tf.function
    def step(iterator):
        strategy.run(model.train_step, (next(iterator),))

    callback_list = keras.callbacks.CallbackList(
        callbacks,
        add_progbar=verbose > 0,
        model=model,
        verbose=verbose,
        epochs=epochs.stop,
        steps=steps,
    )
    callback_list.on_train_begin()
    for epoch in epochs:
        model.reset_metrics()
        callback_list.on_epoch_begin(epoch)
        logs: dict = {}
        for number in range(steps):
            callback_list.on_train_batch_begin(number)
            step(iterator)
            logs = {name: float(value) for name, value in model.get_metrics_result().items()}
            callback_list.on_train_batch_end(number, logs)
        callback_list.on_epoch_end(epoch, logs)
    callback_list.on_train_end()


@contextlib.contextmanager
def reraise_lost_workers():
    """Re-raises what TensorFlow raises when another machine is gone as a `UserError`."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        raise UserError(
            "another worker of TF_CONFIG stopped or cannot be reached any more "
            f"({str(error).splitlines()[0]}); start the same command on all workers again, and "
            "they resume from the last checkpoint"
        ) from error
