"""The settings of a training run, and which of them can work."""

import dataclasses

import numpy as np

from gaternet_tf.errors import UserError
from gaternet_tf.models import NO_GATER, resnet_spec
from gaternet_tf.models.resnet_cifar import ATTENTION, WIDTH, resnet_gate_map
from train.distribution import STRATEGIES
from train.recipe import OPTIMIZERS, SCHEDULES

SELECTIONS = ("best", "last")
DTYPE_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """All settings of a run; the defaults are the CIFAR recipe of the code the paper grew from.

    `train.main`'s flags have the same names and say what each means. None for `resize`,
    `crop_padding`, `flip` and `resized_crop` means the dataset's own, for `validation` the share
    in `training.VALIDATION`, for `steps_per_epoch` all images; 0 for `image_size` means the
    dataset's own size.
    """

    backbone: str = "resnet20"
    gater: str = "resnet20"
    width: int = WIDTH
    attention: str = "none"
    dataset: str = "cifar10"
    data_dir: str | None = None
    download: bool = True
    skip_unreadable: bool = False
    image_size: int = 0
    resize: int | None = None
    crop_padding: int | None = None
    flip: bool | None = None
    resized_crop: bool | None = None
    validation: float | None = None
    epochs: int = 160
    steps_per_epoch: int | None = None
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    schedule: str = "step"
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    sparsity: float = 0.1
    sparsity_warmup_epochs: float = 0.0
    gated_convs: str = "last"
    bottleneck: int = 8
    head_batch_norm: bool = True
    gate_bias: float = 0.0
    select: str = "best"
    seed: int = 0
    strategy: str = "auto"
    synchronized_batch_norm: bool = True
    dtype_policy: str = "float32"
    jit_compile: bool = False
    steps_per_execution: int = 1
    deterministic: bool = False

    def check(self) -> None:
        """Raises `UserError` for a setting that cannot work, before anything is opened."""
        least = {
            "image_size": 0,
            "resize": 0,
            "crop_padding": 0,
            "width": 1,
            "epochs": 1,
            "steps_per_epoch": 1,
            "batch_size": 1,
            "bottleneck": 1,
            "warmup_epochs": 0,
            "momentum": 0,
            "weight_decay": 0,
            "label_smoothing": 0,
            "sparsity": 0,
            "sparsity_warmup_epochs": 0,
            "validation": 0,
            "steps_per_execution": 1,
            "seed": 0,
        }
        below_one = ("momentum", "label_smoothing", "validation")
        choices = {
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "strategy": STRATEGIES,
            "dtype_policy": DTYPE_POLICIES,
            "attention": ATTENTION,
            "select": SELECTIONS,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            # Written so that NaN is refused too.
            if value is not None and not (value >= minimum and np.isfinite(value)):
                raise UserError(f"--{name} must be {minimum} or more, got {value}")
        if not (self.learning_rate > 0 and np.isfinite(self.learning_rate)):
            raise UserError(f"--learning_rate must be above 0, got {self.learning_rate}")
        if not np.isfinite(self.gate_bias):
            raise UserError(f"--gate_bias must be a finite number, got {self.gate_bias}")
        for name in below_one:
            if (value := getattr(self, name)) is not None and not value < 1:
                raise UserError(f"--{name} must be below 1, got {value}")
        for name, legal in choices.items():
            if (value := getattr(self, name)) not in legal:
                raise UserError(f"--{name} must be one of {', '.join(legal)}, got '{value}'")
        if self.attention != "none" and self.gater != NO_GATER:
            raise UserError(
                f"--attention={self.attention} takes the place of the gates and needs "
                f"--gater=none, got --gater={self.gater}"
            )
        if self.deterministic and self.jit_compile:
            raise UserError(
                "--deterministic cannot be kept with --jit_compile: XLA chooses algorithms by "
                "their speed and has no deterministic form of some operations; leave one out"
            )
        if self.strategy == "multi_worker" and (self.jit_compile or self.steps_per_execution > 1):
            raise UserError(
                "--strategy=multi_worker runs one step at a time, uncompiled; leave out "
                "--jit_compile and --steps_per_execution"
            )
        resnet_gate_map(resnet_spec(self.backbone, self.width), self.gated_convs)
        if self.gater != NO_GATER:
            resnet_spec(self.gater)
