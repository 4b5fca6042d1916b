"""The run directory: what may become one, what may be resumed, what may be read."""

import json

import pytest
from helpers import plant_run

from gaternet_tf import UserError
from gaternet_tf.data import Preprocessing
from gaternet_tf.documents import write_text
from gaternet_tf.runs import open_run, prepare_run, require_writable

CONFIG = {"backbone": "resnet20", "epochs": 5}


def begin(path):
    run = prepare_run(path, CONFIG)
    run.write_document(CONFIG, {"labels": ["a"]}, Preprocessing(8, 8, 1, (0.0,), (1.0,)))
    return run


def test_the_same_settings_resume_and_others_are_named(tmp_path):
    begin(tmp_path / "new" / "run")
    run = prepare_run(tmp_path / "new" / "run", CONFIG)
    assert run.config == CONFIG
    with pytest.raises(UserError, match=r"differ \(--epochs: 5 then, 6 now\)"):
        prepare_run(run.path, {**CONFIG, "epochs": 6})
    prepare_run(run.path, {**CONFIG, "newer": 1.0}, {"newer": 1.0})
    with pytest.raises(UserError, match=r"differ \(--newer: 1\.0 then, 2\.0 now\)"):
        prepare_run(run.path, {**CONFIG, "newer": 2.0}, {"newer": 1.0})
    run.write_result({"test_accuracy": 0.5})
    with pytest.raises(UserError, match=r"is finished; to train on.* --init_from="):
        prepare_run(run.path, CONFIG)


def test_a_foreign_directory_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds other files"):
        prepare_run(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text(json.dumps({"format": "somebody else's"}))
    with pytest.raises(UserError, match="must be a directory that train"):
        prepare_run(tmp_path, CONFIG)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir must be a directory, and '.*file' is a"):
        prepare_run(tmp_path / "file" / "below", CONFIG)
    # Tests that run as root may write anywhere.
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match="must be a directory that can be written"):
        prepare_run(tmp_path / "a" / "b", CONFIG)


def test_an_exported_version_is_no_place_for_anything_else(tmp_path):
    version = tmp_path / "models" / "1"
    version.mkdir(parents=True)
    (version / "saved_model.pb").write_text("")
    (tmp_path / "link").symlink_to(version / "variables")
    for path in (version / "variables" / "new", tmp_path / "link" / "new"):
        with pytest.raises(UserError, match=r"^--output must not lie in an exported version"):
            require_writable(path, "--output")
    require_writable(version.parent / "2", "--output")


def test_only_a_finished_run_is_read(tmp_path):
    with pytest.raises(UserError, match="must be a directory that train"):
        open_run(tmp_path / "nowhere")
    begin(tmp_path / "run").append_metrics({"epoch": 1})
    with pytest.raises(UserError, match="stopped after 1 of 5 epochs"):
        open_run(tmp_path / "run")
    plant_run(tmp_path / "whole", {"test_accuracy": 0.5})
    assert open_run(tmp_path / "whole").result["test_accuracy"] == 0.5


def test_metrics_can_be_cut_back_to_a_checkpoint(tmp_path):
    run = begin(tmp_path)
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
