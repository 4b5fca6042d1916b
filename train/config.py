"""The settings of a training run: default, meaning, limits and choices of each, once.

Imports neither TensorFlow nor Keras, so that `python -m train.main --help` answers at once.
"""

import dataclasses
import math
import os
import re
from typing import Any


def setting(group: str, default, help_text: str, **limits) -> Any:
    """Returns a dataclass field with its place in the help, help text and limits.

    Args:
      group: heading under which `--help` shows it.
      default: the value without a flag; None where the dataset or the number of images decides.
      help_text: what `--help` says.
      **limits: `at_least`, `above` and `below` for numbers, `choices` for texts, and for a
        path `path`, the suffixes that tell it from a name.
    """
    return dataclasses.field(
        default=default, metadata={"group": group, "help": help_text, **limits}
    )


ANY, NETWORK_FILES = ("",), (".keras", ".h5")
DATA, NETWORK, GATES, OPTIMISATION, RUN = "Data", "Network", "Gates", "Optimisation", "Run"
ENVIRONMENT = ("data_dir", "download", "strategy")
"""Settings of where a run is trained; they may differ when it is resumed."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """All settings of a run; the defaults are the CIFAR recipe of the code the paper grew from.

    `train.main` has a flag for each.
    """

    dataset: str = setting(
        DATA,
        "cifar10",
        "What to train on: 'digits' (1,797 pictures, needs no network), folder:DIR for pictures in "
        "DIR/train/CLASS and DIR/test/CLASS or in DIR/CLASS, idx:DIR for MNIST-format files, or "
        "the name of a TFDS dataset.",
    )
    data_dir: str | None = setting(
        DATA,
        None,
        "TFDS directory to read and prepare datasets in; default: ~/tensorflow_datasets.",
        path=ANY,
    )
    download: bool = setting(DATA, True, "Whether a dataset that is not on disk may be downloaded.")
    skip_unreadable: bool = setting(
        DATA,
        False,
        "Whether pictures of folder:DIR that cannot be read are left out instead of refused.",
    )
    image_size: int = setting(
        DATA,
        0,
        "Side of the network's pictures in pixels, required for folder:DIR; 0: the dataset's own.",
        at_least=0,
    )
    resize: int | None = setting(
        DATA,
        None,
        "Pixels that the shorter side has before the central crop of evaluation and serving; 0: no "
        "crop; default: the dataset's, 256 for imagenet2012.",
        at_least=0,
    )
    normalize: bool = setting(
        DATA,
        True,
        "Whether pictures are normalised: as the backbone's weights require, where that is known, "
        "else by the dataset's mean and deviation. --nonormalize gives pixels from 0 to 255.",
    )
    crop_padding: int | None = setting(
        DATA,
        None,
        "Pixels to pad before the random crop of training; default: the dataset's, 4 for CIFAR.",
        at_least=0,
    )
    flip: bool | None = setting(
        DATA,
        None,
        "Whether half of the training pictures are flipped horizontally; default: the dataset's.",
    )
    resized_crop: bool | None = setting(
        DATA,
        None,
        "Whether training takes random parts of the pictures, scaled to --image_size (Inception's "
        "crop); default: the dataset's, which is true for imagenet2012.",
    )
    validation: float | None = setting(
        DATA,
        None,
        "Share of the training images held out to validate; default: 0.1, above 200,000 images "
        "0.01.",
        at_least=0,
        below=1,
    )
    backbone: str = setting(
        NETWORK,
        "resnet20",
        "Network that classifies: resnetD for small images (resnet20, resnet164, any legal depth), "
        "imagenet-resnetD (18, 34, 50, 101, 152), densenet-bc-DEPTH-GROWTH, keras:NAME for a CNN "
        "of keras.applications, such as keras:MobileNetV2, or a .keras file.",
        path=NETWORK_FILES,
    )
    weights: str | None = setting(
        NETWORK,
        None,
        "The backbone's weights at the start: 'imagenet' for keras:NAME, the file of another "
        "network with the same layers (.keras, such as a run's model.keras, or for keras:NAME "
        ".weights.h5), or 'none' for new weights of a .keras file; default: new ones, of a .keras "
        "file its own. The pictures are normalised as these weights require.",
        path=NETWORK_FILES,
    )
    width: int = setting(NETWORK, 16, "Base channels of resnetD; the paper's have 16.", at_least=1)
    attention: str = setting(
        NETWORK,
        "none",
        "'se' scales the channels of resnetD by squeeze-and-excitation; needs --gater=none.",
        choices=("none", "se"),
    )
    init_from: str | None = setting(
        NETWORK,
        None,
        "Finished run of the same network whose weights are those at the start; default: random "
        "weights.",
        path=ANY,
    )
    gater: str = setting(
        GATES,
        "resnet20",
        "Network that gates the backbone, named alike; {seed} in a file's name stands for --seed; "
        "'none' for the plain backbone.",
        path=NETWORK_FILES,
    )
    gater_size: int = setting(
        GATES,
        0,
        "Side in pixels to which the gater's pictures are scaled; 0: the backbone's.",
        at_least=0,
    )
    gated_convs: str = setting(
        GATES,
        "last",
        "Which convolutions are gated: the 'last' of each branch that a sum or a concatenation "
        "ends, as in the paper, 'all', or a regular expression of names that train.summary shows.",
    )
    sparsity: float = setting(
        GATES, 0.1, "Weight lambda of the sparsity loss lambda * ||g||_1 / c.", at_least=0
    )
    sparsity_warmup_epochs: float = setting(
        GATES, 0.0, "Epochs in which lambda rises linearly to --sparsity.", at_least=0
    )
    gate_bias: float = setting(
        GATES,
        0.0,
        "Bias of the gates' pre-activations at the start; with 2 most gates are on then. The paper "
        "has 0.",
    )
    bottleneck: int = setting(
        GATES, 8, "Units of the layer before the gater's last; the paper's b.", at_least=1
    )
    head_batch_norm: bool = setting(
        GATES,
        True,
        "Whether the gater's bottleneck is batch-normalised, as in the paper and not in the "
        "authors' released code.",
    )
    epochs: int = setting(OPTIMISATION, 160, "Passes over the training images.", at_least=1)
    steps_per_epoch: int | None = setting(
        OPTIMISATION,
        None,
        "Ends each epoch after so many steps; default: after all images.",
        at_least=1,
    )
    batch_size: int = setting(
        OPTIMISATION, 128, "Images per step, over all replicas together.", at_least=1
    )
    optimizer: str = setting(
        OPTIMISATION, "sgd", "SGD with Nesterov momentum, or Adam.", choices=("sgd", "adam")
    )
    learning_rate: float = setting(
        OPTIMISATION, 0.1, "Learning rate at the start, after the warm-up.", above=0
    )
    schedule: str = setting(
        OPTIMISATION,
        "step",
        "Learning rate over the epochs: divided by 10 after 1/2 and 3/4 of them, or half a cosine "
        "to 0.",
        choices=("step", "cosine"),
    )
    warmup_epochs: float = setting(
        OPTIMISATION,
        0.0,
        "Epochs in which the learning rate rises linearly to --learning_rate.",
        at_least=0,
    )
    momentum: float = setting(
        OPTIMISATION, 0.9, "Nesterov momentum of --optimizer=sgd.", at_least=0, below=1
    )
    weight_decay: float = setting(
        OPTIMISATION, 1e-4, "w in gradient + w * kernel, as PyTorch defines it.", at_least=0
    )
    label_smoothing: float = setting(
        OPTIMISATION,
        0.0,
        "Share of each label that is spread over all classes.",
        at_least=0,
        below=1,
    )
    freeze_backbone_epochs: int = setting(
        OPTIMISATION,
        0,
        "First epochs in which only the gater and the classifier are trained.",
        at_least=0,
    )
    select: str = setting(
        OPTIMISATION,
        "best",
        "The epoch whose weights the run ends with: best on the validation images, or the last.",
        choices=("best", "last"),
    )
    seed: int = setting(
        RUN, 0, "Seed of weights, gate noise, validation images, order and crops.", at_least=0
    )
    strategy: str = setting(
        RUN,
        "auto",
        "Devices: 'auto' takes all GPUs if there are several, 'none' one device, 'mirrored' a "
        "replica on every GPU or logical CPU, 'multi_worker' the same on every machine of the "
        "environment variable TF_CONFIG.",
        choices=("auto", "none", "mirrored", "multi_worker"),
    )
    synchronized_batch_norm: bool = setting(
        RUN, True, "Whether replicas share the moments of batch normalisation."
    )
    dtype_policy: str = setting(
        RUN,
        "float32",
        "Precision of the computation; weights, gates and losses stay float32.",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    jit_compile: bool = setting(
        RUN, False, "Whether XLA compiles the training step; one device only."
    )
    steps_per_execution: int = setting(
        RUN, 1, "Steps that TensorFlow takes in one call; one device only.", at_least=1
    )
    deterministic: bool = setting(
        RUN, False, "Whether two runs give the same weights to the bit; slower on a GPU."
    )

    def check(self) -> None:
        """Checks each setting, and that they fit each other, before anything is opened.

        Raises:
          UserError: naming the flag, what it was and what it may be.
        """
        from gaternet_tf.errors import UserError
        from gaternet_tf.models import NO_GATER, find_backbone

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
        if self.weights and self.init_from:
            raise UserError(
                "--init_from has the weights of the whole network, and --weights those of its "
                "backbone; leave one out"
            )
        networks = {
            "backbone": self.backbone,
            "weights": self.weights or "",
            "gater": self.gater_network,
        }
        for name, path in networks.items():
            if path.endswith(NETWORK_FILES) and not os.path.isfile(path):
                raise UserError(
                    f"--{name} must be a file that exists, and '{path}' does not exist; a run has "
                    "its model.keras when it has been trained"
                )
        find_backbone(self.backbone, self.width, self.attention)
        if self.gater != NO_GATER:
            find_backbone(self.gater_network)

    @property
    def gater_network(self) -> str:
        """`gater` with the run's seed in the place of "{seed}"."""
        return self.gater.replace("{seed}", str(self.seed))


