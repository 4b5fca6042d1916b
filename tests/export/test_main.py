"""python -m export.main as a user types it, and what it refuses."""

import os
import shutil

import pytest
from helpers import help_without_tensorflow, run_module

from export.exporting import ExportConfig, export_run
from gaternet_tf import UserError
from gaternet_tf.manifest import read_manifest


def test_a_version_is_added_and_the_oldest_goes(tmp_path, exported, trained):
    shutil.copytree(exported, tmp_path / "models" / "gaternet")
    shutil.copytree(exported / "1", tmp_path / "models" / "gaternet" / "2")
    flags = [f"--workdir={trained.path}", "--output_dir=models/gaternet", "--keep=2"]
    flags.append(f"--warmup_images={sorted(trained.pictures.glob('*/*'))[0]}")
    done = run_module("export.main", *flags, cwd=tmp_path)
    assert done.status == 0, done.err
    assert done.out == (
        f"removed versions 1 of models/gaternet\nexported {trained.path} to models/gaternet/3\n"
    )
    assert sorted(os.listdir(tmp_path / "models/gaternet")) == ["2", "3"]
    version = tmp_path / "models" / "gaternet" / "3"
    assert read_manifest(version)["export"]["compared"]["pictures"] == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"version": 1}, "above 1, the highest .*leave it out to get 2"),
        ({"optimize": "folded"}, "--optimize must be one of auto, none, fold, specialize"),
        ({"optimize": "specialize", "calibration_split": "mine"}, "one of test, train.*'mine'"),
        ({"optimize": "specialize", "calibration_split": "test"}, "must not be 'test'"),
        ({"warmup_images": "nowhere"}, "--warmup_images.* none in 'nowhere'"),
        ({"warmup_images": "broken.png"}, "broken.png' cannot be decoded.*--warmup_images"),
        ({"output_dir": "models/gaternet/1"}, "a version's number"),
        ({"workdir": "unfinished"}, "without a result.json.*resumes"),
        ({"workdir": "models"}, "config.json.*models"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_changes_nothing(
    tmp_path, monkeypatch, exported, trained, data_dir, settings, words
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, "models/gaternet")
    shutil.copytree(trained.path, "unfinished")
    os.remove("unfinished/result.json")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    before = sorted(tmp_path.rglob("*"))
    settings = {"workdir": trained.path, "output_dir": "models/gaternet", **settings}
    with pytest.raises(UserError, match=words):
        export_run(ExportConfig(**settings, data_dir=data_dir))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_refusal_is_one_line_and_status_1(tmp_path):
    done = run_module("export.main", "--workdir=nowhere", "--output_dir=models", cwd=tmp_path)
    done.assert_refused("export.main: error: --workdir must be a finished run")
    assert done.status == 1


def test_flags_are_checked_and_explained_without_tensorflow(tmp_path):
    assert "--[no]" not in (text := help_without_tensorflow("export.main", tmp_path))
    assert "--warmup_images" in text
    required = ["--workdir=run", "--output_dir=models"]
    for flags, words in [
        ([], "--workdir"),
        ([*required, "--version=0"], "--version=0"),
        ([*required, "--keep=0"], "--keep=0"),
        ([*required, "extra"], "takes flags only"),
    ]:
        run_module("export.main", *flags, cwd=tmp_path).assert_refused(words)
