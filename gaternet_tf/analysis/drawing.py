"""What the figures have in common: their style, names, histograms, heat maps and axes."""

import csv
import pathlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

BLUE, ORANGE = "#0072B2", "#E69F00"
"""Of Okabe and Ito's palette for the colour-blind."""
CLASS_COLOURS = (
    *("#332288", "#E69F00", "#117733", "#CC6677", "#56B4E9"),
    *("#882255", "#44AA99", "#999933", "#AA4499", "#000000"),
)
CLASS_MARKERS = "os^Dv"
"""With the colours, they distinguish 50 classes."""
LONGEST_NAME = 24
"""Letters of a class' or a unit's name in a figure; tables hold it whole."""
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories of characters that cannot be drawn."""
NAMED_UNITS = 30
"""Names of units that have room below a figure of ordinary width."""
ANNOTATED_CLASSES = 40
"""Rows of a heat map with numbers in its cells."""
HEAT = LinearSegmentedColormap.from_list("heat", ["#f7fbff", "#08306b"])
WHITE_TEXT_ABOVE = 0.652
"""Part of `HEAT` above which white text has more contrast than black, 4.5 to 1 or more."""
STYLE: Any = {
    "svg.hashsalt": "gaternet",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.5,
}


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


def heat_colours(values: np.ndarray) -> list[list[tuple[str, str]]]:
    """Returns the background and the text colour of each cell of [rows, columns].

    The lowest number is light, the highest one dark.
    """
    low, high = np.nanmin(values), np.nanmax(values)
    scaled = (values - low) / max(high - low, 1e-9)
    return [
        [
            (to_hex(HEAT(value)), "#ffffff" if value > WHITE_TEXT_ABOVE else "#000000")
            for value in row
        ]
        for row in scaled
    ]


def heat_map(canvas, values, texts, classes, label):
    """Draws numbers [classes, columns] with a text in each cell, unless there are too many rows.

    Returns the axes, and whether there are texts; `label` is that of the colours.
    """
    canvas.set_size_inches(6.4, 9.0)
    axes = canvas.subplots()
    if annotated := len(values) <= ANNOTATED_CLASSES:
        rows, columns = values.shape
        canvas.set_size_inches(max(6.4, 0.27 * columns + 1.9), max(3.0, 0.2 * rows + 1.2))
        colours = heat_colours(values)
        for place in np.argwhere(~np.isnan(values)):
            row, column = place.tolist()
            style = {"ha": "center", "va": "center", "fontsize": 7}
            axes.text(column, row, texts[row][column], color=colours[row][column][1], **style)
        axes.set_yticks(range(rows), [shown_name(name) for name in classes])
        literally(axes.get_yticklabels())
    image = axes.imshow(values, aspect="auto", cmap=HEAT)
    canvas.colorbar(image, label=label)
    return axes, annotated


def name_columns(axes, places, names):
    """Names columns below the axes, upright if names are long, for which the figure grows."""
    names = [shown_name(name) for name in names]
    longest = max(map(len, names))
    axes.set_xticks(places, names, rotation=90 if longest > 2 else 0)
    literally(axes.get_xticklabels())
    width, height = axes.figure.get_size_inches()
    axes.figure.set_size_inches(width, height + 0.07 * longest)


def name_units(axes, units, first, most=NAMED_UNITS):
    """Draws a tick for each unit, from the place `first` on, and at most `most` names."""
    places = np.arange(first, first + len(units))
    every = -(-len(units) // most)
    name_columns(axes, places[::every], [spaced(unit["name"]) for unit in units[::every]])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xticks(places, minor=True)
    axes.set_xlabel("unit" if every == 1 else f"unit, 1 in {every} named")


def spaced(name: str) -> str:
    """Returns the name of a unit or layer as people read it."""
    return name.replace("_", " ")


def bars(histogram, xlabel, ylabel, lines=(), step=1, unit=1):
    """Returns a function that draws a histogram, with dashed lines at (place, label).

    `step` is the least distance of two numbers, `unit` that of the axis and of `lines`.
    """
    # The bar of the number 5 is drawn around it, from 4.5 to 5.5.
    edges = (np.array(histogram["edges"]) - step / 2) / unit
    numbers = histogram["counts"]

    def draw(canvas):
        axes = canvas.subplots()
        axes.bar(edges[:-1], numbers, np.diff(edges), align="edge", color=BLUE, edgecolor="white")
        for place, label in lines:
            axes.axvline(place, color="black", linewidth=0.8, linestyle="--")
            axes.annotate(
                f" {label}", (place, 1.0), xycoords=("data", "axes fraction"), va="top", fontsize=8
            )
        axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(edges[0], edges[-1]))
        if max(numbers, default=0) < 5:
            axes.yaxis.get_major_locator().set_params(integer=True)

    return draw
