"""The paper's comparison from finished runs: the table and its figure."""

import dataclasses
import json
import os
import pathlib
import statistics
from collections.abc import Iterable, Sequence

from gaternet_tf.errors import UserError
from gaternet_tf.runs import RunDirectory, open_run
from train.config import ENVIRONMENT, TrainingConfig

COLUMNS = (
    *("dataset", "model", "parameters", "gates", "gates on", "MACs", "MACs without off filters"),
    *("test error", "runs", "Pareto"),
)
LONGEST_MODEL = 90
"""Letters of a model's name that fit into the figure."""


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
    groups: dict[str, list[RunDirectory]] = {}
    for workdir in workdirs:
        run = open_run(workdir)
        if "test_accuracy" not in run.result:
            raise UserError(
                f"a table needs runs with a test accuracy, and '{workdir}' has none (it was "
                "converted); measure it with python -m train.evaluate"
            )
        group = groups.setdefault(json.dumps(_settings(run)), [])
        for other in group:
            if other.config["seed"] == run.config["seed"]:
                raise UserError(
                    f"a table counts every seed once, and '{other.path}' and '{run.path}' have the "
                    f"same settings and the same --seed={run.config['seed']}; leave one out"
                )
        group.append(run)
    names = _names([runs[0] for runs in groups.values()])
    rows = [_row(runs, name) for runs, name in zip(groups.values(), names, strict=True)]
    return [
        dataclasses.replace(
            row, pareto=not any(r.beats(row) for r in rows if r.dataset == row.dataset)
        )
        for row in rows
    ]


def _settings(run):
    """Returns what makes a run's model; a setting that is newer than the run has its default."""
    settings = dataclasses.asdict(TrainingConfig()) | run.config
    return {key: settings[key] for key in settings if key not in ("seed", *ENVIRONMENT)}


def _names(runs: Sequence[RunDirectory]) -> list[str]:
    """Returns the runs' model names, with the settings that differ where names are the same."""
    models = [(_dataset(run), model_name(run.config)) for run in runs]
    names = []
    for run, model in zip(runs, models, strict=True):
        same_name = [_settings(r) for r, m in zip(runs, models, strict=True) if m == model]
        differing = {
            key: "default" if value is None else value
            for key, value in _settings(run).items()
            if any(value != settings.get(key) for settings in same_name)
        }
        names.append(", ".join([model[1], *(f"{key} {differing[key]}" for key in differing)]))
    return names


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


def as_markdown(rows: Sequence[Row]) -> str:
    """Returns the table in Markdown.

    The error is the mean over the runs, with the standard deviation (of n - 1) if there are more.
    """
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(_cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(row):
    errors = [100 * (1 - accuracy) for accuracy in row.accuracies]
    spread = f" +- {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    return [
        row.dataset,
        row.model,
        f"{row.parameters:,}",
        str(row.gates or "-"),
        "-" if row.gate_rate is None else f"{100 * row.gate_rate:.1f} %",
        f"{row.macs / 1e6:.1f} M",
        f"{row.macs_on / 1e6:.1f} M",
        f"{statistics.mean(errors):.2f}{spread} %",
        str(len(row.accuracies)),
        "yes" if row.pareto else "no",
    ]


def write_comparison(rows: Sequence[Row], directory: pathlib.Path) -> None:
    """Writes comparison.csv with the numbers, and draws comparison.png and .svg.

    The figure has accuracy against gates on and against multiply-accumulates. The line joins the
    models that no other one beats. Models without gates are at a gate rate of 100 %.

    Raises:
      UserError: for runs of several datasets.
    """
    # Optional dependencies, which the table does without.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from gaternet_tf.analysis.figures import STYLE, class_style, literally, shown_name, write_csv

    if len(datasets := {row.dataset for row in rows}) > 1:
        raise UserError(
            f"--output_dir is for runs of one dataset, got {', '.join(sorted(datasets))}; leave it "
            "out or compare one dataset at a time"
        )
    directory.mkdir(parents=True, exist_ok=True)
    names = {"gates on": "gate rate", "test error": "test accuracy"}
    head = [names.get(column, column) for column in COLUMNS]
    write_csv(directory / "comparison.csv", [head, *map(_numbers, rows)])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.6 + 0.2 * len(rows)), layout="constrained")
        by_rate, by_macs = figure.subplots(1, 2, sharey=True)
        for number, row in enumerate(rows):
            colour, marker = class_style(number)
            label = shown_name(row.model, LONGEST_MODEL)
            style = {"color": colour, "marker": marker, "label": label}
            rate = 1.0 if row.gate_rate is None else row.gate_rate
            by_rate.scatter(100 * rate, 100 * row.accuracy, **style)
            by_macs.scatter(row.macs_on / 1e6, 100 * row.accuracy, **style)
        front = sorted((row.macs_on / 1e6, 100 * row.accuracy) for row in rows if row.pareto)
        by_macs.plot(*zip(*front, strict=True), color="black", linewidth=0.8, linestyle=":")
        by_rate.set(xlabel="gates on, %", ylabel="test accuracy, %")
        by_macs.set(xlabel="million multiply-accumulates without off filters")
        handles, labels = by_rate.get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside lower center", frameon=False)
        literally(legend.get_texts())
        figure.savefig(directory / "comparison.png", dpi=200)
        figure.savefig(directory / "comparison.svg", metadata={"Date": None})


def _numbers(row):
    rate = "" if row.gate_rate is None else row.gate_rate
    return [
        *(row.dataset, row.model, row.parameters, row.gates, rate, row.macs, row.macs_on),
        *(row.accuracy, len(row.accuracies), "yes" if row.pareto else "no"),
    ]
