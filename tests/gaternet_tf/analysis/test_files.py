"""The two files of an analysis are read back as they were written."""

import json

import numpy as np
import pytest
from planted_analysis import planted_analysis

from gaternet_tf import UserError
from gaternet_tf.analysis.files import ARRAYS, DOCUMENT, load, save


def test_a_saved_analysis_is_loaded(tmp_path):
    analysis = planted_analysis()
    save(analysis, tmp_path)
    loaded = load(tmp_path)
    assert analysis.document.items() <= loaded.document.items()
    for name in ("packed", "labels", "predictions", "confidences", "gate_macs"):
        np.testing.assert_array_equal(getattr(loaded.record, name), getattr(analysis.record, name))
    for name in ("sample", "points", "shown", "thumbnails"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(analysis, name))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, DOCUMENT),
        (
            {DOCUMENT: json.dumps({"format": "gaternet-analysis-1"})},
            "format is gaternet-analysis-1",
        ),
        ({DOCUMENT: json.dumps({"format": "gaternet-analysis-2"})}, ARRAYS),
    ],
)
def test_a_directory_without_an_analysis_is_refused(tmp_path, files, words):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{words}.*run python -m gaternet_tf.analysis again"):
        load(tmp_path)
