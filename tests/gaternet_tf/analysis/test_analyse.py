"""Settings of an analysis, and what it says of a dataset that the network does not know."""

import math

import numpy as np
import pytest

from gaternet_tf import UserError
from gaternet_tf.analysis.analyse import AnalysisConfig, analyse
from gaternet_tf.analysis.files import save
from gaternet_tf.analysis.networks import network_of_run
from gaternet_tf.analysis.report import REPORT, draw, headlines


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("perplexity", (math.nan, math.inf, 0.5, -1.0)),
        ("seed", (-1, 2**32)),
        ("batch_size", (0, 2**31)),
    ],
)
def test_settings_that_cannot_work_are_refused(name, values):
    for value in values:
        with pytest.raises(UserError, match=f"--{name} must be .* got {value}"):
            AnalysisConfig(**{name: value})


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.tobytes()


@pytest.fixture(name="others")
def others_fixture(tmp_path):
    """A dataset of noise whose classes are called as those of the digits."""
    rng = np.random.default_rng(0)
    (tmp_path / "noise").mkdir()
    for name in ("train", "t10k"):
        images, labels = rng.integers(0, 256, (60, 8, 8), np.uint8), np.arange(60, dtype=np.uint8)
        (tmp_path / "noise" / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / "noise" / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels % 10))
    return f"idx:{tmp_path / 'noise'}"


def test_another_dataset_than_it_was_trained_on_is_told(trained, others, data_dir, tmp_path):
    network = network_of_run(trained.path)
    config = AnalysisConfig(dataset=others, data_dir=str(tmp_path / "data"), perplexity=5.0)
    analysis = analyse(network, config)
    save(analysis, tmp_path)
    draw(tmp_path, tmp_path)
    first = headlines(analysis.document)[0]
    assert first.startswith("The network was trained on digits 1.0.0, and all numbers here are of")
    assert f"another dataset, {others} 1.0.0." in first
    report = (tmp_path / REPORT).read_text()
    assert first in report
    assert "trained on digits 1.0.0;" in report
    own = dict(analysis.document, dataset={"name": "digits", "version": "1.0.0", "split": "test"})
    assert headlines(own) == headlines(analysis.document)[1:]
