"""python -m export.main as a user types it."""

import shutil

import pytest
from helpers import run_module


def test_exports_the_next_version_and_leaves_the_old_one(tmp_path, exported, trained):
    shutil.copytree(exported, tmp_path / "models" / "gaternet")
    flags = [f"--workdir={trained.path}", "--output_dir=models/gaternet"]
    done = run_module("export.main", *flags, cwd=tmp_path)
    assert done.status == 0, done.err
    assert done.out == f"exported {trained.path} to models/gaternet/2\n"
    assert (tmp_path / "models/gaternet/2/saved_model.pb").exists()
    assert {path.name for path in (tmp_path / "models/gaternet").iterdir()} == {"1", "2"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--version=1"], ["has 1 already", "leave --version out to get 2"]),
        (["--version=0"], ["--version=0"]),
        (["--workdir=nowhere"], ["finished run", "nowhere", "train.main"]),
        (["--workdir=unfinished"], ["without a result.json", "resumes"]),
        (["--workdir=models"], ["config.json", "models"]),
        (["--output_dir=note.txt"], ["must be a directory", "note.txt"]),
        (["extra"], ["takes flags only", "extra"]),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(tmp_path, exported, trained, flags, words):
    shutil.copytree(exported, tmp_path / "models" / "gaternet")
    shutil.copytree(trained.path, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "result.json").unlink()
    (tmp_path / "note.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    flags = [f"--workdir={trained.path}", "--output_dir=models/gaternet", *flags]
    run_module("export.main", *flags, cwd=tmp_path).assert_refused(*words)
    assert sorted(tmp_path.rglob("*")) == before


def test_required_flags_are_named(tmp_path):
    run_module("export.main", cwd=tmp_path).assert_refused("--workdir", "must have a value")
