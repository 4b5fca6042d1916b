"""report.html: one file, opened in any browser without a network; and the tables as CSV."""

import base64
import functools
import io
import json
import math
import os
import pathlib
from collections.abc import Sequence
from importlib import resources

import jinja2
import numpy as np
from PIL import Image

from gaternet_tf.analysis.figures import (
    FIGURE_NAMES,
    Figure,
    class_style,
    figures_of,
    write_csv,
    write_figure,
)
from gaternet_tf.analysis.files import Analysis

REPORT = "report.html"
FIGURES_IN_TEXT = ("gate_kinds_by_unit", "images_per_gate", "gates_per_image", "macs_per_image")
QUALITY = 80
"""WebP quality of the thumbnails."""
UNIT_COLUMNS = (
    ("name", "unit"),
    ("total", "gates"),
    ("always_on", "always on"),
    ("always_off", "always off"),
    ("input_dependent", "input-dependent"),
    ("gate_rate", "gates on, %"),
    ("images_off", "images without the branch"),
)
SPREAD_COLUMNS = ("images", "min", "max", "mean", "std")
CHARACTERISTIC_COLUMNS = (
    *("gate", "stage", "unit", "convolution", "channel"),
    *("mutual_information", "rate_in_class", "rate_elsewhere"),
)
CHANGED_COLUMNS = ("images", "gates", "input_dependent", "images_unchanged", "predictions")


def draw(analysis: Analysis, directory: str | os.PathLike) -> None:
    """Draws figures, tables and report into `directory`, the report last.

    Figures of an earlier analysis that this one does not have are removed.
    """
    directory = pathlib.Path(directory)
    (directory / REPORT).unlink(missing_ok=True)
    figures = figures_of(analysis)
    for name in set(FIGURE_NAMES) - {figure.name for figure in figures}:
        for suffix in (".png", ".svg", ".csv"):
            (directory / f"{name}{suffix}").unlink(missing_ok=True)
    for figure in figures:
        write_figure(figure, directory)
    write_tables(analysis, directory)
    write_report(analysis, figures, directory)


def write_report(analysis: Analysis, figures: Sequence[Figure], directory: pathlib.Path) -> None:
    """Writes report.html, which contains the SVG files of `figures` in `directory`."""
    document = analysis.document
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": lambda value: f"{100 * value:.1f} %"}
    atlas = _atlas(analysis)
    by_name = {figure.name: figure for figure in figures}
    text = environment.get_template("report.html.jinja").render(
        document=document,
        headlines=headlines(document),
        figures=[by_name[name] for name in FIGURES_IN_TEXT],
        t_sne=by_name.get("t_sne"),
        heat_map=by_name["gate_rate_by_class"],
        svg={figure.name: _svg(directory / f"{figure.name}.svg") for figure in figures},
        unit_columns=UNIT_COLUMNS,
        cell=_heat,
        swatch=_swatch,
        atlas=atlas,
        data=_data(analysis, atlas),
    )
    (directory / REPORT).write_text(text, encoding="utf-8", errors="backslashreplace")


def headlines(document: dict) -> list[str]:
    """Returns the main numbers, a sentence each."""
    gates, on, images = document["gates"], document["gates_on"]["all"], document["images"]
    sentences = [
        *_other_dataset(document),
        f"Of {images:,} images, {document['accuracy']:.2%} are classified correctly.",
        f"Of {gates['total']:,} gates, {gates['input_dependent']:,} depend on the input, "
        f"{gates['always_on']:,} are always on and {gates['always_off']:,} always off.",
        f"Of the input-dependent gates, {gates['nearly_always_off'] + gates['nearly_always_on']:,} "
        "are nearly constant (on for fewer than 1 % or more than 99 % of the images) and "
        f"{gates['between']:,} lie between.",
        f"For an image, {on['min']:,} to {on['max']:,} gates are on, {on['mean']:,.1f} on average "
        f"(standard deviation {on['std']:.1f}); the images have "
        f"{document['distinct_gate_vectors']:,} different gate vectors.",
    ]
    never = [unit["name"].replace("_", " ") for unit in document["units"] if unit["never_runs"]]
    if never:
        units = "1 unit never runs" if len(never) == 1 else f"{len(never)} units never run"
        sentences.append(f"The branch of {units}: {', '.join(never)}.")
    total, left = document["macs"]["total"], document["macs"]["without_off_filters"]["mean"]
    sentences.append(
        f"In theory, leaving out the filters that are off leaves {left / 1e6:.2f} of "
        f"{total / 1e6:.2f} million multiply-accumulates for an image ({left / total:.1%}), the "
        "gater's included."
    )
    near = document["separation"]["neighbours"]
    if "absent" not in near:
        sentences.append(
            f"Of {document['separation']['images']:,} images, {near['accuracy']:.1%} have the "
            f"class that is the most frequent among the {near['k']} nearest gate vectors (with "
            f"shuffled labels {near['accuracy_shuffled']:.1%})."
        )
    return sentences


