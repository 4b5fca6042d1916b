"""The paper's comparison table from finished runs."""

import csv
import dataclasses
import io
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence

from gaternet_tf.errors import UserError
from gaternet_tf.runs import RunDirectory, open_run
from train.config import TrainingConfig

COLUMNS = (
    "dataset",
    "model",
    "parameters",
    "gates",
    "gates on",
    "MACs",
    "MACs without off filters",
    "test error",
    "runs",
    "Pareto",
)
NOT_THE_MODEL = ("seed", "data_dir", "download", "strategy")


@dataclasses.dataclass(frozen=True)
class Row:
    """The runs of one model on one dataset, which differ in their seed only.

    Attributes:
      gate_rate: share of gates that are on, mean over the runs; None without gates.
      macs: multiply-accumulates of an image, see `gaternet_tf.macs`.
      macs_on: the same without off filters, mean over images and runs.
      accuracies: test accuracy of each run.
      pareto: whether no other row of the dataset beats this one: none is at least as accurate with
        at most as many `macs_on`, and better in one of the two.
    """

    dataset: str
    model: str
    parameters: int
    gates: int
    gate_rate: float | None
    macs: int
    macs_on: float
    accuracies: tuple[float, ...]
    pareto: bool = True

    @property
    def accuracy(self) -> float:
        """Mean of `accuracies`."""
        return statistics.mean(self.accuracies)

    def beats(self, other: "Row") -> bool:
        """Returns whether this row is better in one of accuracy and `macs_on`, worse in none."""
        ours, theirs = (self.accuracy, -self.macs_on), (other.accuracy, -other.macs_on)
        return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))


def compare(workdirs: Iterable[str | os.PathLike]) -> list[Row]:
    """Returns a row for each group of finished runs that differ in their seed only.

    Groups that would have the same name get the settings by which they differ after it.

    Raises:
      UserError: for a directory that is no finished run with a test accuracy, or two runs with the
        same settings and seed.
    """
    groups: list[list[RunDirectory]] = []
    for workdir in workdirs:
        run = open_run(workdir)
        if "test_accuracy" not in run.result:
            raise UserError(
                f"a table needs runs with a test accuracy, and '{workdir}' has none (it was "
                "converted); measure it with python -m train.evaluate"
            )
        for group in groups:
            if _settings(group[0]) == _settings(run):
                _require_another_seed(group, run)
                group.append(run)
                break
        else:
            groups.append([run])
    names = _names([runs[0] for runs in groups])
    rows = [_row(runs, name) for runs, name in zip(groups, names, strict=True)]
    return [
        dataclasses.replace(
            row, pareto=not any(r.beats(row) for r in rows if r.dataset == row.dataset)
        )
        for row in rows
    ]


def _require_another_seed(group, run):
    for other in group:
        if other.config["seed"] == run.config["seed"]:
            raise UserError(
                f"a table counts every seed once, and '{other.path}' and '{run.path}' have the "
                f"same settings and the same --seed={run.config['seed']}; leave one out"
            )


def _settings(run):
    """Returns what makes a run's model; a setting that is newer than the run has its default."""
    defaults = dataclasses.asdict(TrainingConfig())
    return {
        key: value for key, value in (defaults | run.config).items() if key not in NOT_THE_MODEL
    }


def _names(runs: Sequence[RunDirectory]) -> Iterator[str]:
    """Yields the runs' model names, with the settings that differ where names are the same."""
    same_name: dict[tuple, list[dict]] = {}
    for run in runs:
        same_name.setdefault((_dataset(run), model_name(run.config)), []).append(_settings(run))
    for run in runs:
        name = model_name(run.config)
        others = same_name[_dataset(run), name]
        for key, value in _settings(run).items():
            if any(value != settings.get(key) for settings in others):
                name += f", {key} {'default' if value is None else value}"
        yield name


def _dataset(run):
    return run.document["dataset"]["name"]


def model_name(config: dict) -> str:
    """Returns a row's name, for example `resnet20, gated by resnet20, lambda 0.1`."""
    name = config["backbone"]
    if config["width"] != 16:
        name += f", width {config['width']}"
    if config["attention"] != "none":
        return f"{name}, squeeze-and-excite"
    if config["gater"] == "none":
        return name
    name += f", gated by {config['gater']}, lambda {config['sparsity']:g}"
    if not config["head_batch_norm"]:
        name += ", head without batch norm"
    if config["gated_convs"] != "last":
        name += ", all convolutions"
    if bias := config.get("gate_bias"):
        name += f", gate bias {bias:g}"
    return name


def _row(runs, name):
    results = [run.result for run in runs]
    rates = [result["gate_rate"] for result in results if "gate_rate" in result]
    return Row(
        dataset=_dataset(runs[0]),
        model=name,
        parameters=results[0]["parameters"],
        gates=results[0].get("gates", 0),
        gate_rate=statistics.mean(rates) if rates else None,
        macs=results[0]["macs"],
        macs_on=statistics.mean(result["macs_on"] for result in results),
        accuracies=tuple(result["test_accuracy"] for result in results),
    )


def _cells(row):
    errors = [100 * (1 - accuracy) for accuracy in row.accuracies]
    spread = f" +- {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    return [
        row.dataset,
        row.model,
        f"{row.parameters:,}",
        str(row.gates or "-"),
        "-" if row.gate_rate is None else f"{row.gate_rate:.1%}".replace("%", " %"),
        f"{row.macs / 1e6:.1f} M",
        f"{row.macs_on / 1e6:.1f} M",
        f"{statistics.mean(errors):.2f}{spread} %",
        str(len(row.accuracies)),
        "yes" if row.pareto else "no",
    ]


def as_markdown(rows: Sequence[Row]) -> str:
    """Returns the table in Markdown.

    The error is the mean over the runs, with the standard deviation (of n - 1) if there are more.
    """
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(_cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_csv(rows: Sequence[Row]) -> str:
    """Returns the same table for a spreadsheet."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *map(_cells, rows)])
    return text.getvalue().rstrip("\n")
