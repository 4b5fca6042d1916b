"""From settings to a compiled model: network, losses, weight decay, optimizer and its schedule."""

from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from gaternet_tf.losses import GateRate, SmoothedCrossentropy, SparsityLoss
from gaternet_tf.models import GATER_PREFIX, build_gaternet
from train.config import TrainingConfig

DECAY_AT = (0.5, 0.75)
"""Parts of the training after which "step" divides by 10: epochs 80 and 120 of 160."""


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to another schedule's rate over the first `steps` steps, then follows it."""

    def __init__(self, schedule, steps):
        self.schedule = schedule
        self.steps = steps

    def __call__(self, step):
        warm = ops.minimum(1.0, (ops.cast(step, "float32") + 1.0) / self.steps)
        return warm * self.schedule(step)


def build_and_compile(
    config: TrainingConfig,
    input_shape: tuple[int, int, int],
    num_classes: int,
    steps_per_epoch: int,
    replicas: int = 1,
) -> keras.Model:
    """Builds the model of a run with its losses, metrics, weight decay and optimizer."""
    model = build_gaternet(
        backbone=config.backbone,
        gater=config.gater_network,
        input_shape=input_shape,
        num_classes=num_classes,
        bottleneck=config.bottleneck,
        gated_convs=config.gated_convs,
        head_batch_norm=config.head_batch_norm,
        seed=config.seed,
        synchronized_batch_norm=config.synchronized_batch_norm and replicas > 1,
        width=config.width,
        attention=config.attention,
        gate_bias=config.gate_bias,
        gater_size=config.gater_size or None,
        weights=config.weights,
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


def freeze_backbone(model: keras.Model, trainable: Mapping[str, bool], frozen: bool) -> None:
    """Lets only the gater and the classifier be trained, or again what could be at first.

    A frozen batch normalisation is that of inference.

    Args:
      model: compiled.
      trainable: whether each layer could be trained at first, by its name.
      frozen: whether the backbone is to be left alone.
    """
    for layer in model.layers:
        is_backbone = layer.name != "logits" and not layer.name.startswith(GATER_PREFIX)
        layer.trainable = trainable[layer.name] and not (frozen and is_backbone)
    model.make_train_function(force=True)


def learning_rate_schedule(config: TrainingConfig, steps_per_epoch: int):
    """Returns the learning rate by step: `--schedule` over `--epochs`, after a warm-up."""
    total = config.epochs * steps_per_epoch
    if config.schedule == "cosine":
        schedule = keras.optimizers.schedules.CosineDecay(config.learning_rate, total)
    else:
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
            [round(total * part) for part in DECAY_AT],
            [config.learning_rate * factor for factor in (1.0, 0.1, 0.01)],
        )
    warm_up = round(config.warmup_epochs * steps_per_epoch)
    return WarmUp(schedule, warm_up) if warm_up else schedule


def make_optimizer(config: TrainingConfig, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """Returns SGD with Nesterov momentum, or Adam."""
    schedule = learning_rate_schedule(config, steps_per_epoch)
    if config.optimizer == "adam":
        return keras.optimizers.Adam(schedule)
    return keras.optimizers.SGD(schedule, momentum=config.momentum, nesterov=config.momentum > 0)


def compile_model(
    model: keras.Model,
    optimizer,
    sparsity: float,
    label_smoothing: float = 0.0,
    jit_compile: bool = False,
    steps_per_execution: int = 1,
) -> None:
    """Compiles a model, gated or plain, for `-log P(y|x) + lambda * ||g||_1 / c`.

    It trains on (image, label) batches to which `with_targets` was applied.
    """
    losses = {"logits": SmoothedCrossentropy(label_smoothing)}
    metrics = {"logits": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]}
    if "gates" in model.output_names:
        losses["gates"] = SparsityLoss(sparsity)
        metrics["gates"] = [GateRate()]
    else:
        # Keras reports a single loss only as its sum with the L2 term. Not reduced, since a reduced
        # loss is divided by the number of replicas.
        by_image = SmoothedCrossentropy(label_smoothing, reduction="none")
        metrics["logits"].append(keras.metrics.MeanMetricWrapper(by_image, name="task_loss"))
    # jit_compile is set explicitly: "auto" compiles with XLA on a GPU and not on a CPU or under a
    # strategy.
    model.compile(
        optimizer,
        loss=losses,
        metrics=metrics,
        jit_compile=jit_compile,
        steps_per_execution=steps_per_execution,
    )


def with_targets(batches, model: keras.Model):
    """Gives every output of `model` a target: the labels, which the gates' loss ignores."""
    names = model.output_names
    return batches.map(lambda images, labels: (images, dict.fromkeys(names, labels)))


def set_weight_decay(model: keras.Model, weight_decay: float) -> None:
    """Puts an L2 term on the kernels of convolutions and dense layers, and on nothing else.

    `weight_decay` is w in `gradient + w * kernel`, as in PyTorch, which is Keras' `L2(w / 2)`.
    """
    if weight_decay:
        for variable in model.trainable_variables:
            if variable.name.endswith("kernel"):
                variable.regularizer = keras.regularizers.L2(weight_decay / 2)


def count_parameters(model: keras.Model) -> int:
    """Returns the number of trainable parameters."""
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
