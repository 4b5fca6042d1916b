"""The figure of a comparison: accuracy against gates on and against multiply-accumulates."""

import pathlib
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from gaternet_tf.analysis.figures import STYLE, class_style, literally, shown_name, write_csv
from gaternet_tf.errors import UserError
from train.comparison import Row

COLUMNS = (
    *("dataset", "model", "parameters", "gates", "gate rate", "MACs", "MACs without off filters"),
    *("test accuracy", "runs", "Pareto"),
)
LONGEST_MODEL = 90
"""Letters of a model's name that fit into the figure."""


def write_comparison(rows: Sequence[Row], directory: pathlib.Path) -> None:
    """Writes comparison.csv, .png and .svg.

    The line joins the models that no other one beats. Models without gates are at a gate rate of
    100 %.

    Raises:
      UserError: for runs of several datasets.
    """
    if len(datasets := {row.dataset for row in rows}) > 1:
        raise UserError(
            f"--output_dir is for runs of one dataset, got {', '.join(sorted(datasets))}; leave it "
            "out or compare one dataset at a time"
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_csv(directory / "comparison.csv", [COLUMNS, *map(_numbers, rows)])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.6 + 0.2 * len(rows)), layout="constrained")
        by_rate, by_macs = figure.subplots(1, 2, sharey=True)
        for number, row in enumerate(rows):
            colour, marker = class_style(number)
            style = {
                "color": colour,
                "marker": marker,
                "label": shown_name(row.model, LONGEST_MODEL),
            }
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
