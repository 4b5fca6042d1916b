"""The paper's figures, and four more, drawn from an analysis: PNG, SVG and CSV of each."""

import dataclasses
import pathlib
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from gaternet_tf.analysis.drawing import (
    BLUE,
    NAMED_UNITS,
    ORANGE,
    STYLE,
    bars,
    class_style,
    heat_map,
    literally,
    name_columns,
    name_units,
    shown_name,
    spaced,
    write_csv,
)

KINDS = {
    "always_on": ("always on", BLUE, ""),
    "input_dependent": ("input-dependent", ORANGE, "//"),
    "always_off": ("always off", "#CCCCCC", ".."),
}
"""Name, colour and hatching."""
LEGEND_CLASSES = 20
TRAINING = {"label": "training images", "color": BLUE, "linestyle": "-"}
VALIDATION = {"label": "validation images", "color": ORANGE, "linestyle": "--"}
FARTHEST = 4
"""Widths of the histogram of multiply-accumulates within which the full network is drawn too."""
CURVES = {"task_loss": "cross-entropy", "accuracy": "accuracy, %", "gate_rate": "gates on, %"}
"""Metrics of the training, and their axes; `val_` before them are those of validation."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
      name: of its files.
      title: a few words.
      caption: what it shows and how to read it.
      alternative: the text for those who cannot see it.
      rows: its numbers, headings first.
      draw: draws it on an empty matplotlib figure.
    """

    name: str
    title: str
    caption: str
    alternative: str
    rows: list[list]
    draw: Callable[[Canvas], None]


def figures_of(document: dict, arrays: dict[str, np.ndarray]) -> dict[str, Figure]:
    """Returns the figures of an analysis by name.

    Without points there is no t-SNE picture, and for an export there are no training curves.
    """
    figures = [
        *([_training(document)] if document["training"] else []),
        _confusion(document, arrays),
        _kinds_by_unit(document["units"]),
        _images_per_gate(document),
        _gates_per_image(document),
        *([_t_sne(document, arrays)] if len(arrays["points"]) else []),
        _rate_by_class(document),
        _macs_per_image(document),
    ]
    return {figure.name: figure for figure in figures}


def write_figure(figure: Figure, directory: pathlib.Path) -> None:
    """Writes NAME.png, NAME.svg and NAME.csv."""
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(6.4, 3.6), layout="constrained")
        figure.draw(canvas)
        canvas.savefig(directory / f"{figure.name}.png", dpi=200)
        # Without a date, the same numbers give the same file.
        canvas.savefig(directory / f"{figure.name}.svg", dpi=200, metadata={"Date": None})
    write_csv(directory / f"{figure.name}.csv", figure.rows)


def _training(document):
    records = document["training"]
    metrics = [prefix + name for name in CURVES for prefix in ("", "val_")]
    columns = [name for name in metrics if all(name in record for record in records)]

    def draw(canvas):
        canvas.set_size_inches(6.4, 2.6)
        panels = canvas.subplots(1, len(CURVES))
        epochs = [record["epoch"] for record in records]
        for axes, (name, label) in zip(panels, CURVES.items(), strict=True):
            for prefix, style in (("", TRAINING), ("val_", VALIDATION)):
                if prefix + name in columns:
                    values = np.array([record[prefix + name] for record in records])
                    marker = "." if len(records) < 30 else ""
                    axes.plot(epochs, values * (100 if "%" in label else 1), **style, marker=marker)
            axes.set(xlabel="epoch", ylabel=label)
            axes.xaxis.get_major_locator().set_params(integer=True)
        handles, labels = panels[1].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)

    first, last = records[0], records[-1]
    return Figure(
        "training",
        "Training",
        "Cross-entropy, accuracy and gates on after each epoch. In training half of the images "
        "have soft gates with noise, in validation all gates are those of inference.",
        f"Curves of {len(records)} epochs: the accuracy on training images goes from "
        f"{first['accuracy']:.1%} to {last['accuracy']:.1%}, the share of gates that are on from "
        f"{first['gate_rate']:.1%} to {last['gate_rate']:.1%}.",
        [
            ["epoch", *columns],
            *([each["epoch"], *(round(each[name], 6) for name in columns)] for each in records),
        ],
        draw,
    )


