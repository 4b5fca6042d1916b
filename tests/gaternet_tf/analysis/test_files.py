"""The two files of an analysis: read back as they were written, and refused when damaged."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from planted_analysis import analysis_of, planted_gates

from gaternet_tf import UserError
from gaternet_tf.analysis.figures import figures_of
from gaternet_tf.analysis.files import ARRAYS, DOCUMENT, load, save
from gaternet_tf.analysis.report import headlines, write_report, write_tables


@pytest.fixture(scope="module", name="analysis")
def analysis_fixture():
    return analysis_of(planted_gates())


@pytest.fixture(scope="module", name="whole")
def whole_fixture(analysis, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    save(analysis, directory)
    return directory


@pytest.fixture(name="copied")
def copied_fixture(whole, tmp_path):
    for name in (ARRAYS, DOCUMENT):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    return tmp_path


def assert_refused(directory, *words):
    with pytest.raises(UserError) as caught:
        load(directory)
    for word in (ARRAYS, DOCUMENT, "again", *words):
        assert word in str(caught.value)


def test_what_was_saved_is_loaded_and_can_be_saved_again(analysis, whole, tmp_path):
    found = load(whole)
    assert analysis.document.items() <= found.document.items()
    for name in ("packed", "labels", "predictions", "confidences", "gate_macs"):
        np.testing.assert_array_equal(getattr(found.record, name), getattr(analysis.record, name))
    for name in ("sample", "points", "shown", "thumbnails"):
        np.testing.assert_array_equal(getattr(found, name), getattr(analysis, name))
    other = dataclasses.replace(found, points=found.points + 1)
    save(other, tmp_path)
    np.testing.assert_array_equal(load(tmp_path).points, other.points)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:900] + bytes([content[900] ^ 1]) + content[901:],
        lambda content: b"PK" + content,
    ],
    ids=["empty", "cut off", "a bit flipped", "moved"],
)
def test_damaged_arrays_are_refused(copied, damage):
    (copied / ARRAYS).write_bytes(damage((copied / ARRAYS).read_bytes()))
    assert_refused(copied, f"{ARRAYS} is damaged")


def test_arrays_of_another_analysis_are_refused(copied, analysis, tmp_path):
    record = dataclasses.replace(analysis.record, packed=np.zeros_like(analysis.record.packed))
    (tmp_path / "other").mkdir()
    save(dataclasses.replace(analysis, record=record), tmp_path / "other")
    (tmp_path / "other" / ARRAYS).replace(copied / ARRAYS)
    assert_refused(copied, f"not that of this {DOCUMENT}")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("sample", lambda values: values[:-1], "points must"),
        ("sample", lambda values: values + 1, "sample must be ascending and below 80"),
        ("sample", lambda values: values - 1, "sample must be ascending"),
        ("sample", lambda values: values[::-1], "sample must be ascending"),
        ("sample", lambda values: values.astype(float), "got float64"),
        ("shown", lambda values: values + 1, "shown must be"),
        ("points", lambda values: np.where(values > 0, values, np.nan), "points must be finite"),
        ("points", lambda values: values[:0], "shape (80, 2), got (0, 2)"),
        ("thumbnails", lambda values: values[:-1], "80 pictures"),
        ("thumbnails", lambda values: values[..., :2], "grey or RGB"),
        ("thumbnails", lambda values: values.astype(float), "80 pictures"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(analysis, tmp_path, name, change, words):
    save(dataclasses.replace(analysis, **{name: change(getattr(analysis, name))}), tmp_path)
    assert_refused(tmp_path, words)


def test_other_labels_than_the_documents_are_refused(analysis, tmp_path):
    record = dataclasses.replace(analysis.record, labels=np.zeros_like(analysis.record.labels))
    save(dataclasses.replace(analysis, record=record), tmp_path)
    assert_refused(tmp_path, "other numbers of images of a class")


def places(value, path=()):
    """Paths to all parts of a document, of lists to the first item."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, part in items:
        if isinstance(part, dict | list):
            yield from places(part, (*path, key))
        else:
            yield (*path, key)


@pytest.mark.parametrize("value", [None, "x", float("nan"), -7, [], {"a": 1}])
def test_no_damage_to_the_document_gets_as_far_as_a_traceback(copied, value):
    """It is refused, or it is of a part that nothing reads: then everything can be drawn."""
    document = json.loads((copied / DOCUMENT).read_text())
    for figure in figures_of(load(copied)):
        (copied / f"{figure.name}.svg").write_text("<svg/>")
    refused = 0
    for path in places(document):
        damaged = copy.deepcopy(document)
        inner = damaged
        for key in path[:-1]:
            inner = inner[key]
        if value is None:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        (copied / DOCUMENT).write_text(json.dumps(damaged))
        try:
            analysis = load(copied)
        except UserError:
            refused += 1
            continue
        headlines(analysis.document)
        write_tables(analysis, copied)
        write_report(analysis, figures_of(analysis), copied)
    assert refused > 50
