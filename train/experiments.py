"""Named experiments: the rows of the paper's comparison, and the same on Fashion-MNIST.

`python -m train.main --experiment=NAME` runs one; flags given beside it override its settings.
"""

import dataclasses
import difflib
import fnmatch
import textwrap

from gaternet_tf.errors import UserError

SMOKE = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 16}
"""What `--smoke` changes: enough to see that everything runs, in a minute on a CPU."""
WIDE = {"resnet20": 23, "resnet56": 18, "resnet164": 18}
"""Base channels of `wide`: those whose parameters come nearest to the gated network's."""
SPEED = {"resnet20": 900, "resnet56": 300, "resnet164": 60}
"""Images per second that the plain network trains on 2 CPU cores; a gated one half as many."""

CIFAR = {"epochs": 160}
FASHION = {
    # Where Debian's package `dataset-fashion-mnist` puts the files.
    "dataset": "idx:/usr/share/datasets/fashion-mnist",
    "epochs": 10,
    "schedule": "cosine",
    "crop_padding": 2,
    "flip": True,
}
OPEN = {"gater": "resnet20", "head_batch_norm": False, "gate_bias": 2.0}
PRETRAINED = {**OPEN, "gater": "runs/fashion-resnet20-plain-{seed}/model.keras"}
KINDS: dict[str, tuple[str, dict]] = {
    "plain": (
        """The backbone alone.

The baseline of the paper's tables, by the same code as the gated network.""",
        {"gater": "none"},
    ),
    "wide": (
        """A wider backbone alone.

More base channels than 16, for about the gated network's parameters: the paper's control for the
gater's parameters. It does not print its widths; these come nearest to `gated`. ResNet-20 has 23
base channels and on CIFAR-10 561,000 parameters (gated 548,000), ResNet-56 18 and 1,082,000
(1,137,000), ResNet-164 18 and 2,046,000 (1,957,000).""",
        {"gater": "none"},
    ),
    "se": (
        """Squeeze-and-excitation.

It stands where the gates would be: the paper's control for attention within a layer. Ratio 16, as
in Hu et al.""",
        {"gater": "none", "attention": "se"},
    ),
    "gated": (
        """The paper's head.

The formula of the paper's section 3, with batch normalisation in the gater's bottleneck. The
paper does not print its recipe: this is that of the code it grew from.""",
        {"gater": "resnet20"},
    ),
    "gated-released": (
        """The released head.

That of the authors' code: like `gated`, without batch normalisation in the gater's bottleneck.""",
        {"gater": "resnet20", "head_batch_norm": False},
    ),
    "gated-open": (
        """Gates that start on.

Like `gated-released`, with a bias of 2 on the gates' pre-activations at the start, so that
nearly all filters are on until the sparsity loss switches them off. A departure from the paper.""",
        OPEN,
    ),
    **{
        f"gated-open-lambda{sparsity:g}": (
            f"Start on, lambda {sparsity:g}.\n\nLike `gated-open`, which has lambda 0.1.",
            {**OPEN, "sparsity": sparsity},
        )
        for sparsity in (0.0, 0.01, 0.03)
    },
    "gated-pretrained": (
        """Pre-trained gater.

Like `gated-open-lambda0.03`, with a gater that starts from the weights of the plain ResNet-20 of
the same seed, which must have been trained before (`fashion-resnet20-plain`).""",
        {**PRETRAINED, "sparsity": 0.03},
    ),
    **{
        f"gated-pretrained-lambda{sparsity:g}": (
            f"Pre-trained, lambda {sparsity:g}.\n\nLike `gated-pretrained`, which has lambda 0.03.",
            {**PRETRAINED, "sparsity": sparsity},
        )
        for sparsity in (0.0, 0.01)
    },
}
PAPER = ("plain", "wide", "se", "gated", "gated-released")
LONG = ("plain", "wide", "gated-open")
DATASETS = {
    "cifar10": (45_000, {"dataset": "cifar10", **CIFAR}, SPEED, PAPER),
    "cifar100": (45_000, {"dataset": "cifar100", **CIFAR}, SPEED, PAPER),
    "fashion": (54_000, FASHION, SPEED, KINDS),
    "fashion30": (54_000, {**FASHION, "epochs": 30}, ["resnet20"], LONG),
}
"""By prefix: number of training images, settings, backbones and kinds."""
RESULTS = {
    "fashion-resnet20-plain": "93.09, 93.21, 92.55 %",
    "fashion-resnet20-wide": "93.22, 93.13 % in float32 on a CPU",
    "fashion-resnet20-se": "92.89, 92.97 % in float32 on a CPU",
    "fashion-resnet20-gated": "87.92, 91.57 %, 39 % of gates on",
    "fashion-resnet20-gated-released": "92.28, 92.51 %, 36 % of gates on",
    "fashion-resnet20-gated-open": "92.85, 92.76, 92.72 %, 54 % of gates on",
    "fashion-resnet20-gated-open-lambda0": "92.93, 93.06 %, 97 % of gates on",
    "fashion-resnet20-gated-open-lambda0.01": "93.08, 93.18 %, 98 % of gates on",
    "fashion-resnet20-gated-open-lambda0.03": "92.88, 92.90, 92.88 %, 92 % of gates on",
    "fashion-resnet20-gated-pretrained": "93.42, 93.35 %, 38 % of gates on",
    "fashion-resnet20-gated-pretrained-lambda0": "93.55, 93.46 %, on a CPU, 66 % of gates on",
    "fashion-resnet56-gated-pretrained-lambda0.01": "91.92 %, on a CPU, 79 % of gates on",
    "fashion-resnet56-plain": "92.23, 92.04, 90.94 %",
    "fashion-resnet56-wide": "92.17, 91.90, 92.10 %",
    "fashion-resnet56-se": "93.21, 93.09, 93.30 %",
    "fashion-resnet56-gated-open": "91.74, 90.62, 92.51 %, 45 % of gates on",
    "fashion-resnet56-gated-open-lambda0": "91.49, 91.22, 91.69 %, 74 % of gates on",
    "fashion-resnet56-gated-open-lambda0.03": "91.86, 91.74, 91.63 %, 60 % of gates on",
    "fashion30-resnet20-plain": "94.27, 93.88 %",
    "fashion30-resnet20-wide": "94.08, 94.42 %",
    "fashion30-resnet20-gated-open": "93.81, 93.84 %, 45 % of gates on",
}
"""Test accuracies of seeds 0, 1 and 2; docs/fashion-mnist.md says more."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A name, the lab note, the settings of `TrainingConfig` that it changes, its CPU hours."""

    name: str
    note: str
    settings: dict
    hours: float

    def smoke(self) -> dict:
        """Returns its settings for the smallest run through the same code, with the same units."""
        bottleneck = self.settings["backbone"] == "resnet164"
        settings = {**self.settings, **SMOKE, "backbone": "resnet11" if bottleneck else "resnet8"}
        if settings["gater"] != "none":
            settings["gater"] = "resnet8"
        return settings


