"""From settings to the optimizer and its schedule, the losses and the weight decay."""

import keras
from keras import ops

from gaternet_tf.losses import GateRate, SmoothedCrossentropy, SparsityLoss

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("step", "cosine")
DECAY_AT = (0.5, 0.75)
"""Parts of the training after which "step" divides by 10: epochs 80 and 120 of 160."""


@keras.saving.register_keras_serializable(package="gaternet_tf")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to another schedule's rate over the first `steps` steps, then follows it."""

    def __init__(self, schedule, steps):
        self.schedule = schedule
        self.steps = steps

    def __call__(self, step):
        rate = self.schedule(step)
        if not self.steps:
            return rate
        return rate * ops.minimum(1.0, (ops.cast(step, "float32") + 1.0) / self.steps)

    def get_config(self):
        return {
            "schedule": keras.optimizers.schedules.serialize(self.schedule),
            "steps": self.steps,
        }

    @classmethod
    def from_config(cls, config):
        return cls(keras.optimizers.schedules.deserialize(config["schedule"]), config["steps"])


def learning_rate_schedule(config, steps_per_epoch: int):
    """The learning rate by step: `--schedule` over `--epochs`, behind `--warmup_epochs`."""
    total = config.epochs * steps_per_epoch
    if config.schedule == "cosine":
        schedule = keras.optimizers.schedules.CosineDecay(config.learning_rate, max(1, total))
    else:
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
            [round(total * part) for part in DECAY_AT],
            [config.learning_rate * factor for factor in (1.0, 0.1, 0.01)],
        )
    return WarmUp(schedule, round(config.warmup_epochs * steps_per_epoch))


def make_optimizer(config, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """SGD with Nesterov momentum, or Adam."""
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

    It is then trained on what `with_targets` makes of (image, label) batches.
    """
    task_loss = SmoothedCrossentropy(label_smoothing)
    losses = {"logits": task_loss}
    metrics = {"logits": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]}
    if "gates" in model.output_names:
        losses["gates"] = SparsityLoss(sparsity)
        metrics["gates"] = [GateRate()]
    else:
        # Of a single loss Keras tells the sum with the L2 term only.
        metrics["logits"].append(keras.metrics.MeanMetricWrapper(task_loss, name="task_loss"))
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

    `weight_decay` is counted as PyTorch counts it, w in `gradient + w * kernel`, which is Keras'
    `L2(w / 2)`.
    """
    if weight_decay:
        for variable in model.trainable_variables:
            if variable.name == "kernel":
                variable.regularizer = keras.regularizers.L2(weight_decay / 2)
