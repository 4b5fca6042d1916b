"""Figures with any names of classes."""

import csv
import warnings
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure as Canvas
from planted_analysis import planted_analysis

from gaternet_tf.analysis.figures import (
    LONGEST_NAME,
    STYLE,
    figures_of,
    shown_name,
    write_figure,
)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("dog & $x^2$ <b>", "dog & $x^2$ <b>"),
        ("crème brûlée, été", "crème brûlée, été"),
        ("", ""),
        ("a\x01b\tc\nd", r"a\x01b\tc\nd"),
        ("a\u202eb", r"a\u202eb"),
        # The name of a directory need not be UTF-8.
        ("caf\udce9", r"caf\udce9"),
        # The font has no such letter.
        ("\u732b", r"\u732b"),
        ("x" * LONGEST_NAME, "x" * LONGEST_NAME),
        ("left-" * 5 + "-right" * 5, "left-left-left-l…t-right"),
    ],
)
def test_names_as_figures_show_them(name, shown):
    assert shown_name(name) == shown


@pytest.mark.parametrize(
    "classes", [("a\x01b", "two\nlines", "caf\udce9"), ("\u732b", "_background", "$\\frac$")]
)
def test_no_name_of_a_class_spoils_a_figure(classes, tmp_path):
    figures = figures_of(planted_analysis(classes=classes))
    for figure in figures:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write_figure(figure, tmp_path)
        ElementTree.parse(tmp_path / f"{figure.name}.svg")
    # The tables have the whole names.
    for name, column in (("t_sne", "class"), ("gate_rate_by_class", "class")):
        path = tmp_path / f"{name}.csv"
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            assert {row[column] for row in csv.DictReader(file)} == set(classes)


def test_long_names_leave_room_for_the_picture():
    figures = {
        figure.name: figure
        for figure in figures_of(planted_analysis(classes=("W" * 200, "b", "c")))
    }
    for name in ("t_sne", "gate_rate_by_class"):
        with mpl.rc_context(STYLE):
            canvas = Canvas(figsize=(6.4, 3.6), layout="constrained")
            figures[name].draw(canvas)
            canvas.draw_without_rendering()
            assert canvas.axes[0].get_position().width > 0.25
            tight = canvas.get_tightbbox()
            assert 0 <= tight.x0 < tight.x1 <= 6.4
