"""A version appears whole or not at all, above all others, whatever happens beside it."""

import json
import os
import pathlib

import pytest
from helpers import ROOT, plant_run, run_python

from export.publish import (
    choose_version,
    existing_versions,
    named_versions,
    publish,
    remove_old_versions,
    require_model_directory,
    staging_directory,
)
from gaternet_tf import UserError
from gaternet_tf.manifest import FORMAT, PLACE


def test_the_next_version_is_above_every_name_that_a_server_takes_as_a_number(tmp_path):
    assert choose_version(tmp_path / "new", None) == 1
    for name in ("2", "00000005", "+8", "-3", "1.5", "tmp-1", ".export-9-x", str(2**63)):
        (tmp_path / name).mkdir()
    assert existing_versions(tmp_path) == [-3, 2, 5, 8]
    assert choose_version(tmp_path, None) == 9
    assert choose_version(tmp_path, 12) == 12


def test_versions_that_exist_or_are_below_the_highest_are_refused(tmp_path):
    (tmp_path / "05").mkdir()
    for version in (5, 3):
        with pytest.raises(UserError, match=f"above 5.*got {version}; leave it out to get 6"):
            choose_version(tmp_path, version)
    (tmp_path / str(2**63 - 1)).mkdir()
    with pytest.raises(UserError, match=f"from 1 to .*got {2**63}"):
        choose_version(tmp_path, None)


def test_a_place_that_is_no_models_is_refused(tmp_path):
    version = tmp_path / "model" / "1"
    version.mkdir(parents=True)
    (version / "saved_model.pb").write_text("")
    (tmp_path / "file").write_text("")
    run = plant_run(tmp_path / "run")
    for place, words in {
        version: "a version's number",
        version / "sub": "an exported version",
        run.path: "is a run's",
        tmp_path / "file": "must be a directory",
        pathlib.Path("/"): "must end in the model's name",
        tmp_path / "a b": "must end in the model's name.*printable",
        tmp_path / "a:b": "must end in the model's name.*printable",
        tmp_path / "a\udcff": r"it ends in 'a\\udcff'",
    }.items():
        with pytest.raises(UserError, match=words):
            require_model_directory(place)
    for name in ("new", "gaternet-2.0_b", "Zürich", "ゲート"):
        require_model_directory(tmp_path / name)
    require_model_directory(run.path / "models")


def test_nothing_numeric_is_there_before_it_is_published_and_then_all_can_read_it(tmp_path):
    base = tmp_path / "new" / "model"
    old = os.umask(0o077)
    try:
        with staging_directory(base) as directory:
            (directory / "deeper").mkdir()
            (directory / "deeper" / "data").write_text("x")
            assert existing_versions(base) == []
            assert publish(directory, base, 3) == 3
        assert os.umask(old) == 0o077
    finally:
        os.umask(old)
    assert os.listdir(base) == ["3"]
    for path in (base.parent, *base.parent.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_a_number_that_is_taken_in_the_last_moment_is_left_as_it_is(tmp_path, monkeypatch):
    rename = pathlib.Path.rename

    def taken_before(path, target):
        monkeypatch.undo()
        target.mkdir()
        (target / "file").write_text("theirs")
        return rename(path, target)

    for version in (None, 3):
        with staging_directory(tmp_path) as directory:
            (directory / "file").write_text("ours")
            monkeypatch.setattr(pathlib.Path, "rename", taken_before)
            if version:
                with pytest.raises(UserError, match="above 3"):
                    publish(directory, tmp_path, version)
            else:
                assert publish(directory, tmp_path, version) == 2
    texts = [(tmp_path / name / "file").read_text() for name in ("1", "2", "3")]
    assert texts == ["theirs", "ours", "theirs"]


def test_what_a_killed_export_left_is_removed_after_a_day(tmp_path):
    for name, age in ((".export-killed", 2), (".export-running", 0), ("mine", 2)):
        (tmp_path / name / "variables").mkdir(parents=True)
        written = (tmp_path / name).stat().st_mtime - age * 24 * 60 * 60
        os.utime(tmp_path / name, (written, written))
    with staging_directory(tmp_path):
        pass
    assert sorted(os.listdir(tmp_path)) == [".export-running", "mine"]


def test_old_versions_are_removed_but_never_the_newest_or_what_is_not_ours(tmp_path):
    for name in ("1", "2", "3", "4", "5", "007", "note", "-1"):
        (tmp_path / name).mkdir()
        if name not in ("2", "-1"):
            (tmp_path / name / PLACE).parent.mkdir()
            (tmp_path / name / PLACE).write_text(json.dumps({"format": FORMAT}))
    (tmp_path / "6").write_text("a file")
    assert remove_old_versions(tmp_path, 5, 3) == [1]
    assert remove_old_versions(tmp_path, 5, 1) == [3, 4]
    assert sorted(os.listdir(tmp_path)) == ["-1", "007", "2", "5", "6", "note"]
    assert remove_old_versions(tmp_path, 5, 1) == []


CONFIG = """
model_config_list {
  config {
    name: "gaternet"
    base_path: "/models/gaternet"
    model_version_policy { specific { versions: 1 versions: 4 } }
    version_labels { key: "stable" value: 2 }
  }
  config { name: "other" base_path: "/models/other" version_labels { key: "stable" value: 3 } }
}
"""


def test_versions_that_a_server_pins_or_labels_stay_uncounted(tmp_path):
    for name in "12345":
        (tmp_path / name / PLACE).parent.mkdir(parents=True)
        (tmp_path / name / PLACE).write_text(json.dumps({"format": FORMAT}))
    (tmp_path / "models.config").write_text(CONFIG)
    named = named_versions(str(tmp_path / "models.config"), "gaternet")
    assert remove_old_versions(tmp_path, 5, 2, named) == []
    assert remove_old_versions(tmp_path, 5, 1, named) == [3]
    assert existing_versions(tmp_path) == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("text", "words"),
    [("max_batch_size { value: 32 }", "cannot be read as one.*max_batch_size"), (CONFIG, "'mine'")],
)
def test_a_configuration_without_the_model_is_refused(tmp_path, text, words):
    (tmp_path / "config").write_text(text)
    with pytest.raises(UserError, match=words):
        named_versions(str(tmp_path / "config"), "mine")


KILLED = """
import os, pathlib, random, shutil, signal, sys, time
from export.publish import existing_versions, publish, staging_directory

version, base = map(pathlib.Path, sys.argv[1:])

def export():
    while True:
        with staging_directory(base) as directory:
            shutil.copytree(version, directory, dirs_exist_ok=True)
            publish(directory, base, None)

for number in range(20):
    exports = []
    for _ in range(2):
        exports.append(os.fork())
        if not exports[-1]:
            export()
    while len(existing_versions(base)) < 2 * number:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.02))
    for process in exports:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
"""


def test_killed_at_any_moment_two_exports_leave_whole_versions_only(tmp_path, exported):
    """Two processes publish copies of a version as fast as they can, and are killed 20 times."""
    base = tmp_path / "model"
    done = run_python("-c", KILLED, exported / "1", base, cwd=ROOT)
    assert done.status == 0, done.err
    versions = existing_versions(base)
    assert versions == list(range(1, len(versions) + 1))
    assert len(versions) >= 38
    files = {path.relative_to(exported / "1") for path in (exported / "1").rglob("*")}
    for number in versions:
        whole = base / str(number)
        assert {path.relative_to(whole) for path in whole.rglob("*")} == files
        for path in files:
            if (whole / path).is_file():
                assert (whole / path).read_bytes() == (exported / "1" / path).read_bytes()
