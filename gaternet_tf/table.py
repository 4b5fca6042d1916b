"""The paper's comparison table from finished runs."""

import csv
import io
import os
import statistics
from collections.abc import Iterable, Sequence

from gaternet_tf.errors import UserError
from gaternet_tf.runs import RunDirectory, open_run

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

    Raises:
      UserError: for a directory that is no finished run with a test accuracy, or a run given twice.
    """
    groups: dict[str, list[RunDirectory]] = {}
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
        settings = {key: value for key, value in run.config.items() if key not in NOT_THE_MODEL}
        groups.setdefault(repr(settings), []).append(run)
    return [list(COLUMNS), *(_row(runs) for runs in groups.values())]


def model_name(config: dict) -> str:
    """What a row is, for example `resnet20 gated, lambda 0.1`."""
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


def _row(runs: Sequence[RunDirectory]) -> list[str]:
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
        runs[0].document["dataset"]["name"],
        model_name(runs[0].config),
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
