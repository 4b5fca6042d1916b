"""Which devices and machines train: the strategies, and what several machines need beyond Keras."""

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
        workers = config["cluster"]["worker"]
        if not isinstance(workers, list):
            raise TypeError("a list of workers is required")
        workers[config["task"]["index"]]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise UserError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG, which names all "
            f"workers and says which one this is, such as {TF_CONFIG_EXAMPLE}; got '{tf_config}'"
        ) from error
    return tf.distribute.MultiWorkerMirroredStrategy()


def worker_of(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Returns (this machine's number, number of machines): (0, 1) without `multi_worker`."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0, 1
    resolver = strategy.cluster_resolver
    return resolver.task_id, len(resolver.cluster_spec().as_dict()["worker"])


def check_replicas(
    replicas: int, batch_size: int, steps_per_execution: int = 1, jit_compile: bool = False
) -> None:
    """Raises `UserError` for settings that this number of replicas cannot train with.

    On two replicas Keras' loop of several steps in one execution fails, and so does a compiled step
    (seen with 3.15.1).
    """
    if replicas > 1 and jit_compile:
        raise UserError(
            f"--jit_compile needs one replica, and there are {replicas}; leave it out, or give "
            "--strategy=none"
        )
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


def require_same_start(strategy: tf.distribute.Strategy, start: list) -> None:
    """Raises `UserError` on every machine unless all have the same JSON-ready `start`.

    With other seeds or batches their parts of a batch would overlap, and no error would say so.
    """
    digest = hashlib.blake2b(json.dumps(start).encode(), digest_size=3).digest()
    number = int.from_bytes(digest)

    @tf.function
    def total():
        numbers = strategy.run(lambda: tf.constant(number, tf.int32))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, numbers, axis=None)

    if int(total()) != number * strategy.num_replicas_in_sync:
        raise UserError(
            "all workers must be started with the same flags and a --workdir that they share, and "
            f"were not; this one has the settings and the last checkpoint {start}"
        )


def fit_on_workers(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    batches: tf.data.Dataset,
    epochs: range,
    steps: int,
    callbacks: list,
) -> None:
    """Does what `model.fit` does, for several machines, where Keras' own fails (seen with 3.15.1).

    Args:
      model: compiled, and made in the strategy's scope.
      strategy: a MultiWorkerMirroredStrategy.
      batches: this machine's part of each global batch.
      epochs: numbers of the epochs to train.
      steps: steps of an epoch.
      callbacks: as `fit` takes them; they get the numbers of all replicas.
    """
    per_replica = strategy.num_replicas_in_sync // worker_of(strategy)[1]
    batches = batches.rebatch(batches.element_spec[0].shape[0] // per_replica)
    iterator = iter(strategy.distribute_datasets_from_function(lambda _: batches))

    @tf.function
    def step(iterator):
        strategy.run(model.train_step, (next(iterator),))

    callback_list = keras.callbacks.CallbackList(
        callbacks, model=model, epochs=epochs.stop, steps=steps
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
