"""python -m gaternet_tf.analysis, and what it writes for a run, an export and another dataset."""

import json
import shutil

import numpy as np
import pytest
from helpers import plant_run, run_module

from gaternet_tf import UserError
from gaternet_tf.analysis.analyse import analyse
from gaternet_tf.analysis.files import load, prepare_output
from gaternet_tf.analysis.networks import network_of_export, network_of_run


@pytest.fixture(scope="module")
def analysis_dir(tmp_path_factory, trained, data_dir):
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


def test_the_numbers_agree_with_the_runs_result(analysis_dir, trained):
    document, result = load(analysis_dir)[0], trained.result
    gates = document["gates"]
    assert document["accuracy"] == pytest.approx(result["test_accuracy"])
    assert document["gate_rate"] == pytest.approx(result["gate_rate"])
    assert gates["total"] == result["gates"]
    for kind in ("always_on", "always_off", "input_dependent"):
        assert gates[kind] == result[f"gates_{kind}"]
    assert document["gates_on"]["all"]["max"] == result["gates_on_max"]
    assert document["macs"]["total"] == result["macs"]
    assert document["macs"]["without_off_filters"]["mean"] == pytest.approx(result["macs_on"])


def test_drawn_again_from_the_two_files_alone_it_is_the_same(analysis_dir, tmp_path, call):
    for name in ("gates.npz", "analysis.json"):
        shutil.copy(analysis_dir / name, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert call("gaternet_tf.analysis", f"--redraw={tmp_path}").status == 0
    for path in analysis_dir.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
    assert {path.suffix for path in analysis_dir.glob("t_sne.*")} == {".png", ".svg", ".csv"}
    assert (tmp_path / "notes.txt").exists()


def test_an_export_has_the_same_gates(analysis_dir, exported, data_dir):
    run, run_arrays = load(analysis_dir)
    network = network_of_export(exported / "1")
    export, export_arrays = analyse(network, data_dir=data_dir, perplexity=500)
    for name in ("gates", "predictions"):
        np.testing.assert_array_equal(run_arrays[name], export_arrays[name])
    for name in ("macs", "gates", "units"):
        assert run[name] == export[name]
    assert export["source"]["version"] == "1"
    assert "absent" in export["separation"]["t_sne"]


def test_wrong_usage_is_refused(call):
    for flags, words in (
        (["--workdir=a", "--model_dir=b"], "workdir, model_dir, redraw"),
        (["--model_dir=b"], "--model_dir and --dataset need --output_dir"),
        (["--workdir=a", "--dataset=cifar10"], "--model_dir and --dataset need --output_dir"),
        (["--workdir=nowhere"], "nowhere"),
        (["--redraw=nowhere"], "analysis.json"),
    ):
        call("gaternet_tf.analysis", *flags).assert_refused(words)


def test_other_peoples_directories_are_refused(analysis_dir, tmp_path):
    assert prepare_output(tmp_path / "new") == tmp_path / "new"
    assert prepare_output(analysis_dir) == analysis_dir
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        prepare_output(tmp_path)


def test_files_of_another_format_are_refused(tmp_path):
    (tmp_path / "analysis.json").write_text(json.dumps({"format": "gaternet-analysis-1"}))
    with pytest.raises(UserError, match=r"format is gaternet-analysis-1.*analysis again"):
        load(tmp_path)


def test_networks_without_gates_are_refused(tmp_path):
    plant_run(tmp_path / "plain", gater="none")
    with pytest.raises(UserError, match=r"needs a network with gates.*--gater=resnet20"):
        network_of_run(tmp_path / "plain")
