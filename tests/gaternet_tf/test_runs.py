"""The run directory: what may become one, what may be resumed, what may be read."""

import json
import os

import pytest
from helpers import plant_run, spoil_json

from gaternet_tf import UserError
from gaternet_tf.data import Preprocessing
from gaternet_tf.documents import write_text
from gaternet_tf.runs import open_run, prepare_run, require_place, require_writable

CONFIG = {"backbone": "resnet20", "epochs": 5}


def begin(path, config=CONFIG):
    run = prepare_run(path, config)
    run.write_document(config, {"labels": ["a"]}, Preprocessing(8, 8, 1, (0.0,), (1.0,)))
    return run


def test_a_new_or_empty_directory_becomes_a_run(tmp_path):
    assert begin(tmp_path / "a" / "b").config == CONFIG
    (tmp_path / "empty").mkdir()
    assert begin(tmp_path / "empty").labels == ["a"]
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"config.json"}


def test_looking_at_a_place_leaves_nothing_there(tmp_path):
    prepare_run(tmp_path / "a" / "b", CONFIG)
    with pytest.raises(UserError, match="File name too long"):
        prepare_run(tmp_path / "c" / ("d" * 300), CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_the_same_settings_resume(tmp_path):
    begin(tmp_path / "run")
    assert prepare_run(tmp_path / "run", CONFIG).config == CONFIG


def test_other_settings_are_refused_naming_the_flags(tmp_path):
    begin(tmp_path / "run")
    with pytest.raises(UserError, match=r"differ \(--epochs: 5 then, 6 now\)"):
        prepare_run(tmp_path / "run", {**CONFIG, "epochs": 6})


def test_a_foreign_directory_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds other files"):
        prepare_run(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text(json.dumps({"format": "somebody else's"}))
    with pytest.raises(UserError, match="is not one"):
        prepare_run(tmp_path, CONFIG)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("part", ["config", "dataset", "preprocessing"])
def test_a_damaged_begun_run_is_neither_resumed_nor_read(tmp_path, part):
    run = begin(tmp_path / "run")
    document = json.loads(run.config_file.read_text())
    del document[part]
    run.config_file.write_text(json.dumps(document))
    with pytest.raises(UserError, match=f"config.json' of a begun run must be.*has no '{part}'"):
        prepare_run(tmp_path / "run", CONFIG)
    with pytest.raises(UserError, match=f"config.json' of a begun run must be.*has no '{part}'"):
        open_run(tmp_path / "run")


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        prepare_run(tmp_path / "file", CONFIG)
    with pytest.raises(UserError, match=r"cannot \(Not a directory\)"):
        prepare_run(tmp_path / "file" / "below", CONFIG)


@pytest.mark.parametrize("check", [require_place, require_writable])
def test_an_exported_version_is_no_place_for_anything_else(tmp_path, check):
    version = tmp_path / "models" / "1"
    version.mkdir(parents=True)
    (version / "saved_model.pb").write_text("")
    (tmp_path / "link").symlink_to(version / "variables")
    for path in (version / "variables" / "new", tmp_path / "link" / "new"):
        with pytest.raises(UserError, match=r"^--output must not lie in an exported version"):
            check(path, "--output")
    with pytest.raises(UserError, match=r"--workdir must not lie in an exported version"):
        prepare_run(version / "run", CONFIG)
    check(version.parent / "2", "--output")
    assert os.listdir(version) == ["saved_model.pb"]


def test_a_finished_run_is_not_trained_again(tmp_path):
    begin(tmp_path / "run").write_result({"test_accuracy": 0.5})
    with pytest.raises(UserError, match="is finished; choose another"):
        prepare_run(tmp_path / "run", CONFIG)


def test_reading_wants_a_finished_run(tmp_path):
    with pytest.raises(UserError, match="there is no directory"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not one"):
        open_run(tmp_path)
    run = begin(tmp_path / "run")
    run.append_metrics({"epoch": 1})
    with pytest.raises(UserError, match="stopped after 1 of 5 epochs"):
        open_run(tmp_path / "run")
    plant_run(tmp_path / "whole", {"test_accuracy": 0.5})
    assert open_run(tmp_path / "whole").result["test_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("name", "keys", "value", "words"),
    [
        ("config.json", ["preprocessing"], None, "no 'preprocessing'"),
        ("config.json", ["preprocessing", "mean"], None, "'mean'"),
        ("config.json", ["config"], None, "no 'config'"),
        ("config.json", ["config", "seed"], "1", "'seed' is no int"),
        ("config.json", ["dataset", "labels"], [["a"]], "an item of 'labels' is no str"),
        ("result.json", ["macs"], None, "no 'macs'"),
        ("result.json", ["test_accuracy"], None, "no 'test_accuracy'"),
        ("result.json", ["gate_rate"], None, "no 'gate_rate'"),
    ],
)
def test_a_damaged_document_is_named(tmp_path, name, keys, value, words):
    run = plant_run(tmp_path / "run")
    spoil_json(run.path / name, *keys, value=value)
    with pytest.raises(UserError, match=f"{name}' of a finished run must be .*{words}"):
        open_run(run.path)


def test_a_truncated_result_is_named_and_a_converted_run_has_less(tmp_path):
    run = plant_run(tmp_path / "run")
    os.truncate(run.result_file, 20)
    with pytest.raises(UserError, match=r"result.json' of a finished run must be"):
        open_run(run.path)
    run.write_result({"converted_from": {"file": "a.pth"}, "parameters": 3})
    assert open_run(run.path).result["parameters"] == 3


def test_metrics_can_be_cut_back_to_a_checkpoint(tmp_path):
    run = begin(tmp_path / "run")
    for epoch in (1, 2, 3):
        run.append_metrics({"epoch": epoch})
    run.truncate_metrics(2)
    assert [record["epoch"] for record in run.metrics()] == [1, 2]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
