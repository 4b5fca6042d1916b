"""Trains a GaterNet from a configuration into a run directory, or resumes one."""

import dataclasses
import functools
import os
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from gaternet_tf.callbacks import Checkpoints, EpochLog, ReadableNames, StopOnNonFiniteLoss
from gaternet_tf.data import (
    STATISTICS,
    Augmentation,
    Dataset,
    Preprocessing,
    channel_statistics,
    evaluation_batches,
    open_dataset,
    training_batches,
)
from gaternet_tf.errors import UserError
from gaternet_tf.evaluation import describe, evaluate
from gaternet_tf.losses import GateRate, SparsityLoss
from gaternet_tf.models import NO_GATER, build_gaternet, gate_map, resnet_spec
from gaternet_tf.models.resnet_cifar import resnet_gate_map
from gaternet_tf.runs import RunDirectory, prepare_run

STRATEGIES = ("auto", "none", "mirrored")
DTYPE_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
DECAY_AT = (0.5, 0.75)
"""Parts of the training after which the learning rate is divided by 10: epochs 80, 120 of 160."""
EVALUATION_BATCH = 250
PICTURES = 10


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """All settings of a run; the defaults are the CIFAR recipe of the code the paper grew from.

    `train.main`'s flags have the same names and say what each means. None for `crop_padding` and
    `flip` means the dataset's own augmentation, 0 for `image_size` the dataset's own size.
    """

    backbone: str = "resnet20"
    gater: str = "resnet20"
    dataset: str = "cifar10"
    data_dir: str | None = None
    download: bool = True
    image_size: int = 0
    crop_padding: int | None = None
    flip: bool | None = None
    epochs: int = 160
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    sparsity: float = 0.1
    gated_convs: str = "last"
    bottleneck: int = 8
    head_batch_norm: bool = True
    seed: int = 0
    strategy: str = "auto"
    dtype_policy: str = "float32"

    def check(self) -> None:
        """Raises `UserError` for a setting that cannot work, before anything is opened."""
        least = {
            "image_size": 0,
            "crop_padding": 0,
            "epochs": 1,
            "batch_size": 1,
            "bottleneck": 1,
            "momentum": 0,
            "weight_decay": 0,
            "sparsity": 0,
            "seed": 0,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            # Written so that NaN is refused too.
            if value is not None and not (value >= minimum and np.isfinite(value)):
                raise UserError(f"--{name} must be {minimum} or more, got {value}")
        if not (self.learning_rate > 0 and np.isfinite(self.learning_rate)):
            raise UserError(f"--learning_rate must be above 0, got {self.learning_rate}")
        if not self.momentum < 1:
            raise UserError(f"--momentum must be below 1, got {self.momentum}")
        if self.strategy not in STRATEGIES:
            raise UserError(f"--strategy must be one of {STRATEGIES}, got '{self.strategy}'")
        if self.dtype_policy not in DTYPE_POLICIES:
            raise UserError(
                f"--dtype_policy must be one of {DTYPE_POLICIES}, got '{self.dtype_policy}'"
            )
        resnet_gate_map(resnet_spec(self.backbone), self.gated_convs)
        if self.gater != NO_GATER:
            resnet_spec(self.gater)


# Where the data lies and how many devices there are may differ when a run is resumed.
NOT_PART_OF_A_RUN = ("data_dir", "download", "strategy")


def train(config: TrainingConfig, workdir: str | os.PathLike) -> dict:
    """Trains to the end, from the start or from the last checkpoint in `workdir`.

    Args:
      config: the settings.
      workdir: the run directory to write, see `gaternet_tf.runs`.

    Returns:
      What result.json holds: `test_accuracy`, `test_loss`, gate statistics over the test set,
      `parameters`, `epochs`, `seconds`.

    Raises:
      UserError: for settings, data or a directory that do not fit, before any training; and for
        a loss that stops being finite.
    """
    started = time.monotonic()
    config.check()
    settings = dataclasses.asdict(config)
    recorded = {key: settings[key] for key in settings if key not in NOT_PART_OF_A_RUN}
    strategy = choose_strategy(config.strategy)
    check_batch_size(config.batch_size, strategy.num_replicas_in_sync)
    run = prepare_run(workdir, recorded)
    dataset = open_dataset(config.dataset, config.data_dir, config.download)
    steps = dataset.size(dataset.train_split) // config.batch_size
    if not steps:
        raise UserError(
            f"--batch_size must be at most the {dataset.size(dataset.train_split)} images of "
            f"'{config.dataset}', got {config.batch_size}"
        )
    preprocessing = choose_preprocessing(config, dataset)
    if not run.config_file.exists():
        run.write_document(settings, dataset.describe(), preprocessing)

    keras.mixed_precision.set_dtype_policy(config.dtype_policy)
    with strategy.scope():
        model = build_and_compile(config, preprocessing, len(dataset.labels), steps, strategy)
        checkpoints = Checkpoints(run, model)
        first_epoch = checkpoints.restore()
    run.truncate_metrics(first_epoch)
    announce(config, dataset, model, strategy, run, first_epoch)

    batches = training_batches(
        dataset,
        preprocessing,
        choose_augmentation(config, dataset),
        config.batch_size,
        range(first_epoch, config.epochs),
        config.seed,
    )
    on_terminal = sys.stdout.isatty()
    model.fit(
        with_targets(batches, model),
        epochs=config.epochs,
        initial_epoch=first_epoch,
        steps_per_epoch=steps,
        shuffle=False,
        verbose=1 if on_terminal else 0,
        callbacks=[
            ReadableNames(),
            StopOnNonFiniteLoss(),
            EpochLog(run, config.epochs, print_lines=not on_terminal),
            *tensorboard_callbacks(run),
            checkpoints,
        ],
    )
    test = evaluate(model, evaluation_batches(dataset, preprocessing, EVALUATION_BATCH))
    print(describe(test), flush=True)
    result = {
        "test_accuracy": test.pop("accuracy"),
        "test_loss": test.pop("loss"),
        "test_images": test.pop("images"),
        **test,
        "parameters": count_parameters(model),
        "epochs": config.epochs,
        "seconds": round(time.monotonic() - started, 1),
    }
    save_model(model, run)
    save_pictures(dataset, preprocessing, run)
    run.write_result(result)
    return result


def choose_strategy(name: str) -> tf.distribute.Strategy:
    """One device, or all GPUs (two or more); `mirrored` also takes logical CPU devices."""
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


def check_batch_size(batch_size: int, replicas: int) -> None:
    """Raises `UserError` unless every replica gets the same number of images, one at least."""
    if batch_size % replicas:
        raise UserError(
            f"--batch_size is the global batch and must be a multiple of the {replicas} replicas, "
            f"got {batch_size}; take {max(1, batch_size // replicas) * replicas}"
        )


def choose_preprocessing(config: TrainingConfig, dataset: Dataset) -> Preprocessing:
    """Picture size and normalisation of a run."""
    height, width, channels = dataset.image_shape
    if config.image_size:
        height = width = config.image_size
    if height is None or width is None:
        raise UserError(
            f"the pictures of '{dataset.name}' have no common size; give --image_size=PIXELS"
        )
    shape = (height, width, channels)
    statistics = STATISTICS.get(dataset.name) or channel_statistics(dataset, shape)
    return Preprocessing(*shape, *statistics)


def choose_augmentation(config: TrainingConfig, dataset: Dataset) -> Augmentation:
    """The dataset's own augmentation, with what the settings change of it."""
    own = dataset.augmentation
    return Augmentation(
        padding=own.padding if config.crop_padding is None else config.crop_padding,
        flip=own.flip if config.flip is None else config.flip,
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
        synchronized_batch_norm=strategy.num_replicas_in_sync > 1,
    )
    set_weight_decay(model, config.weight_decay)
    total = config.epochs * steps_per_epoch
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [round(total * part) for part in DECAY_AT],
        [config.learning_rate * factor for factor in (1.0, 0.1, 0.01)],
    )
    compile_model(
        model,
        keras.optimizers.SGD(schedule, momentum=config.momentum, nesterov=config.momentum > 0),
        config.sparsity,
    )
    return model


