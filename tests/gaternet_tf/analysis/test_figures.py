"""Figures with any names of classes."""

import csv
import warnings
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure as Canvas
from planted_analysis import planted_analysis

from gaternet_tf.analysis.figures import STYLE, figures_of, shown_name, write_figure


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("dog & $x^2$ <b>, crème", "dog & $x^2$ <b>, crème"),
        ("a\x01b\tc\nd\u202ee", r"a\x01b\tc\nd\u202ee"),
        # The name of a directory need not be UTF-8.
        ("caf\udce9", r"caf\udce9"),
        # The font has no such letter.
        ("\u732b", r"\u732b"),
        ("left-" * 5 + "-right" * 5, "left-left-left-l…t-right"),
    ],
)
def test_names_as_figures_show_them(name, shown):
    assert shown_name(name) == shown


def test_no_name_of_a_class_spoils_a_figure(tmp_path):
    classes = ("a\x01b\n\u732b", "caf\udce9 $\\frac$", "_background" + "W" * 200)
    figures = figures_of(*planted_analysis(classes=classes))
    for name in ("t_sne", "gate_rate_by_class"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write_figure(figures[name], tmp_path)
        ElementTree.parse(tmp_path / f"{name}.svg")
        # The tables have the whole names.
        path = tmp_path / f"{name}.csv"
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            assert {row["class"] for row in csv.DictReader(file)} == set(classes)
        # Long names leave room for the picture.
        with mpl.rc_context(STYLE):
            canvas = Canvas(figsize=(6.4, 3.6), layout="constrained")
            figures[name].draw(canvas)
            canvas.draw_without_rendering()
            assert canvas.axes[0].get_position().width > 0.25
            tight = canvas.get_tightbbox()
            assert 0 <= tight.x0 < tight.x1 <= 6.4
