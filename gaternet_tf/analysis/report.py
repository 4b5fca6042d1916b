"""report.html: one file, opened in any browser without a network; and the tables as CSV."""

import base64
import io
import json
import math
import os
import pathlib

import jinja2
import numpy as np
from PIL import Image

from gaternet_tf.analysis.drawing import class_style, heat_colours, spaced, write_csv
from gaternet_tf.analysis.figures import figures_of, rates_by_class, write_figure

REPORT = "report.html"
QUALITY = 80
"""WebP quality of the thumbnails."""
TABLE_COLUMNS = {
    "classes": ("class", "images", "min", "max", "mean", "std"),
    "characteristic": (
        *("class", "gate", "layer", "unit", "channel"),
        *("mutual_information", "rate_in_class", "rate_elsewhere"),
    ),
}
"""Columns of the tables whose rows may lack some or have more."""
MARKERS = {
    "o": "M5 1a4 4 0 1 0 .01 0z",
    "s": "M1.5 1.5h7v7h-7z",
    "^": "M5 1l4.2 8H.8z",
    "v": "M5 9l4.2-8H.8z",
    "D": "M5 0l5 5-5 5-5-5z",
}
"""SVG path, in a box of 10 x 10, of each marker."""


def draw(document: dict, arrays: dict[str, np.ndarray], directory: str | os.PathLike) -> None:
    """Draws figures, tables and report into `directory`, the report last.

    Figures of an earlier analysis that this one does not have are removed.
    """
    directory = pathlib.Path(directory)
    (directory / REPORT).unlink(missing_ok=True)
    for name in ("t_sne", "training"):
        for suffix in (".png", ".svg", ".csv"):
            (directory / f"{name}{suffix}").unlink(missing_ok=True)
    figures = figures_of(document, arrays)
    for figure in figures.values():
        write_figure(figure, directory)
    write_tables(document, directory)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gaternet_tf.analysis", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": lambda value: f"{100 * value:.1f} %", "spaced": spaced}
    atlas = _atlas(arrays["thumbnails"])
    text = environment.get_template("report.html.jinja").render(
        document=document,
        headlines=headlines(document),
        figures=figures,
        svg={
            name: _data_url("image/svg+xml", (directory / f"{name}.svg").read_bytes())
            for name in figures
        },
        heat_colours=heat_colours(rates_by_class(document)),
        swatch=_swatch,
        atlas=atlas,
        data=_data(document, arrays, atlas),
    )
    (directory / REPORT).write_text(text, encoding="utf-8", errors="backslashreplace")


def headlines(document: dict) -> list[str]:
    """Returns the main numbers, a sentence each."""
    gates, on, images = document["gates"], document["gates_on"]["all"], document["images"]
    trained, shown = document["source"]["dataset"], document["dataset"]
    sentences = []
    if any(trained[key] != shown[key] for key in ("name", "version")):
        sentences.append(
            f"The network was trained on {trained['name']} {trained['version']}, and all numbers "
            f"here are of another dataset, {shown['name']} {shown['version']}."
        )
    sentences += [
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
    off = [spaced(row["name"]) for row in document["units"] if row["last_layer_off"] == images]
    if off:
        units = "unit is" if len(off) == 1 else "units are"
        sentences.append(
            f"The last gated layer of {len(off)} {units} off for every image: {', '.join(off)}."
        )
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


def write_tables(document: dict, directory: pathlib.Path) -> None:
    """Writes units.csv, layers.csv, classes.csv, characteristic.csv, changed_pictures.csv."""
    classes = document["classes"]
    tables = {
        "units": document["units"],
        "layers": document["layers"],
        "classes": [
            {"class": name, **row}
            for name, row in zip(classes, document["gates_on"]["by_class"], strict=True)
        ],
        "characteristic": [
            {"class": name, **row}
            for name, rows in zip(classes, document["characteristic"], strict=True)
            for row in rows
        ],
        "changed_pictures": [
            {**row, "change": name} for name, row in document["changed_pictures"].items()
        ],
    }
    for name, rows in tables.items():
        columns = TABLE_COLUMNS.get(name) or list(rows[0])
        values = [[row.get(column) for column in columns] for row in rows]
        # Numbers that do not exist are left empty.
        cells = [["" if isinstance(value, dict) else value for value in row] for row in values]
        write_csv(directory / f"{name}.csv", [columns, *cells])


def _data_url(kind, content):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _swatch(number):
    """Returns the colour and the SVG path of a class' points."""
    colour, marker = class_style(number)
    return colour, MARKERS[marker]


def _atlas(pictures):
    """Returns all thumbnails in one picture, with its numbers of `columns` and `rows`."""
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
        "source": _data_url("image/webp", file.getvalue()),
        "columns": columns,
        "rows": rows,
        "ratio": width / height,
    }


def _data(document, arrays, atlas):
    """Returns the data of the report's script, as JSON that is safe within a script element."""
    labels, predictions, confidences = (
        arrays[name].tolist() for name in ("labels", "predictions", "confidences")
    )
    classes, points = document["classes"], arrays["points"]
    place = {image: number for number, image in enumerate(arrays["shown"].tolist())}
    # All images with a point have a thumbnail.
    sample = arrays["sample"][: len(points)].tolist()
    if len(points):
        low, high = points.min(axis=0), points.max(axis=0)
        points = (points - low) / np.maximum(high - low, 1e-9)
    data = {
        "classes": classes,
        "styles": [class_style(number) for number in range(len(classes))],
        "atlas": {"columns": atlas["columns"], "rows": atlas["rows"]} if atlas else {},
        "images": {
            str(image): [labels[image], predictions[image], round(confidences[image], 3), number]
            for image, number in place.items()
        },
        "points": [
            [image, round(float(x), 4), round(float(y), 4)]
            for image, (x, y) in zip(sample, points, strict=True)
        ],
    }
    # A class called "</script>" must not end the script.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.translate({ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&"})