def compile_model(model: keras.Model, optimizer, sparsity: float) -> None:
    """Compiles a model, gated or plain, for `-log P(y|x) + lambda * ||g||_1 / c`.

    It is then trained on what `with_targets` makes of (image, label) batches.
    """
    losses = {"logits": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    metrics = {"logits": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]}
    if "gates" in model.output_names:
        losses["gates"] = SparsityLoss(sparsity)
        metrics["gates"] = [GateRate()]
    # Set explicitly: "auto" compiles with XLA on a GPU and not on a CPU or under a strategy.
    model.compile(optimizer, loss=losses, metrics=metrics, jit_compile=False)


def with_targets(batches: tf.data.Dataset, model: keras.Model) -> tf.data.Dataset:
    """Gives every output of `model` a target: the labels, which the gates' loss ignores."""
    names = model.output_names
    return batches.map(lambda images, labels: (images, dict.fromkeys(names, labels)))


def set_weight_decay(model: keras.Model, weight_decay: float) -> None:
    """Puts an L2 term on the kernels of convolutions and dense layers, and on nothing else.

    `weight_decay` is counted as PyTorch counts it, w in `gradient + w * kernel`, which is Keras'
    `L2(w / 2)`.
    """
    if weight_decay:
        for variable in model.trainable_variables:
            if variable.name == "kernel":
                variable.regularizer = keras.regularizers.L2(weight_decay / 2)


def count_parameters(model: keras.Model) -> int:
    """Number of trainable parameters."""
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def announce(config, dataset, model, strategy, run, first_epoch):
    """Says what is about to be trained, on what, and where it goes."""
    gates = len(gate_map(model))
    replicas = strategy.num_replicas_in_sync
    print(
        f"{config.backbone}, gater {config.gater}: {count_parameters(model):,} parameters, "
        f"{gates} gates\n"
        f"dataset {dataset.name} {dataset.version}: {dataset.size(dataset.train_split)} images in "
        f"'{dataset.train_split}', {dataset.size(dataset.test_split)} in '{dataset.test_split}' "
        f"({dataset.data_dir})\n"
        f"{config.epochs} epochs, batch {config.batch_size} on {replicas} replica"
        f"{'s' if replicas > 1 else ''}, into {run.path}",
        flush=True,
    )
    if first_epoch:
        print(f"resuming after epoch {first_epoch}", flush=True)


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
