"""Named experiments: the rows of the paper's comparison, and the same on Fashion-MNIST.

`python -m train.main --experiment=NAME` runs one; flags given beside it override its settings.
"""

import dataclasses
import inspect
import textwrap
from collections.abc import Callable

from gaternet_tf.errors import UserError

SMOKE = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 16, "sparsity_warmup_epochs": 0.0}
"""What `--smoke` changes: enough to see that everything runs, in a minute on a CPU."""
FASHION_FILES = "idx:/usr/share/datasets/fashion-mnist"
"""Where Debian's package `dataset-fashion-mnist` puts the files."""


WIDE = {"resnet20": 23, "resnet56": 18, "resnet164": 18}
"""Base channels of `wide`: those whose parameters come nearest to the gated network's."""
SPEED = {"resnet20": 900, "resnet56": 300, "resnet164": 60}
"""Images a second that the plain network trains on 2 CPU cores; a gated one takes twice as long."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A name, the lab note, and the settings of `TrainingConfig` that it changes."""

    name: str
    note: str
    settings: dict

    @property
    def title(self) -> str:
        """The note's first line."""
        return self.note.splitlines()[0]

    def smoke(self) -> dict:
        """Its settings for the smallest run through the same code: a net of the same units."""
        bottleneck = self.settings["backbone"] == "resnet164"
        settings = {**self.settings, **SMOKE, "backbone": "resnet11" if bottleneck else "resnet8"}
        if settings["gater"] != "none":
            settings["gater"] = "resnet8"
        return settings


SEEN = {
    "fashion-resnet20-plain": "92.94, 92.75 % test accuracy (seeds 0, 1)",
    "fashion-resnet20-wide": "93.22, 93.13 % (seeds 0, 1)",
    "fashion-resnet20-se": "92.89, 92.97 % (seeds 0, 1)",
    "fashion-resnet20-gated": (
        "91.90, 90.87 % (seeds 0, 1), 39 % of gates on, 301 and 298 of 336 input-dependent"
    ),
    "fashion-resnet20-gated-open": (
        "92.82, 92.77, 92.74 % (seeds 0, 1, 2), 54 % of gates on, 31 to 57 of 336 input-dependent; "
        "with --sparsity=0 93.16, 93.00 % (seeds 0, 1), 98 % on, 34 and 35 input-dependent"
    ),
}
"""What came out on two CPU cores; docs/fashion-mnist.md says more."""
EXPERIMENTS: dict[str, Experiment] = {}


def _register(prefix: str, images: int, control: Callable, **settings) -> None:
    if control is wide:
        settings["width"] = WIDE[settings["backbone"]]
    name = f"{prefix}-{settings['backbone']}-{control.__name__.replace('_', '-')}"
    speed = SPEED[settings["backbone"]] / (1 if settings["gater"] == "none" else 2)
    hours = images * settings["epochs"] / speed / 3600
    note = (
        f"{inspect.cleandoc(control.__doc__ or '')}\n\n"
        f"Command: python -m train.main --experiment={name}\n"
        f"Expected cost: {hours:.1f} hours on 2 CPU cores with AVX-512, twice to thrice that "
        "without"
    )
    if name in SEEN:
        note += f"\nSeen here: {SEEN[name]}"
    EXPERIMENTS[name] = Experiment(name, note, settings)


def plain():
    """The backbone alone.

    The baseline of the paper's tables, by the same code as the gated network.
    """


def wide():
    """The backbone alone with more base channels than 16: about the gated network's parameters.

    The paper's control for the gater's parameters. It does not print its widths; these come nearest
    to `gated`. ResNet-20 has 23 base channels and on CIFAR-10 561,000 parameters (gated 548,000),
    ResNet-56 18 and 1,082,000 (1,137,000), ResNet-164 18 and 2,046,000 (1,957,000).
    """


def se():
    """The backbone with squeeze-and-excitation where the gates would be.

    The paper's control for attention within a layer. Ratio 16, as in Hu et al.
    """


def gated():
    """GaterNet with the paper's head, lambda 0.1.

    The formula of the paper's section 3, with batch normalisation in the gater's bottleneck. The
    paper does not print its recipe: this is that of the code it grew from.
    """


def gated_released():
    """GaterNet with the head of the authors' released code, lambda 0.1.

    Like `gated`, without batch normalisation in the gater's bottleneck.
    """


def gated_open():
    """GaterNet with the released head, whose gates begin open, lambda 0.1.

    Like `gated_released`, with a bias of 2 on the gates' pre-activations at the start, so that
    nearly all filters are on until the sparsity loss has shut them. A departure from the paper.
    """


CONTROLS: dict[Callable, dict] = {
    plain: {"gater": "none"},
    wide: {"gater": "none"},
    se: {"gater": "none", "attention": "se"},
    gated: {"gater": "resnet20"},
    gated_released: {"gater": "resnet20", "head_batch_norm": False},
}
FASHION_CONTROLS = {
    **CONTROLS,
    gated_open: {"gater": "resnet20", "head_batch_norm": False, "gate_bias": 2.0},
}
FASHION = {
    "dataset": FASHION_FILES,
    "epochs": 10,
    "schedule": "cosine",
    "crop_padding": 2,
    "flip": True,
}

for _control, _settings in CONTROLS.items():
    for _backbone in SPEED:
        for _name in ("cifar10", "cifar100"):
            _register(
                _name, 45_000, _control, dataset=_name, backbone=_backbone, epochs=160, **_settings
            )
for _control, _settings in FASHION_CONTROLS.items():
    for _backbone in SPEED:
        _register("fashion", 54_000, _control, backbone=_backbone, **FASHION, **_settings)


def find_experiment(name: str) -> Experiment:
    """The experiment of a name.

    Raises:
      UserError: naming those that there are.
    """
    if name not in EXPERIMENTS:
        raise UserError(
            f"--experiment must be one of those that --experiment=help lists, got '{name}'"
        )
    return EXPERIMENTS[name]


def list_experiments() -> str:
    """The lab notes of all experiments, for a person."""
    return "\n\n".join(
        f"{name}\n{textwrap.indent(EXPERIMENTS[name].note, '  ')}" for name in sorted(EXPERIMENTS)
    )
