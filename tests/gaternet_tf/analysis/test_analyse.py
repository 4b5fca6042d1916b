"""python -m gaternet_tf.analysis, and what it writes for a run, an export and another dataset."""

import json
import shutil

import numpy as np
import pytest

from gaternet_tf import UserError
from gaternet_tf.analysis.analyse import analyse, prepare_output
from gaternet_tf.analysis.files import load
from gaternet_tf.analysis.networks import network_of_export, network_of_run
from gaternet_tf.analysis.report import draw, headlines
from gaternet_tf.data import evaluation_batches


@pytest.fixture(scope="module")
def analysis_dir(tmp_path_factory, trained, data_dir):
    from helpers import run_module

    directory = tmp_path_factory.mktemp("analysis") / "test"
    done = run_module(
        "gaternet_tf.analysis",
        f"--workdir={trained.path}",
        f"--data_dir={data_dir}",
        f"--output_dir={directory}",
        cwd=tmp_path_factory.mktemp("elsewhere"),
    )
    assert done.status == 0, done.err
    assert "Of 360 images" in done.out
    assert f"report: {directory / 'report.html'}" in done.out
    return directory


def test_the_gates_are_those_of_the_model(analysis_dir, trained, digits):
    record = load(analysis_dir).record
    model = trained.load_model()
    batches = evaluation_batches(digits, trained.preprocessing, 100)
    gates, labels = zip(
        *((model(images, training=False)["gates"], labels) for images, labels in batches),
        strict=True,
    )
    np.testing.assert_array_equal(record.rows(slice(None)), np.concatenate(gates))
    np.testing.assert_array_equal(record.labels, np.concatenate(labels))


def test_the_numbers_agree_with_the_runs_result(analysis_dir, trained):
    document, result = load(analysis_dir).document, trained.result
    gates = document["gates"]
    assert document["accuracy"] == pytest.approx(result["test_accuracy"])
    assert document["gate_rate"] == pytest.approx(result["gate_rate"])
    assert gates["total"] == result["gates"]
    for kind in ("always_on", "always_off", "input_dependent"):
        assert gates[kind] == result[f"gates_{kind}"]
    assert document["gates_on"]["all"]["max"] == result["gates_on_max"]
    assert document["macs"]["total"] == result["macs"]
    assert document["macs"]["without_off_filters"]["mean"] == pytest.approx(result["macs_on"])


def test_drawn_again_from_the_two_files_alone_it_is_the_same(analysis_dir, tmp_path):
    for name in ("gates.npz", "analysis.json"):
        shutil.copy(analysis_dir / name, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    draw(load(tmp_path), tmp_path)
    for path in analysis_dir.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    assert {path.suffix for path in analysis_dir.glob("t_sne.*")} == {".png", ".svg", ".csv"}
    assert (tmp_path / "notes.txt").exists()


def test_an_export_has_the_same_gates(analysis_dir, exported, data_dir):
    of_run = load(analysis_dir)
    network = network_of_export(exported / "1")
    of_export = analyse(network, data_dir=data_dir, perplexity=500)
    np.testing.assert_array_equal(of_run.record.packed, of_export.record.packed)
    np.testing.assert_array_equal(of_run.record.predictions, of_export.record.predictions)
    for name in ("macs", "gates", "units"):
        assert of_run.document[name] == of_export.document[name]
    assert of_export.document["source"]["version"] == "1"
    assert "absent" in of_export.document["separation"]["t_sne"]


def test_another_dataset_than_the_runs_is_named_first(trained, data_dir, tmp_path):
    def idx(array):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        return head + array.tobytes()

    rng = np.random.default_rng(0)
    for name in ("train", "t10k"):
        images, labels = rng.integers(0, 256, (60, 8, 8), np.uint8), np.arange(60, dtype=np.uint8)
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels % 10))
    others = f"idx:{tmp_path}"
    data_dir = str(tmp_path / "data")
    analysis = analyse(network_of_run(trained.path), others, data_dir, split="train")
    assert analysis.document["dataset"] == {"name": others, "version": "1.0.0", "split": "train"}
    first, *rest = headlines(analysis.document)
    assert first.startswith("The network was trained on digits 1.0.0, and all numbers here are of")
    assert f"another dataset, {others} 1.0.0." in first
    own = dict(analysis.document, dataset={"name": "digits", "version": "1.0.0", "split": "test"})
    assert headlines(own) == rest


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workdir=a", "--model_dir=b"], "one of .*got --workdir and --model_dir"),
        (["--model_dir=b"], "--model_dir needs --output_dir"),
        (["--workdir=a", "--dataset=cifar10"], "--dataset needs --output_dir"),
        (["--workdir=nowhere"], "no directory 'nowhere'"),
    ],
)
def test_wrong_usage_is_refused(run_module, flags, words):
    import re

    done = run_module("gaternet_tf.analysis", *flags)
    done.assert_refused()
    assert re.search(words, done.out + done.err)


def test_other_peoples_directories_are_refused(analysis_dir, tmp_path):
    assert prepare_output(tmp_path / "new") == tmp_path / "new"
    assert prepare_output(analysis_dir) == analysis_dir
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        prepare_output(tmp_path)
    with pytest.raises(UserError, match=r"notes\.txt' is a file"):
        prepare_output(tmp_path / "notes.txt")


def test_networks_without_gates_are_refused(trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "plain")
    document = json.loads((trained.path / "config.json").read_text())
    document["config"]["gater"] = "none"
    (tmp_path / "plain" / "config.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"needs a network with gates.*--gater=resnet20"):
        network_of_run(tmp_path / "plain")
    with pytest.raises(UserError, match=r"must be a version that export\.main wrote"):
        network_of_export(tmp_path)
