"""The settings of a training run: default, meaning, limits and choices of each, once.

Imports neither TensorFlow nor Keras, so that `python -m train.main --help` answers at once.
"""

import dataclasses
import math
from typing import Any


def setting(default, help_text: str, **limits) -> Any:
    """Returns a dataclass field with its help text and limits.

    Args:
      default: the value without a flag; None where the dataset or the number of images decides.
      help_text: what `--help` says.
      **limits: `at_least`, `above` and `below` for numbers, `choices` for texts.
    """
    return dataclasses.field(default=default, metadata={"help": help_text, **limits})


ENVIRONMENT = ("data_dir", "download", "strategy")
"""Settings of where a run is trained; they may differ when it is resumed."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """All settings of a run; the defaults are the CIFAR recipe of the code the paper grew from.

    `train.main` has a flag for each.
    """

    backbone: str = setting("resnet20", "Network that classifies: resnet20, resnet164, ...")
    gater: str = setting("resnet20", "Network that gates it, named alike; 'none' for no gates.")
    width: int = setting(16, "Base channels of the backbone; the paper's have 16.", at_least=1)
    attention: str = setting(
        "none",
        "'se' scales channels by squeeze-and-excitation instead of gates; needs --gater=none.",
        choices=("none", "se"),
    )
    dataset: str = setting(
        "cifar10",
        "'digits' (needs no network), idx:DIR for MNIST-format files, folder:DIR for pictures in "
        "DIR/train/CLASS and DIR/test/CLASS or in DIR/CLASS, or the name of a TFDS dataset.",
    )
    data_dir: str | None = setting(None, "TFDS directory to read and prepare datasets in.")
    download: bool = setting(True, "Whether a dataset that is not on disk may be downloaded.")
    skip_unreadable: bool = setting(
        False, "Whether pictures of folder:DIR that cannot be read are left out."
    )
    image_size: int = setting(
        0, "Side of the pictures in pixels; 0: the dataset's own.", at_least=0
    )
    resize: int | None = setting(
        None,
        "Pixels that the shorter side has before the central crop of evaluation and serving; 0: no "
        "crop; default: the dataset's, 256 for imagenet2012.",
        at_least=0,
    )
    crop_padding: int | None = setting(
        None, "Pixels to pad before the random crop; default: the dataset's.", at_least=0
    )
    flip: bool | None = setting(None, "Random horizontal flips; default: the dataset's.")
    resized_crop: bool | None = setting(
        None,
        "Random parts of the pictures, scaled to --image_size (Inception's crop); default: the "
        "dataset's, which is true for imagenet2012.",
    )
    validation: float | None = setting(
        None,
        "Share of the training images held out; default 0.1, above 200,000 images 0.01.",
        at_least=0,
        below=1,
    )
    epochs: int = setting(160, "Passes over the training images.", at_least=1)
    steps_per_epoch: int | None = setting(
        None, "Ends each epoch after so many steps; default: all images.", at_least=1
    )
    batch_size: int = setting(128, "Images per step, over all replicas.", at_least=1)
    optimizer: str = setting("sgd", "SGD with Nesterov momentum, or Adam.", choices=("sgd", "adam"))
    learning_rate: float = setting(0.1, "At the start, after the warm-up.", above=0)
    schedule: str = setting(
        "step",
        "Learning rate: divided by 10 after 1/2 and 3/4 of the training, or half a cosine to 0.",
        choices=("step", "cosine"),
    )
    warmup_epochs: float = setting(0.0, "Epochs of linear rise to the learning rate.", at_least=0)
    momentum: float = setting(0.9, "Nesterov momentum of SGD.", at_least=0, below=1)
    weight_decay: float = setting(
        1e-4, "w in gradient + w * kernel, as PyTorch defines it.", at_least=0
    )
    label_smoothing: float = setting(
        0.0, "Share of each label that is spread over all classes.", at_least=0, below=1
    )
    sparsity: float = setting(
        0.1, "Weight lambda of the sparsity loss lambda * ||g||_1 / c.", at_least=0
    )
    sparsity_warmup_epochs: float = setting(0.0, "Epochs of linear rise to lambda.", at_least=0)
    gated_convs: str = setting(
        "last", "Which convolutions of a residual unit are gated.", choices=("last", "all")
    )
    bottleneck: int = setting(8, "Units before the gater's last layer.", at_least=1)
    head_batch_norm: bool = setting(True, "Batch normalisation in the gater's bottleneck.")
    gate_bias: float = setting(
        0.0, "Bias of the gates at the start; above 0 most are on then. The paper has 0."
    )
    select: str = setting(
        "best",
        "The epoch whose weights the run ends with: best on the validation images, or the last.",
        choices=("best", "last"),
    )
    seed: int = setting(0, "Seed of weights, gate noise, order and crops.", at_least=0)
    strategy: str = setting(
        "auto",
        "Devices: 'auto' takes all GPUs if there are several, 'none' one device, 'mirrored' a "
        "replica on every GPU or logical CPU, 'multi_worker' the same on every machine of the "
        "environment variable TF_CONFIG.",
        choices=("auto", "none", "mirrored", "multi_worker"),
    )
    synchronized_batch_norm: bool = setting(
        True, "Whether replicas share the moments of batch normalisation."
    )
    dtype_policy: str = setting(
        "float32",
        "Precision of the computation; weights, gates and losses stay float32.",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    jit_compile: bool = setting(False, "Whether XLA compiles the training step.")
    steps_per_execution: int = setting(
        1, "Steps that TensorFlow takes in one call; one device only.", at_least=1
    )
    deterministic: bool = setting(
        False, "Whether two runs give the same weights to the bit; slower on a GPU."
    )

    def check(self) -> None:
        """Checks each setting, and that they fit each other, before anything is opened.

        Raises:
          UserError: naming the flag, what it was and what it may be.
        """
        from gaternet_tf.errors import UserError
        from gaternet_tf.models import NO_GATER, resnet_spec

        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if problem := _problem(value, **field.metadata):
                raise UserError(f"--{field.name} must be {problem}, got {value}")
        if self.dataset.startswith("folder:") and not self.image_size:
            raise UserError(
                f"the pictures of '{self.dataset}' have no common size; give --image_size=PIXELS"
            )
        if self.attention != "none" and self.gater != NO_GATER:
            raise UserError(
                f"--attention={self.attention} takes the place of the gates and needs "
                f"--gater=none, got --gater={self.gater}"
            )
        if self.deterministic and self.jit_compile:
            raise UserError(
                "--deterministic does not go with --jit_compile: XLA chooses algorithms by their "
                "speed and has no deterministic form of some operations; leave one out"
            )
        if self.strategy == "multi_worker" and (self.jit_compile or self.steps_per_execution > 1):
            raise UserError(
                "--strategy=multi_worker runs one step at a time, uncompiled; leave out "
                "--jit_compile and --steps_per_execution"
            )
        resnet_spec(self.backbone, self.width)
        if self.gater != NO_GATER:
            resnet_spec(self.gater)


def _problem(value, help, at_least=None, above=None, below=None, choices=None):
    """Returns what a value must be and is not, or None."""
    if value is None:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if choices and value not in choices:
        return f"one of {', '.join(choices)}"
    if at_least is not None and value < at_least:
        return f"{at_least} or more"
    if above is not None and value <= above:
        return f"above {above}"
    if below is not None and value >= below:
        return f"below {below}"
    return None
