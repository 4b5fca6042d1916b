"""Several runs side by side: accuracy against gates on and multiply-accumulates."""

import math
import os
import pathlib
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from gaternet_tf.analysis.figures import STYLE, class_style, literally, shown_name, write_csv
from gaternet_tf.errors import UserError
from gaternet_tf.runs import open_run
from train.comparison import model_name

COLUMNS = (
    "run",
    "model",
    "seed",
    "test accuracy",
    "gates",
    "gate rate",
    "input-dependent",
    "MACs",
    "MACs without off filters",
    "Pareto",
)
NAME = "comparison"
LONGEST_MODEL = 90
"""Letters of a model's name in the figure, which is as wide."""


def compare(workdirs: Sequence[str | os.PathLike]) -> list[list]:
    """A row for each finished run, headings first, from the runs' own results on the test split.

    `Pareto` is "yes" for a run that no other run beats: none is at least as accurate with at most
    as many multiply-accumulates without off filters, and better in one of the two.

    Raises:
      UserError: for fewer than two runs, a run given twice, one that is not finished, has no test
        accuracy or a result that is not finite, and runs of different datasets.
    """
    if len(workdirs) < 2:
        raise UserError(f"a comparison takes at least two runs, got {len(workdirs)}")
    rows: list[list] = []
    seen: dict[str, str] = {}
    dataset = None
    for workdir in workdirs:
        real = os.path.realpath(workdir)
        if real in seen:
            raise UserError(f"a comparison takes every run once, and '{workdir}' came twice")
        seen[real] = str(workdir)
        run = open_run(workdir)
        result, facts = run.result, run.document["dataset"]
        if "test_accuracy" not in result:
            raise UserError(
                f"a comparison needs runs with a test accuracy, and '{workdir}' has none (it was "
                "converted)"
            )
        # JSON as Python writes it has NaN, and no run would beat one with it.
        if bad := [key for key, value in result.items() if not _finite(value)]:
            raise UserError(
                f"a comparison needs finite numbers, and '{bad[0]}' in the result.json of "
                f"'{workdir}' is {result[bad[0]]}; train that run again"
            )
        this = (facts["name"], facts["version"], facts["test_split"])
        if dataset not in (None, this):
            raise UserError(
                "a comparison needs runs of one dataset, and there are "
                f"{_dataset(dataset)} and {_dataset(this)} ('{workdir}')"
            )
        dataset = this
        rows.append(
            [
                str(workdir),
                model_name(run.config),
                run.config["seed"],
                result["test_accuracy"],
                result.get("gates", 0),
                result.get("gate_rate", 1.0),
                result.get("gates_input_dependent", 0),
                result["macs"],
                result["macs_on"],
            ]
        )
    front = pareto([(row[8], row[3]) for row in rows])
    return [
        list(COLUMNS),
        *([*row, "yes" if best else "no"] for row, best in zip(rows, front, strict=True)),
    ]


def _finite(value):
    return not isinstance(value, float) or math.isfinite(value)


def _dataset(facts):
    name, version, split = facts
    return f"{name} {version}, '{split}'"


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which (cost, accuracy) no other one beats."""
    return [
        not any(
            other[0] <= cost and other[1] >= accuracy and other != (cost, accuracy)
            for other in points
        )
        for cost, accuracy in points
    ]


def as_markdown(rows: Sequence[Sequence]) -> str:
    """The rows as a table for a person."""
    head, *body = rows
    lines = [list(head), ["---"] * len(head)]
    for run, model, seed, accuracy, gates, rate, dependent, macs, left, best in body:
        lines.append(
            [
                *(_cell(run), _cell(model), str(seed), f"{accuracy:.2%}", str(gates or "-")),
                f"{rate:.1%}" if gates else "-",
                str(dependent) if gates else "-",
                *(f"{macs / 1e6:.1f} M", f"{left / 1e6:.1f} M", best),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(name):
    """A name in a table for a person: a terminal obeys control characters, the table the bar."""
    shown = [
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in name
    ]
    return "".join(shown).replace("|", "\\|")


def write_comparison(rows: Sequence[Sequence], directory: pathlib.Path) -> None:
    """Writes comparison.csv, .png and .svg: accuracy against gate rate and against MACs.

    In the figure runs of one model have one colour and shape; the line joins the runs that no other
    one beats. Runs without gates are at a gate rate of 100 %.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_csv(directory / f"{NAME}.csv", rows)
    body = rows[1:]
    models = list(dict.fromkeys(row[1] for row in body))
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(8, 3.6 + 0.2 * len(models)), layout="constrained")
        by_rate, by_macs = canvas.subplots(1, 2, sharey=True)
        for number, model in enumerate(models):
            colour, marker = class_style(number)
            mine = [row for row in body if row[1] == model]
            accuracy = [100 * row[3] for row in mine]
            style = {"color": colour, "marker": marker, "label": shown_name(model, LONGEST_MODEL)}
            by_rate.scatter([100 * row[5] for row in mine], accuracy, **style)
            by_macs.scatter([row[8] / 1e6 for row in mine], accuracy, **style)
        front = sorted((row[8] / 1e6, 100 * row[3]) for row in body if row[9] == "yes")
        by_macs.plot(*zip(*front, strict=True), color="black", linewidth=0.8, linestyle=":")
        by_rate.set(xlabel="gates on, %", ylabel="test accuracy, %")
        by_macs.set(xlabel="million multiply-accumulates without off filters")
        handles, labels = by_rate.get_legend_handles_labels()
        legend = canvas.legend(handles, labels, loc="outside lower center", frameon=False)
        literally(legend.get_texts())
        canvas.savefig(directory / f"{NAME}.png", dpi=200)
        canvas.savefig(directory / f"{NAME}.svg", metadata={"Date": None})
