"""The paper's comparison from finished runs: the table and its figure."""

import dataclasses
import fnmatch
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from statistics import mean, stdev

import numpy as np
from scipy import stats

from gaternet_tf.errors import UserError
from gaternet_tf.runs import RunDirectory, open_run
from train.config import ENVIRONMENT, GATE_SETTINGS, TrainingConfig

COLUMNS = (
    *("dataset", "model", "parameters", "gates", "gates on", "MACs", "MACs without off filters"),
    *("test error", "difference", "p-value", "seeds", "Pareto"),
)
BASELINE = {"gater": "none", "attention": "none", "width": 16}
"""The plain backbone, to which others with the same recipe are compared."""
PAIRED = 3
"""Seeds that two rows must share to be compared seed by seed; two differences say too little."""
LONGEST_MODEL = 90
"""Letters of a model's name that fit into the figure."""
LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}
"""What LaTeX needs in place of a letter."""


@dataclasses.dataclass(frozen=True)
class Row:
    """The runs of one model on one dataset, which differ in their seed only.

    Attributes:
      gate_rates: share of gates that are on, of each run; empty without gates.
      macs: multiply-accumulates of an image, see `gaternet_tf.macs`.
      macs_on: the same without off filters, mean over images, of each run.
      seeds: of each run, ascending.
      accuracies: test accuracy of each run.
      difference: mean test error minus that of the baseline, the plain backbone with the same
        recipe by default; over the seeds that both have if these are three or more, else over all.
        None if the baseline is not among the runs.
      p_value: of the t-test for that difference, paired by seed or Welch's; None without a
        baseline, with a single run, or where the test error does not vary.
      pareto: whether no other row of the dataset beats this one: none is at least as accurate with
        at most as many MACs without off filters, and better in one of the two, on average.
    """

    dataset: str
    model: str
    parameters: int
    gates: int
    gate_rates: tuple[float, ...]
    macs: int
    macs_on: tuple[float, ...]
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    difference: float | None = None
    p_value: float | None = None
    pareto: bool = True

    def beats(self, other: "Row") -> bool:
        """Returns whether this row is better in one of accuracy and `macs_on`, worse in none."""
        ours, theirs = ((mean(row.accuracies), -mean(row.macs_on)) for row in (self, other))
        return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))


def compare(workdirs: Iterable[str | os.PathLike], against: str | None = None) -> list[Row]:
    """Returns a row for each group of finished runs that differ in their seed only.

    Rows are ordered by dataset and backbone; the plain backbone comes first, then the others
    without gates, then the gated ones by lambda. Groups that would have the same name get the
    settings by which they differ after it.

    Args:
      workdirs: directories of the runs.
      against: a pattern, such as `*squeeze*`, of the name of the baseline to compare with; default:
        the plain backbone. Every recipe has a baseline of its own.

    Raises:
      UserError: for a directory that is no finished run with a test accuracy, two runs with the
        same settings and seed, or a pattern that matches no row or several rows of a recipe.
    """
    groups: dict[str, list[RunDirectory]] = {}
    for workdir in workdirs:
        run = open_run(workdir, "a run of the table")
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
    ordered = sorted(groups.values(), key=lambda runs: _order(runs[0]))
    first_runs = [runs[0] for runs in ordered]
    rows = [_row(runs, name) for runs, name in zip(ordered, _names(first_runs), strict=True)]
    baselines = _baselines(first_runs, rows, against)
    return [
        dataclasses.replace(
            row,
            **(_difference(row, base) if base else {}),
            pareto=not any(r.beats(row) for r in rows if r.dataset == row.dataset),
        )
        for row, base in zip(rows, map(baselines.get, map(_recipe, first_runs)), strict=True)
    ]


def _baselines(runs, rows, against):
    """Returns the row to compare with, by recipe."""
    baselines: dict[str, Row] = {}
    for run, row in zip(runs, rows, strict=True):
        if fnmatch.fnmatchcase(row.model, against) if against else _is_baseline(run):
            if other := baselines.get(_recipe(run)):
                raise UserError(
                    f"--against must match one row of a recipe, got '{against}', which matches "
                    f"'{other.model}' and '{row.model}'; give more of the name"
                )
            baselines[_recipe(run)] = row
    if against and not baselines:
        models = ", ".join(f"'{row.model}'" for row in rows)
        raise UserError(
            f"--against must match the name of a row, got '{against}'; the rows are {models}"
        )
    return baselines


