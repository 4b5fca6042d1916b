"""The paper's comparison table from finished runs."""

import csv
import dataclasses
import io
import os
import statistics
from collections.abc import Iterable, Sequence

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
)
NOT_THE_MODEL = ("seed", "data_dir", "download", "strategy")


def table_rows(workdirs: Iterable[str | os.PathLike]) -> list[list[str]]:
    """A row for each group of finished runs that differ in their seed only, headings first.

    The error is the mean over the runs, with the standard deviation (of n - 1) if there are more.
    Groups that would have the same name get the settings by which they differ after it.

    Raises:
      UserError: for a directory that is no finished run with a test accuracy, a run given twice, or
        two runs with the same settings and seed.
    """
    groups: list[list[RunDirectory]] = []
    seen: set[str] = set()
    for workdir in workdirs:
        run = open_run(workdir)
        if "test_accuracy" not in run.result:
            raise UserError(
                f"a table needs runs with a test accuracy, and '{workdir}' has none (it was "
                "converted); measure it with python -m train.evaluate"
            )
        real = os.path.realpath(workdir)
        if real in seen:
            raise UserError(f"a table takes every run once, and '{workdir}' came twice")
        seen.add(real)
        for group in groups:
            if _settings(group[0]) == _settings(run):
                _require_another_seed(group, run)
                group.append(run)
                break
        else:
            groups.append([run])
    names = _names([runs[0] for runs in groups])
    return [list(COLUMNS), *(_row(runs, name) for runs, name in zip(groups, names, strict=True))]


def _require_another_seed(group, run):
    for other in group:
        if other.config["seed"] == run.config["seed"]:
            raise UserError(
                f"a table counts every seed once, and '{other.path}' and '{run.path}' have the "
                f"same settings and the same --seed={run.config['seed']}; leave one out"
            )


def _settings(run):
    """What makes a run's model: a run from before there was a setting has its default."""
    defaults = dataclasses.asdict(TrainingConfig())
    return {
        key: value for key, value in (defaults | run.config).items() if key not in NOT_THE_MODEL
    }


def _names(runs):
    """The runs' model names; those of one dataset that are the same tell what differs."""
    alike: dict[tuple, list[dict]] = {}
    for run in runs:
        alike.setdefault((_dataset(run), model_name(run.config)), []).append(_settings(run))
    for run in runs:
        name = model_name(run.config)
        others = alike[_dataset(run), name]
        for key, value in _settings(run).items():
            if any(value != settings.get(key) for settings in others):
                name += f", {key} {'default' if value is None else value}"
        yield name


def _dataset(run):
    return run.document["dataset"]["name"]


def model_name(config: dict) -> str:
    """What a row is, for example `resnet20, gated by resnet20, lambda 0.1`."""
    name = config["backbone"]
    if config["width"] != 16:
        name += f", width {config['width']}"
    if config["attention"] != "none":
        return f"{name}, squeeze-and-excite"
    if config["gater"] == "none":
        return name
    head = "" if config["head_batch_norm"] else ", head without batch norm"
    where = "" if config["gated_convs"] == "last" else ", all convolutions"
    bias = config.get("gate_bias", 0)
    start = f", gate bias {bias:g}" if bias else ""
    return f"{name}, gated by {config['gater']}, lambda {config['sparsity']:g}{head}{where}{start}"


def _row(runs: Sequence[RunDirectory], name: str) -> list[str]:
    results = [run.result for run in runs]
    first = results[0]
    errors = [100 * (1 - result["test_accuracy"]) for result in results]
    error = f"{statistics.mean(errors):.2f} %"
    if len(errors) > 1:
        error = f"{statistics.mean(errors):.2f} +- {statistics.stdev(errors):.2f} %"
    rate = "-"
    if "gate_rate" in first:
        rate = f"{100 * statistics.mean(result['gate_rate'] for result in results):.1f} %"
    return [
        _dataset(runs[0]),
        name,
        f"{first['parameters']:,}",
        str(first.get("gates", "-")),
        rate,
        f"{first['macs'] / 1e6:.1f} M",
        f"{statistics.mean(result['macs_on'] for result in results) / 1e6:.1f} M",
        error,
        str(len(runs)),
    ]


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table for a README."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    """The same for a spreadsheet."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().rstrip("\n")