def _other_dataset(document):
    """Returns a warning if the network was trained on another dataset."""
    trained, shown = document["source"]["dataset"], document["dataset"]
    if all(trained[key] == shown[key] for key in ("name", "version")):
        return []
    return [
        f"The network was trained on {trained['name']} {trained['version']}, and all numbers here "
        f"are of another dataset, {shown['name']} {shown['version']}."
    ]


def write_tables(analysis: Analysis, directory: pathlib.Path) -> None:
    """Writes units.csv, convolutions.csv, classes.csv, characteristic.csv, changed_pictures.csv."""
    document = analysis.document
    classes, changed = document["classes"], document["changed_pictures"]
    on, characteristic = document["gates_on"]["by_class"], document["characteristic"]
    write = functools.partial(_write_table, directory)
    for name in ("units", "convolutions"):
        first, *columns = document[name][0]
        write(name, first, columns, [(row[first], row) for row in document[name]])
    write("classes", "class", SPREAD_COLUMNS, zip(classes, on, strict=True))
    gates = [
        (name, row) for name, rows in zip(classes, characteristic, strict=True) for row in rows
    ]
    write("characteristic", "class", CHARACTERISTIC_COLUMNS, gates)
    write("changed_pictures", "change", CHANGED_COLUMNS, changed.items())


def _write_table(directory, name, first, columns, rows):
    """Writes (name, values) rows; numbers that do not exist are left empty."""

    def cell(value):
        return "" if isinstance(value, dict) else value

    lines = [[name, *(cell(row.get(key, "")) for key in columns)] for name, row in rows]
    write_csv(directory / f"{name}.csv", [[first, *columns], *lines])


def _resource(name):
    return resources.files("gaternet_tf.analysis").joinpath(name).read_text(encoding="utf-8")


def _svg(path):
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def _heat(rate):
    """Returns (background, text colour) of a cell: light blue for the rate 0, dark blue for 1."""
    light, dark = np.array([247, 251, 255]), np.array([8, 48, 107])
    colour = (light + rate * (dark - light)).round().astype(int)
    linear = np.where(colour <= 10, colour / 3294.6, ((colour / 255 + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    # The one with more contrast, as WCAG defines it: 4.5 to 1 or more on any colour.
    text = "#fff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000"
    red, green, blue = colour.tolist()
    return f"rgb({red},{green},{blue})", text


def _swatch(number):
    """Returns the colour and the SVG path, in a box of 10 x 10, of a class' points."""
    colour, marker = class_style(number)
    shapes = {
        "o": "M5 1a4 4 0 1 0 .01 0z",
        "s": "M1.5 1.5h7v7h-7z",
        "^": "M5 1l4.2 8H.8z",
        "v": "M5 9l4.2-8H.8z",
        "D": "M5 0l5 5-5 5-5-5z",
    }
    return colour, shapes[marker]


def _atlas(analysis):
    """Returns all thumbnails in one picture, with its numbers of `columns` and `rows`."""
    pictures = analysis.thumbnails
    if not len(pictures):
        return None
    count, height, width, channels = pictures.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:count] = pictures
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    file = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(file, "WEBP", quality=QUALITY)
    return {
        "source": "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode(),
        "columns": columns,
        "rows": rows,
        "ratio": width / height,
    }


def _data(analysis, atlas):
    """Returns the data of the report's script, as JSON that is safe within a script element."""
    record, sample = analysis.record, analysis.sample
    points = analysis.points
    scaled = points
    if len(points):
        low, high = points.min(axis=0), points.max(axis=0)
        scaled = (points - low) / np.maximum(high - low, 1e-9)
    place = {int(image): number for number, image in enumerate(analysis.shown)}
    chosen = sample if len(points) else sample[:0]
    wanted = sorted({*chosen.tolist(), *place})
    styles = [class_style(number) for number in range(len(record.classes))]
    data = {
        "classes": list(record.classes),
        "styles": styles,
        "atlas": {"columns": atlas["columns"], "rows": atlas["rows"]} if atlas else {},
        "images": {
            str(image): [
                int(record.labels[image]),
                int(record.predictions[image]),
                round(float(record.confidences[image]), 3),
                place.get(image, -1),
            ]
            for image in wanted
        },
        "points": [
            [int(image), round(float(x), 4), round(float(y), 4)]
            for image, (x, y) in zip(chosen, scaled, strict=True)
        ],
    }
    # A class called "</script>" must not end the script.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