def _difference(row, base):
    """Returns the difference to the baseline and its p-value, both of the same runs."""
    ours, theirs = (dict(zip(r.seeds, r.accuracies, strict=True)) for r in (row, base))
    pairs = [theirs[seed] - ours[seed] for seed in ours.keys() & theirs.keys()]
    if paired := len(pairs) >= PAIRED:
        samples, difference = [pairs], mean(pairs)
    else:
        samples = [base.accuracies, row.accuracies]
        difference = mean(base.accuracies) - mean(row.accuracies)
    p_value = None
    # Without a spread, as when all seeds have the same difference by chance, p would be 0.
    varies = min(map(len, samples)) > 1 and all(np.ptp(sample) > 1e-9 for sample in samples)
    if varies and row is not base:
        test = stats.ttest_1samp(pairs, 0) if paired else stats.ttest_ind(*samples, equal_var=False)
        p_value = float(test.pvalue)
    return {"difference": difference, "p_value": p_value}


def _settings(run):
    """Returns what makes a run's model; a setting that is newer than the run has its default."""
    settings = dataclasses.asdict(TrainingConfig()) | run.config
    unused = GATE_SETTINGS if settings["gater"] == "none" else ()
    return {key: settings[key] for key in settings if key not in ("seed", *ENVIRONMENT, *unused)}


def _recipe(run):
    """Returns what a run has in common with its baseline."""
    settings = _settings(run)
    common = {key: settings[key] for key in settings if key not in (*BASELINE, *GATE_SETTINGS)}
    return json.dumps([_dataset(run), common])


def _order(run):
    """Returns what the rows are sorted by; resnet20 comes before resnet164."""
    settings = _settings(run)
    backbone, lambda_ = settings["backbone"], settings.get("sparsity", 0.0)
    kind = [not _is_baseline(run), *(settings[key] != "none" for key in ("gater", "attention"))]
    return _dataset(run), len(backbone), backbone, *kind, settings["width"], lambda_


def _is_baseline(run):
    return all(run.config[key] == value for key, value in BASELINE.items())


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
    runs = sorted(runs, key=lambda run: run.config["seed"])
    results = [run.result for run in runs]
    return Row(
        dataset=_dataset(runs[0]),
        model=name,
        parameters=results[0]["parameters"],
        gates=results[0].get("gates", 0),
        gate_rates=tuple(result["gate_rate"] for result in results if "gate_rate" in result),
        macs=results[0]["macs"],
        macs_on=tuple(result["macs_on"] for result in results),
        seeds=tuple(run.config["seed"] for run in runs),
        accuracies=tuple(result["test_accuracy"] for result in results),
    )