def _experiment(prefix, backbone, kind):
    name = f"{prefix}-{backbone}-{kind}"
    images, data_settings, _, _ = DATASETS[prefix]
    description, kind_settings = KINDS[kind]
    settings = {"backbone": backbone, **data_settings, **kind_settings}
    if kind == "wide":
        settings["width"] = WIDE[backbone]
    speed = SPEED[backbone] / (1 if settings["gater"] == "none" else 2)
    hours = images * settings["epochs"] / speed / 3600
    note = (
        f"{description}\n\n"
        f"Command: python -m train.main --experiment={name}\n"
        f"Expected cost: {hours:.1f} hours on 2 CPU cores with AVX-512, twice to thrice that "
        "without"
    )
    if name in RESULTS:
        note += "\nTest accuracy by seed, in bfloat16 on a GPU unless stated otherwise: "
        note += RESULTS[name]
    return Experiment(name, note, settings, hours)


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        _experiment(prefix, backbone, kind)
        for prefix, (_, _, backbones, kinds) in DATASETS.items()
        for backbone in backbones
        for kind in kinds
    )
}


def is_pattern(name: str | None) -> bool:
    """Returns whether `--experiment=name` asks for a list instead of a run."""
    return name == "help" or bool(name and set(name) & set("*?["))


def find_experiment(name: str) -> Experiment:
    """Returns the experiment of a name.

    Raises:
      UserError: when there is none.
    """
    if name not in EXPERIMENTS:
        similar = difflib.get_close_matches(name, EXPERIMENTS)
        guess = f"; did you mean {' or '.join(similar)}?" if similar else ""
        raise UserError(
            f"--experiment must be one of those that --experiment=help lists, got '{name}'{guess}"
        )
    return EXPERIMENTS[name]


def list_experiments(pattern: str = "*") -> str:
    """Returns a line for each experiment whose name matches; for a single one its lab note.

    Raises:
      UserError: when none matches.
    """
    names = fnmatch.filter(EXPERIMENTS, pattern)
    if not names:
        raise UserError(f"no experiment matches '{pattern}'; --experiment=help lists all")
    if len(names) == 1:
        return f"{names[0]}\n{textwrap.indent(EXPERIMENTS[names[0]].note, '  ')}"
    width = max(map(len, names))
    lines = [f"{'experiment':{width}}  hours  what"]
    for name in names:
        experiment = EXPERIMENTS[name]
        lines.append(f"{name:{width}}  {experiment.hours:5.1f}  {experiment.note.splitlines()[0]}")
    lines.append("Hours of 2 CPU cores. A pattern that one name matches shows its lab note.")
    return "\n".join(lines)
