"""python -m gaternet_tf.analysis and .compare, as a user calls them."""

import json

import numpy as np
import pytest

from gaternet_tf.analysis.analyse import put_in_place
from gaternet_tf.analysis.files import load
from gaternet_tf.data import evaluation_batches


@pytest.fixture(scope="module", name="analysis_dir")
def analysis_dir_fixture(tmp_path_factory, trained, data_dir):
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
    analysis = load(analysis_dir)
    model = trained.load_model()
    gates, labels = [], []
    for images, batch_labels in evaluation_batches(digits, trained.preprocessing, 100):
        gates.append(model(images, training=False)["gates"])
        labels.append(batch_labels)
    np.testing.assert_array_equal(analysis.record.rows(slice(None)), np.concatenate(gates))
    np.testing.assert_array_equal(analysis.record.labels, np.concatenate(labels))


def test_the_numbers_agree_with_the_runs_result(analysis_dir, trained):
    document, result = load(analysis_dir).document, trained.result
    gates = document["gates"]
    assert document["accuracy"] == pytest.approx(result["test_accuracy"])
    assert document["gate_rate"] == pytest.approx(result["gate_rate"])
    assert gates["total"] == result["gates"]
    assert gates["always_on"] == result["gates_always_on"]
    assert gates["always_off"] == result["gates_always_off"]
    assert gates["input_dependent"] == result["gates_input_dependent"]
    assert document["gates_on"]["all"]["max"] == result["gates_on_max"]
    assert document["macs"]["total"] == result["macs"]
    assert document["macs"]["without_off_filters"]["mean"] == pytest.approx(result["macs_on"])


def test_every_figure_is_there_three_times(analysis_dir):
    for name in ("gate_kinds_by_unit", "images_per_gate", "gates_per_image", "t_sne"):
        assert (analysis_dir / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (analysis_dir / f"{name}.svg").read_text()
        assert len((analysis_dir / f"{name}.csv").read_text().splitlines()) > 1
    for name in ("units", "convolutions", "classes", "characteristic", "changed_pictures"):
        assert (analysis_dir / f"{name}.csv").exists()


def test_drawn_again_from_the_two_files_alone_it_is_the_same(analysis_dir, tmp_path, run_module):
    for name in ("gates.npz", "analysis.json"):
        (tmp_path / name).write_bytes((analysis_dir / name).read_bytes())
    done = run_module("gaternet_tf.analysis", f"--redraw={tmp_path}")
    assert done.status == 0, done.err
    for path in analysis_dir.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_export_gives_the_same_gates(analysis_dir, exported, data_dir, tmp_path, run_module):
    done = run_module(
        "gaternet_tf.analysis",
        f"--model_dir={exported / '1'}",
        f"--data_dir={data_dir}",
        f"--output_dir={tmp_path / 'out'}",
    )
    assert done.status == 0, done.err
    ours, theirs = load(analysis_dir), load(tmp_path / "out")
    np.testing.assert_array_equal(ours.record.packed, theirs.record.packed)
    np.testing.assert_array_equal(ours.record.predictions, theirs.record.predictions)
    assert ours.document["macs"] == theirs.document["macs"]
    assert theirs.document["source"]["version"] == "1"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["one of --workdir, --model_dir and --redraw"]),
        (["--workdir=a", "--model_dir=b"], ["--workdir and --model_dir"]),
        (["--model_dir=b"], ["--output_dir"]),
        (["--workdir=a", "--dataset=cifar10"], ["--dataset needs --output_dir"]),
        (["--workdir=nowhere"], ["no directory 'nowhere'"]),
        (["--workdir=nowhere", "--perplexity=nan"], ["--perplexity must be 1 or more", "got nan"]),
        (["--model_dir=nowhere", "--output_dir=x"], ["must be a version that export.main wrote"]),
        (["--redraw=nowhere"], ["analysis.json and gates.npz"]),
        (["more"], ["takes flags only, got 'more'"]),
    ],
)
def test_bad_calls_are_refused(run_module, flags, words):
    run_module("gaternet_tf.analysis", *flags).assert_refused(*words)


def test_what_does_not_fit_the_run_is_refused(trained, data_dir, tmp_path, run_module):
    common = (f"--workdir={trained.path}", f"--data_dir={data_dir}")
    run_module("gaternet_tf.analysis", *common, "--split=no").assert_refused("'no'", "test, train")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    run_module("gaternet_tf.analysis", *common, "--output_dir=mine").assert_refused(
        "holds other files"
    )
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_earlier_analysis_is_replaced_and_what_is_not_ours_stays(analysis_dir, tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    for directory in (new, old):
        directory.mkdir()
        (directory / "analysis.json").write_text(directory.name)
    (old / "t_sne.png").write_text("stale")
    (old / "notes.txt").write_text("mine")
    put_in_place(new, old)
    assert (old / "analysis.json").read_text() == "new"
    assert sorted(path.name for path in old.iterdir()) == ["analysis.json", "notes.txt"]


def test_a_matrix_of_another_network_is_refused(analysis_dir, tmp_path, run_module):
    document = json.loads((analysis_dir / "analysis.json").read_text())
    document["gate_map"] = document["gate_map"][:-1]
    (tmp_path / "analysis.json").write_text(json.dumps(document))
    (tmp_path / "gates.npz").write_bytes((analysis_dir / "gates.npz").read_bytes())
    run_module("gaternet_tf.analysis", f"--redraw={tmp_path}").assert_refused("another network")