def _confusion(document, arrays):
    classes = document["classes"]
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (arrays["labels"], arrays["predictions"]), 1)
    images = counts.sum(axis=1, keepdims=True)
    percent = 100 * np.where(images, counts, np.nan) / np.maximum(images, 1)

    def draw(canvas):
        texts = np.where(counts, counts.astype(str), "").tolist()
        axes, annotated = heat_map(canvas, percent, texts, classes, "images of the class, %")
        if not annotated:
            canvas.set_size_inches(6.4, 5.4)
        else:
            name_columns(axes, range(len(classes)), classes)
        axes.set(xlabel="predicted class", ylabel="class")

    wrong = counts * (1 - np.eye(len(classes), dtype=np.int64))
    label, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    most = (
        f"The most frequent mistake is {shown_name(classes[predicted])} for "
        f"{shown_name(classes[label])}, {wrong.max()} times."
    )
    return Figure(
        "confusion",
        "Predictions by class",
        "Each row is a class, each column a predicted class; a cell counts images, and the darker, "
        "the larger their share of the class. Right predictions are on the diagonal.",
        f"Confusion matrix of {len(classes)} classes, {np.trace(counts)} of {counts.sum()} images "
        f"on the diagonal. {most if wrong.any() else 'There is no mistake.'}",
        [
            ["class", *classes],
            *([name, *row] for name, row in zip(classes, counts.tolist(), strict=True)),
        ],
        draw,
    )


def _kinds_by_unit(units):
    shares = {
        kind: np.array([100 * unit[kind] / unit["total"] for unit in units]) for kind in KINDS
    }

    def draw(canvas):
        axes = canvas.subplots()
        places = np.arange(1, len(units) + 1)
        bottom = np.zeros(len(units))
        for kind, (label, colour, hatch) in KINDS.items():
            axes.bar(
                *(places, shares[kind], 0.85, bottom),
                label=label,
                color=colour,
                hatch=hatch,
                edgecolor="white",
            )
            bottom += shares[kind]
        axes.set(
            ylabel="share of the unit's gates, %",
            xlim=(0.4, len(units) + 0.6),
            ylim=(0, 100),
        )
        name_units(axes, units, first=1)
        canvas.legend(loc="outside upper center", ncols=3, frameon=False)

    dependent = shares["input_dependent"]
    most = int(dependent.argmax())
    return Figure(
        "gate_kinds_by_unit",
        "Gates of each unit",
        "Each bar is a unit of the network, the first one at the left. Blue is the share of its "
        "gates that are on for every image, grey the share that are off for every image, and "
        "orange the share that depend on the image.",
        f"Stacked bars of {len(units)} units. Input-dependent are {dependent[0]:.0f} % of "
        f"the first unit's gates, {dependent[-1]:.0f} % of the last one's, and most, "
        f"{dependent[most]:.0f} %, in {spaced(units[most]['name'])}.",
        [
            ["unit", "gates", *KINDS],
            *([unit["name"], unit["total"], *(unit[kind] for kind in KINDS)] for unit in units),
        ],
        draw,
    )


def _bins(histogram, name):
    edges = histogram["edges"]
    rows = zip(edges[:-1], edges[1:], histogram["counts"], strict=True)
    return [["from", "below", name], *map(list, rows)]


def _images_per_gate(document):
    histogram, images = document["images_per_input_dependent_gate"], document["images"]
    gates = document["gates"]
    nearly = gates["nearly_always_off"] + gates["nearly_always_on"]
    return Figure(
        "images_per_gate",
        "On how many images each input-dependent gate is on",
        "Each bar counts the input-dependent gates that are on for so many of the images. Gates at "
        "the left edge are nearly always off, those at the right edge nearly always on; those in "
        "the middle tell images apart. Dashed: 1 % and 99 % of the images.",
        f"Histogram of {gates['input_dependent']} input-dependent gates: {nearly} are on for fewer "
        f"than 1 % or more than 99 % of {images} images, {gates['between']} lie between.",
        _bins(histogram, "gates"),
        bars(
            histogram,
            f"images for which the gate is on, of {images:,}",
            "input-dependent gates",
            [(images / 100, "1 %"), (images * 0.99, "99 %")],
        ),
    )


def _gates_per_image(document):
    histogram, spread = document["gates_on"]["histogram"], document["gates_on"]["all"]
    total = document["gates"]["total"]
    return Figure(
        "gates_per_image",
        "Gates that are on for an image",
        f"Each bar counts the images for which so many of the {total:,} gates are on. A narrow "
        "hill means that all images use about as many filters, if not the same ones. Dashed: the "
        "mean.",
        f"Histogram of {spread['images']} images: from {spread['min']} to {spread['max']} gates "
        f"are on, {spread['mean']:.1f} on average with a standard deviation of "
        f"{spread['std']:.1f}.",
        _bins(histogram, "images"),
        bars(
            histogram,
            f"gates on, of {total:,}",
            "images",
            [(spread["mean"], f"mean {spread['mean']:.1f}")],
        ),
    )


