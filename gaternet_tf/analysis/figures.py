"""The paper's figures, and two more, drawn from an analysis: PNG, SVG and CSV of each."""

import csv
import dataclasses
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.text import Text

KINDS = {
    "always_on": ("always on", "#0072B2", ""),
    "input_dependent": ("input-dependent", "#E69F00", "//"),
    "always_off": ("always off", "#CCCCCC", ".."),
}
"""Name, colour (of Okabe and Ito's palette for the colour-blind) and hatching."""
CLASS_COLOURS = (
    *("#332288", "#E69F00", "#117733", "#CC6677", "#56B4E9"),
    *("#882255", "#44AA99", "#999933", "#AA4499", "#000000"),
)
CLASS_MARKERS = "os^Dv"
"""With the colours, they distinguish 50 classes."""
LEGEND_CLASSES = 20
LONGEST_NAME = 24
"""Letters of a class name in a figure; tables hold it whole."""
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories of characters that cannot be drawn."""
STYLE: Any = {
    "svg.hashsalt": "gaternet",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.5,
}


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
    """Returns the figures of an analysis by name; without points there is no t-SNE picture."""
    figures = [
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


def write_csv(path: pathlib.Path, rows: Sequence[Sequence]) -> None:
    """Writes a table, headings first."""
    # Names of files need not be UTF-8.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def class_style(number: int) -> tuple[str, str]:
    """Colour and marker of a class."""
    colours = len(CLASS_COLOURS)
    marker = CLASS_MARKERS[(number + number // colours) % len(CLASS_MARKERS)]
    return CLASS_COLOURS[number % colours], marker


def shown_name(name: str, longest: int = LONGEST_NAME) -> str:
    r"""Returns the name of a class, a directory or a run as figures show it.

    Characters that cannot be drawn (SVG files must not hold control characters, and fonts lack
    some) are escaped as in Python: a tab is shown as \t. A long name loses its middle.
    """
    font = get_font(findfont(FontProperties()))
    text = "".join(
        character
        if unicodedata.category(character) not in UNSEEN and font.get_char_index(ord(character))
        else character.encode("unicode_escape").decode()
        for character in name
    )
    if len(text) <= longest:
        return text
    end = (longest - 1) // 3
    return f"{text[: longest - 1 - end]}…{text[-end:]}"


def literally(texts: Iterable[Text]) -> None:
    """Draws dollar signs in texts as they are instead of as formulas."""
    for text in texts:
        text.set_parse_math(False)


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
        for number in range(1, len(units)):
            if units[number]["stage"] != units[number - 1]["stage"]:
                axes.axvline(number + 0.5, color="black", linewidth=0.8, linestyle=":")
        axes.set(
            xlabel="residual unit, from input to output (dotted: a new stage)",
            ylabel="share of the unit's gates, %",
            xlim=(0.4, len(units) + 0.6),
            ylim=(0, 100),
        )
        axes.xaxis.get_major_locator().set_params(integer=True)
        canvas.legend(loc="outside upper center", ncols=3, frameon=False)

    dependent = shares["input_dependent"]
    most = int(dependent.argmax())
    return Figure(
        "gate_kinds_by_unit",
        "Gates of each residual unit",
        "Each bar is a residual unit, the first one at the left. Blue is the share of its gates "
        "that are on for every image, grey the share that are off for every image, and orange the "
        "share that depend on the image.",
        f"Stacked bars of {len(units)} residual units. Input-dependent are {dependent[0]:.0f} % of "
        f"the first unit's gates, {dependent[-1]:.0f} % of the last one's, and most, "
        f"{dependent[most]:.0f} %, in {units[most]['name'].replace('_', ' ')}.",
        [
            ["unit", "gates", *KINDS],
            *([unit["name"], unit["total"], *(unit[kind] for kind in KINDS)] for unit in units),
        ],
        draw,
    )


def _bars(histogram, xlabel, ylabel, lines=(), whole=True):
    """Returns a function that draws a histogram, with dashed lines at (place, label)."""
    # The bar of the number 5 is drawn around it, from 4.5 to 5.5.
    edges = np.array(histogram["edges"], float) - (0.5 if whole else 0.0)
    numbers = histogram["counts"]

    def draw(canvas):
        axes = canvas.subplots()
        colour = KINDS["always_on"][1]
        axes.bar(edges[:-1], numbers, np.diff(edges), align="edge", color=colour, edgecolor="white")
        for place, label in lines:
            axes.axvline(place, color="black", linewidth=0.8, linestyle="--")
            axes.annotate(
                f" {label}", (place, 1.0), xycoords=("data", "axes fraction"), va="top", fontsize=8
            )
        axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(edges[0], edges[-1]))
        if max(numbers, default=0) < 5:
            axes.yaxis.get_major_locator().set_params(integer=True)

    return draw


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
        _bars(
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
        _bars(
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


def _rate_by_class(document):
    names = [unit["name"] for unit in document["units"]]
    rates, classes = document["gate_rate_by_class"], document["classes"]
    percent = 100 * np.array([row or [np.nan] * len(names) for row in rates])

    def draw(canvas):
        canvas.set_size_inches(6.4, max(3.0, min(9.0, 0.22 * len(classes) + 1.2)))
        axes = canvas.subplots()
        image = axes.imshow(percent, aspect="auto", cmap="cividis", vmin=0, vmax=100)
        axes.set_xticks(
            range(len(names)),
            [name.replace("stage", "").replace("_unit", ".") for name in names],
            fontsize=8 if len(names) < 20 else 5,
            rotation=0 if len(names) < 20 else 90,
        )
        if len(classes) <= LEGEND_CLASSES:
            axes.set_yticks(range(len(classes)), [shown_name(name) for name in classes])
            literally(axes.get_yticklabels())
        axes.set(xlabel="residual unit (stage.unit)", ylabel="class")
        canvas.colorbar(image, label="gates on, %")

    apart = np.nanmax(percent, axis=0) - np.nanmin(percent, axis=0)
    most = int(apart.argmax())
    return Figure(
        "gate_rate_by_class",
        "Gates on by class and unit",
        "Each row is a class, each column a residual unit; the brighter, the more of the unit's "
        "gates are on for images of the class. Where the colour changes down a column, the unit "
        "works differently for different classes.",
        f"Heat map of {len(classes)} classes and {len(names)} residual units. Classes differ most "
        f"in {names[most].replace('_', ' ')}, by up to {apart[most]:.1f} percentage points.",
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
    macs = document["macs"]
    histogram = dict(macs["histogram"])
    histogram["edges"] = [edge / 1e6 for edge in histogram["edges"]]
    left = macs["without_off_filters"]
    return Figure(
        "macs_per_image",
        "Multiply-accumulates without off filters",
        f"Each bar counts the images for which so many of the {macs['total'] / 1e6:.2f} million "
        "multiply-accumulates are left if filters that are off are not computed; the gater's own "
        "are included. This is theory: training and the plain export compute all of them.",
        f"Histogram: {left['min'] / 1e6:.2f} to {left['max'] / 1e6:.2f} million of "
        f"{macs['total'] / 1e6:.2f} million, {left['mean'] / 1e6:.2f} on average.",
        _bins(macs["histogram"], "images"),
        _bars(histogram, "million multiply-accumulates of an image", "images", whole=False),
    )
