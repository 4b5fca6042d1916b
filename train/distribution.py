"""Which devices and machines train: the strategies, and what several machines need beyond Keras."""

import contextlib
import functools
import hashlib
import json
import os

import keras
import tensorflow as tf

from gaternet_tf.errors import UserError

STRATEGIES = ("auto", "none", "mirrored", "multi_worker")


def choose_strategy(name: str) -> tf.distribute.Strategy:
    """One device, all GPUs (two or more), or all GPUs of all machines in TF_CONFIG.

    `mirrored` also takes logical CPU devices, and `multi_worker` the CPU.

    Raises:
      UserError: for `multi_worker` without a TF_CONFIG that names the workers.
    """
    if name == "multi_worker":
        return multi_worker_strategy(_workers_of(os.environ.get("TF_CONFIG", "")))
    devices = tf.config.list_logical_devices("GPU")
    if name == "mirrored" and not devices:
        devices = tf.config.list_logical_devices("CPU")
    if name == "mirrored" or (name == "auto" and len(devices) > 1):
        return mirrored_strategy(tuple(device.name for device in devices))
    return tf.distribute.get_strategy()


@functools.cache
def mirrored_strategy(devices: tuple[str, ...]) -> tf.distribute.MirroredStrategy:
    """The process' one MirroredStrategy on these devices.

    A second one numbers its collective operations from the start again, and TensorFlow then takes
    them for those of the first: "shape mismatch in the collective instance".
    """
    return tf.distribute.MirroredStrategy(devices)


@functools.cache
def multi_worker_strategy(workers: tuple[str, ...]) -> tf.distribute.Strategy:
    """The process' one strategy over these machines, of which TF_CONFIG says which this one is."""
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"--strategy=multi_worker must reach all workers of TF_CONFIG ({', '.join(workers)}), "
            f"and could not: {str(error).splitlines()[0]}"
        ) from error


def _workers_of(text: str) -> tuple[str, ...]:
    """The addresses of all workers, from a TF_CONFIG that says which of them this process is."""
    example = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", '
    example += '"index": 0}}'
    try:
        config = json.loads(text)
        workers = config["cluster"]["worker"]
        task = config["task"]
        if others := sorted(set(config["cluster"]) - {"worker"}):
            raise ValueError(f"the cluster must have workers only, and has {others}")
        if not workers or task["type"] != "worker" or not 0 <= task["index"] < len(workers):
            raise ValueError(task)
        return tuple(str(worker) for worker in workers)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG, which names all "
            f"workers and says which one this is, such as {example}; got '{text}'"
        ) from error


def worker_of(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """(this machine's number, number of machines): (0, 1) without `multi_worker`."""
    resolver = strategy.cluster_resolver
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or resolver is None:
        return 0, 1
    return resolver.task_id, len(resolver.cluster_spec().as_dict().get("worker", [""]))


def check_replicas(replicas: int, batch_size: int, steps_per_execution: int = 1) -> None:
    """Raises `UserError` for settings that so many replicas cannot train with.

    Every replica must get the same number of images, one at least. Keras' loop of several steps in
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


def sum_over(strategy: tf.distribute.Strategy):
    """A function that adds up a whole number of all machines; all must call it as often."""

    @tf.function
    def total(flag):
        return strategy.reduce(
            tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, (flag,)), axis=None
        )

    return lambda number: int(total(tf.constant(int(number))))


def agree_on(strategy: tf.distribute.Strategy):
    """A function that says whether any machine was told True; all must call it as often."""
    total = sum_over(strategy)
    return lambda flag: total(flag) > 0


def require_same_settings(strategy: tf.distribute.Strategy, settings: dict) -> None:
    """Raises `UserError` on every machine unless all of them were given the same settings."""
    own = {key: value for key, value in settings.items() if key not in ("data_dir", "download")}
    if not _all_have(strategy, own):
        raise UserError(
            "all workers must be started with the same flags, and these were not (this one's are "
            f"{own})"
        )


def require_same_checkpoints(strategy: tf.distribute.Strategy, found: list[str]) -> None:
    """Raises `UserError` on every machine unless all of them find the same checkpoints."""
    if not _all_have(strategy, found):
        raise UserError(
            "all workers must resume from the same checkpoint, in a --workdir that they share, and "
            f"they do not (this one finds {', '.join(found) or 'none'}); give all of them the "
            "first one's"
        )


def _all_have(strategy, value):
    """Whether all machines were given the same JSON-ready value; all must ask at once."""
    digest = hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=3)
    number = int.from_bytes(digest.digest())
    return sum_over(strategy)(number) == number * strategy.num_replicas_in_sync


def fit_on_workers(
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    batches,
    epochs: range,
    steps: int,
    callbacks: list,
    verbose: int = 0,
) -> None:
    """`model.fit` for several machines, which Keras' own fails on (seen with 3.15.1).

    Every step runs `model.train_step` on every replica; the numbers that callbacks see are those
    of all replicas.

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

    def of_this_machine(context):
        del context  # `batches` is this machine's part already.
        size = batches.element_spec[0].shape[0]
        return batches.rebatch(size // per_replica)

    iterator = iter(strategy.distribute_datasets_from_function(of_this_machine))

    @tf.function
    def step(iterator):
        strategy.run(model.train_step, (next(iterator),))

    calls = keras.callbacks.CallbackList(
        callbacks,
        add_progbar=verbose > 0,
        model=model,
        verbose=verbose,
        epochs=epochs.stop,
        steps=steps,
    )
    calls.on_train_begin()
    for epoch in epochs:
        model.reset_metrics()
        calls.on_epoch_begin(epoch)
        logs: dict = {}
        for number in range(steps):
            calls.on_train_batch_begin(number)
            step(iterator)
            logs = _numbers(model)
            calls.on_train_batch_end(number, logs)
        calls.on_epoch_end(epoch, logs)
    calls.on_train_end()


def _numbers(model):
    return {name: float(value) for name, value in model.get_metrics_result().items()}


@contextlib.contextmanager
def other_machines_may_fail():
    """Turns what TensorFlow raises when another machine is gone into a `UserError`."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        raise UserError(
            "another worker of TF_CONFIG stopped or cannot be reached any more "
            f"({str(error).splitlines()[0]}); start the same command on all workers again, and "
            "they resume from the last checkpoint"
        ) from error