GATE_SETTINGS = tuple(
    field.name
    for field in dataclasses.fields(TrainingConfig)
    if field.metadata["group"] == GATES and field.name != "gater"
)
"""Settings that change nothing without a gater."""


def default_workdir(
    config: TrainingConfig, named: dict, experiment: str | None = None, smoke: bool = False
) -> str:
    """Returns runs/NAME, where NAME tells apart what is trained.

    That is the experiment, or dataset and backbone; each other setting that differs from its
    default, or from the experiment's; and the seed.

    Args:
      config: the settings of the run.
      named: those of the experiment, or none.
      experiment: the experiment's name.
      smoke: whether it is only tried.
    """
    usual = dataclasses.asdict(TrainingConfig(**named))
    left_out = {"seed", *ENVIRONMENT, *(GATE_SETTINGS if config.gater == "none" else ())}
    if not experiment:
        left_out |= {"dataset", "backbone"}
    parts = [experiment or f"{config.dataset}-{config.backbone}", *["smoke"] * smoke]
    parts += [
        f"{name}_{value}"
        for name, value in sorted(dataclasses.asdict(config).items())
        if name not in left_out and value != usual[name]
    ]
    name = "-".join([*parts, str(config.seed)])
    return "runs/" + re.sub(r"[^\w.-]+", "-", name)


def _problem(value, at_least=None, above=None, below=None, choices=None, **_):
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