def as_markdown(rows: Sequence[Row]) -> str:
    """Returns the table in Markdown.

    Gates on, MACs without off filters and the error are means over the runs, with the standard
    deviation (of n - 1) if there are several.
    """
    head, *lines = _table(rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def as_latex(rows: Sequence[Row]) -> str:
    """Returns the same table as a LaTeX `tabular`, which needs the package booktabs."""
    letters = str.maketrans(LATEX)
    table = [
        [re.sub(r"^-(?=\d)", "$-$", cell.translate(letters)) for cell in line]
        for line in _table(rows)
    ]
    head, *lines = (" & ".join(line) + r" \\" for line in table)
    numbers = 10
    columns = "l" * (len(table[0]) - numbers) + "r" * numbers
    begin = rf"\begin{{tabular}}{{{columns}}}", r"\toprule"
    return "\n".join((*begin, head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"))


def _table(rows):
    """Returns the heading and the rows; a dataset that is the same in all of them is left out."""
    first = len({row.dataset for row in rows}) == 1
    return [line[first:] for line in (COLUMNS, *map(_cells, rows))]


def _cells(row):
    return [
        row.dataset,
        row.model,
        f"{row.parameters:,}",
        str(row.gates or "-"),
        _mean_and_spread([100 * rate for rate in row.gate_rates], 1, "%") if row.gates else "-",
        _millions([row.macs]),
        _millions(row.macs_on if row.gates else [row.macs]),
        _mean_and_spread([100 * (1 - accuracy) for accuracy in row.accuracies], 2, "%"),
        "-" if row.difference is None else f"{100 * row.difference:+.2f}",
        "-" if row.p_value is None else f"{row.p_value:.2g}",
        _seeds(row.seeds),
        "yes" if row.pareto else "no",
    ]


def _seeds(seeds):
    """Returns the ascending seeds as `0-2` if none is left out between, else as `0,1,3`."""
    if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds))


def _millions(values):
    """Returns the mean in millions with four significant digits, but for thousandths at most."""
    millions = [value / 1e6 for value in values]
    return _mean_and_spread(millions, max(0, 4 - len(f"{mean(millions):.0f}")), "M")


def _mean_and_spread(values, decimals, unit):
    spread = f" ± {stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{mean(values):.{decimals}f}{spread} {unit}"


def write_comparison(rows: Sequence[Row], directory: pathlib.Path) -> None:
    """Writes comparison.csv with the numbers, and draws comparison.png and .svg.

    The figure has mean accuracy against gates on and against multiply-accumulates, with bars of a
    standard deviation. The line joins the models that no other one beats. Models without gates are
    at a gate rate of 100 %.

    Raises:
      UserError: for runs of several datasets.
    """
    # Optional dependencies, which the table does without.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from gaternet_tf.analysis.drawing import STYLE, class_style, literally, shown_name, write_csv

    if len(datasets := {row.dataset for row in rows}) > 1:
        raise UserError(
            f"--output_dir is for runs of one dataset, got {', '.join(sorted(datasets))}; leave it "
            "out or compare one dataset at a time"
        )
    directory.mkdir(parents=True, exist_ok=True)
    numbers = [_numbers(row) for row in rows]
    write_csv(directory / "comparison.csv", [[*numbers[0]], *([*row.values()] for row in numbers)])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.6 + 0.2 * len(rows)), layout="constrained")
        by_rate, by_macs = figure.subplots(1, 2, sharey=True)
        for number, row in enumerate(rows):
            colour, marker = class_style(number)
            label = shown_name(row.model, LONGEST_MODEL)
            style = {"color": colour, "fmt": marker, "label": label, "capsize": 2, "elinewidth": 1}
            rates = row.gate_rates or [1.0] * len(row.accuracies)
            for axes, values, unit in ((by_rate, rates, 0.01), (by_macs, row.macs_on, 1e6)):
                pairs = zip(values, row.accuracies, strict=True)
                points = np.array([(value / unit, 100 * accuracy) for value, accuracy in pairs])
                bars = points.std(axis=0, ddof=1) if len(points) > 1 else (None, None)
                axes.errorbar(*points.mean(axis=0), bars[1], bars[0], **style)
        front = [
            (mean(row.macs_on) / 1e6, 100 * mean(row.accuracies)) for row in rows if row.pareto
        ]
        by_macs.plot(*zip(*sorted(front), strict=True), "k:", linewidth=0.8)
        by_rate.set(xlabel="gates on, %", ylabel="test accuracy, %")
        by_macs.set(xlabel="million multiply-accumulates without off filters")
        handles, labels = by_rate.get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside lower center", frameon=False)
        literally(legend.get_texts())
        figure.savefig(directory / "comparison.png", dpi=200)
        figure.savefig(directory / "comparison.svg", metadata={"Date": None})


def _numbers(row):
    """Returns the columns of comparison.csv; shares are from 0 to 1."""

    def spread(values):
        return stdev(values) if len(values) > 1 else ""

    return {
        "dataset": row.dataset,
        "model": row.model,
        "parameters": row.parameters,
        "gates": row.gates,
        "gate rate": mean(row.gate_rates) if row.gates else "",
        "gate rate std": spread(row.gate_rates),
        "MACs": row.macs,
        "MACs without off filters": mean(row.macs_on),
        "MACs without off filters std": spread(row.macs_on),
        "test accuracy": mean(row.accuracies),
        "test accuracy std": spread(row.accuracies),
        "test error difference": "" if row.difference is None else row.difference,
        "p-value": "" if row.p_value is None else row.p_value,
        "runs": len(row.seeds),
        "seeds": " ".join(map(str, row.seeds)),
        "Pareto": "yes" if row.pareto else "no",
    }