def _t_sne(document, arrays):
    sample, points, classes = arrays["sample"], arrays["points"], document["classes"]
    labels, predictions = arrays["labels"][sample], arrays["predictions"][sample]
    present = np.unique(labels)

    def draw(canvas):
        canvas.set_size_inches(6.4, 5.2)
        axes = canvas.subplots()
        size = float(np.clip(20_000 / len(points), 2, 20))
        for number in present:
            colour, marker = class_style(number)
            axes.scatter(
                *points[labels == number].T,
                s=size,
                color=colour,
                marker=marker,
                alpha=0.7,
                linewidths=0,
                rasterized=len(points) > 1000,
            )
        axes.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
        if len(present) <= LEGEND_CLASSES:
            handles = [
                Line2D([], [], linestyle="", color=colour, marker=marker, markersize=5)
                for colour, marker in map(class_style, present)
            ]
            names = [shown_name(classes[number]) for number in present]
            legend = canvas.legend(handles, names, loc="outside right upper", frameon=False)
            literally(legend.get_texts())

    separation = document["separation"]
    near, numbers = separation["neighbours"], ""
    if "absent" not in near:
        numbers = (
            f" Of the images, {near['accuracy']:.1%} have the class that is most frequent among "
            f"their {near['k']} nearest others; with shuffled labels "
            f"{near['accuracy_shuffled']:.1%}."
        )
    return Figure(
        "t_sne",
        "Gate vectors of the images",
        "Each point is an image; images with the same gates form a disc, and similar gate vectors "
        "lie near each other. Colour and shape are the class. The distinct vectors were reduced to "
        f"{separation['t_sne']['pca_components']} dimensions by PCA and to 2 by t-SNE, whose "
        "axes have no meaning, nor have distances between groups. Where a class forms an island, "
        "the gates know the class.",
        f"Scatter plot of {len(points)} images of {len(present)} classes.{numbers}",
        [
            ["image", "t_sne_1", "t_sne_2", "class", "prediction"],
            *(
                [image, round(float(x), 4), round(float(y), 4), classes[label], classes[prediction]]
                for image, (x, y), label, prediction in zip(
                    sample, points, labels, predictions, strict=True
                )
            ),
        ],
        draw,
    )


def rates_by_class(document: dict) -> np.ndarray:
    """Returns the gate rate of each unit in per cent, [classes, units]; NaN for absent classes."""
    absent = [np.nan] * len(document["units"])
    return 100 * np.array([row or absent for row in document["gate_rate_by_class"]])


def _rate_by_class(document):
    names = [unit["name"] for unit in document["units"]]
    rates, classes = document["gate_rate_by_class"], document["classes"]
    percent = rates_by_class(document)

    def draw(canvas):
        texts = [[f"{value:.0f}" for value in row] for row in percent]
        axes, annotated = heat_map(canvas, percent, texts, classes, "gates on, %")
        # With numbers in its cells the map has room for all names.
        name_units(axes, document["units"], 0, len(names) if annotated else NAMED_UNITS)
        axes.set_ylabel("class")

    apart = np.nanmax(percent, axis=0) - np.nanmin(percent, axis=0)
    most = int(apart.argmax())
    return Figure(
        "gate_rate_by_class",
        "Gates on by class and unit",
        "Each row is a class, each column a unit of the network; the numbers are the share of the "
        "unit's gates that are on for images of the class, in per cent, and the darker, the more. "
        "Where they change down a column, the unit works differently for different classes.",
        f"Heat map of {len(classes)} classes and {len(names)} units. Classes differ most in "
        f"{spaced(names[most])}, by up to {apart[most]:.1f} percentage points.",
        [
            ["class", *names],
            *(
                [name, *(round(value, 6) for value in row or [])]
                for name, row in zip(classes, rates, strict=True)
            ),
        ],
        draw,
    )


def _macs_per_image(document):
    macs, unit = document["macs"], 1e6
    left = macs["without_off_filters"]
    draw_bars = bars(
        macs["histogram"],
        "million multiply-accumulates of an image",
        "images",
        [(left["mean"] / unit, f"mean {left['mean'] / unit:.2f}")],
        macs["histogram"]["step"],
        unit,
    )

    def draw(canvas):
        draw_bars(canvas)
        (axes,) = canvas.axes
        low, high = axes.get_xlim()
        total, label = macs["total"] / unit, f"full network {macs['total'] / unit:.2f}"
        place = {"xycoords": ("data", "axes fraction"), "va": "top", "ha": "right", "fontsize": 8}
        if total < low + FARTHEST * (high - low):
            axes.axvline(total, color="black", linewidth=0.8)
            axes.set_xlim(low, max(high, total + 0.02 * (total - low)))
            axes.annotate(f"{label} ", (total, 0.93), **place)
        else:
            axes.annotate(f"{label} →", (high, 0.93), **place)

    return Figure(
        "macs_per_image",
        "Multiply-accumulates without off filters",
        f"Each bar counts the images for which so many of the full network's "
        f"{macs['total'] / unit:.2f} million multiply-accumulates are left if filters that are off "
        "are neither computed nor read; the gater's own are included. Dashed: the mean. This is "
        "theory: training and the plain export compute all of them.",
        f"Histogram: {left['min'] / unit:.2f} to {left['max'] / unit:.2f} million of "
        f"{macs['total'] / unit:.2f} million, {left['mean'] / unit:.2f} on average.",
        _bins(macs["histogram"], "images"),
        draw,
    )
