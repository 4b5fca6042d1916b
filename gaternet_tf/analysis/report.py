"""report.html: one file, opened in any browser without a network; and the tables as CSV."""

import base64
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
    Figure,
    class_style,
    figures_of,
    write_csv,
    write_figure,
)
from gaternet_tf.analysis.files import Analysis, load

REPORT = "report.html"
FIGURES_IN_TEXT = ("gate_kinds_by_unit", "images_per_gate", "gates_per_image", "macs_per_image")
QUALITY = 80
"""Of the small pictures in the report, which are compressed."""
UNIT_COLUMNS = (
    ("name", "unit"),
    ("total", "gates"),
    ("always_on", "always on"),
    ("always_off", "always off"),
    ("input_dependent", "input-dependent"),
    ("gate_rate", "gates on, %"),
    ("images_off", "images without the branch"),
)


def draw(directory: str | os.PathLike, source: str | os.PathLike) -> None:
    """Draws figures, tables and report into `directory` from the two files in `source`.

    Raises:
      UserError: when they are not there, or do not fit each other.
    """
    directory = pathlib.Path(directory)
    analysis = load(source)
    figures = figures_of(analysis)
    for figure in figures:
        write_figure(figure, directory)
    write_tables(analysis, directory)
    write_report(analysis, figures, directory)


def write_report(analysis: Analysis, figures: Sequence[Figure], directory: pathlib.Path) -> None:
    """Writes report.html, which shows `figures` from their SVG files in `directory`."""
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
        figures=[by_name[name] for name in FIGURES_IN_TEXT if name in by_name],
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
    """The main numbers, a sentence each."""
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
    macs = document["macs"]
    if "absent" not in macs:
        left = macs["without_off_filters"]["mean"]
        sentences.append(
            f"In theory, leaving out the filters that are off leaves {left / 1e6:.2f} of "
            f"{macs['total'] / 1e6:.2f} million multiply-accumulates for an image "
            f"({left / macs['total']:.1%}), the gater's included."
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
    """What must be said first of a network that was trained on other pictures."""
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
    for name in ("units", "convolutions"):
        rows = document[name]
        write_csv(directory / f"{name}.csv", [list(rows[0]), *(list(row.values()) for row in rows)])
    columns = ("images", "min", "max", "mean", "std")
    by_class = zip(document["classes"], document["gates_on"]["by_class"], strict=True)
    write_csv(
        directory / "classes.csv",
        [
            ["class", *columns],
            *([name, *(row.get(key, "") for key in columns)] for name, row in by_class),
        ],
    )
    keys = (
        *("gate", "stage", "unit", "convolution", "channel"),
        *("mutual_information", "rate_in_class", "rate_elsewhere"),
    )
    write_csv(
        directory / "characteristic.csv",
        [
            ["class", *keys],
            *(
                [name, *(row[key] for key in keys)]
                for name, rows in zip(document["classes"], document["characteristic"], strict=True)
                for row in rows
            ),
        ],
    )
    changed = document["changed_pictures"]
    shares = ("images", "gates", "input_dependent", "images_unchanged", "predictions")
    write_csv(
        directory / "changed_pictures.csv",
        [
            ["change", *shares],
            *(
                [name, *("" if isinstance(row[key], dict) else row[key] for key in shares)]
                for name, row in changed.items()
            ),
        ],
    )


def _resource(name):
    return resources.files("gaternet_tf.analysis").joinpath(name).read_text(encoding="utf-8")


def _svg(path):
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def _heat(rate):
    """(background, text colour) of a cell with a rate from 0 to 1, from light to dark blue."""
    light, dark = np.array([247, 251, 255]), np.array([8, 48, 107])
    colour = (light + rate * (dark - light)).round().astype(int)
    linear = np.where(colour <= 10, colour / 3294.6, ((colour / 255 + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ [0.2126, 0.7152, 0.0722])
    # Whichever has more contrast, as WCAG defines it: 4.5 to 1 or more on any colour.
    text = "#fff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000"
    red, green, blue = colour.tolist()
    return f"rgb({red},{green},{blue})", text


def _swatch(number):
    """The colour and the outline of a class' points, as of `svg` elements in a box of 10 x 10."""
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
    """All small pictures in one: `source`, `columns`, `rows`, `width`, `height` of a picture."""
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
    """What the report's script reads, as JSON that is safe within a script element."""
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
