"""A version directory appears whole or not at all."""

import os
import pathlib

import pytest
from helpers import plant_run, spoil_json

from export.publish import (
    choose_version,
    existing_versions,
    published,
    remove_old_versions,
)
from gaternet_tf import UserError


def test_the_next_version_is_above_every_name_that_a_server_takes_as_a_number(tmp_path):
    assert choose_version(tmp_path / "new", None) == 1
    for name in ("2", "00000005", "+8", "-3", "1.5", "tmp-1", ".export-9-x"):
        (tmp_path / name).mkdir()
    assert existing_versions(tmp_path) == [-3, 2, 5, 8]
    assert choose_version(tmp_path, None) == 9
    assert choose_version(tmp_path, 12) == 12
    with pytest.raises(UserError, match=r"above 8.*got 3; leave it out to get 9"):
        choose_version(tmp_path, 3)


def test_versions_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "05").mkdir()
    with pytest.raises(UserError, match="has 5 already; leave --version out to get 6"):
        choose_version(tmp_path, 5)
    for version in (0, -1, 2**63):
        with pytest.raises(UserError, match=f"from 1 to .*got {version}"):
            choose_version(tmp_path, version)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        choose_version(tmp_path / "file", None)
    with pytest.raises(UserError, match=r"model's directory.*a version's number"):
        choose_version(tmp_path / "05", None)
    (tmp_path / str(2**63 - 1)).mkdir()
    with pytest.raises(UserError, match="the highest number that there is"):
        choose_version(tmp_path, None)


@pytest.mark.parametrize(
    "name",
    ["a b", "a\nb", "a\tb", "a:b", "a%20b", "a?b", "a#b", "a\u00a0b", "a\u200bb", "a\udcff"],
)
def test_names_that_a_request_cannot_have_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"must end in the model's name.*printable UTF-8") as caught:
        choose_version(tmp_path / name, None)
    assert str(caught.value).isprintable()
    with pytest.raises(UserError), published(tmp_path / name, None):
        pass
    assert os.listdir(tmp_path) == []


def test_a_path_that_is_no_utf_8_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"path in UTF-8.*a\\udcff/gaternet' is not") as caught:
        choose_version(tmp_path / "a\udcff" / "gaternet", None)
    assert str(caught.value).isprintable()


def test_names_of_other_letters_are_names(tmp_path):
    for name in ("gaternet-2.0_b", "Zürich", "ゲート"):
        assert choose_version(tmp_path / name, None) == 1
    with pytest.raises(UserError, match="must end in the model's name"):
        choose_version(pathlib.Path("/"), None)


@pytest.mark.parametrize("place", [".", "sub", "sub/deeper"])
def test_a_place_in_an_exported_version_is_refused(tmp_path, place):
    version = tmp_path / "model" / "version-1"
    version.mkdir(parents=True)
    (version / "saved_model.pb").write_text("")
    (tmp_path / "link").symlink_to(version)
    for base in (version / place, tmp_path / "link" / place):
        with pytest.raises(UserError, match="must not lie in an exported version"):
            choose_version(base, None)
        with pytest.raises(UserError, match="an exported version"), published(base, None):
            pass
    assert os.listdir(version) == ["saved_model.pb"]


def test_a_run_is_no_models_directory(tmp_path):
    run = plant_run(tmp_path / "run")
    run.result_file.unlink()
    for form in ("gaternet-run-1", "gaternet-run-0"):
        spoil_json(run.config_file, "format", value=form)
        with pytest.raises(UserError, match="is a run's; choose another"):
            choose_version(run.path, None)
    assert choose_version(run.path / "models", None) == 1
    spoil_json(run.config_file, "format", value="mine")
    assert choose_version(run.path, None) == 1


def test_nothing_numeric_is_there_before_the_block_ends(tmp_path):
    old = os.umask(0o077)
    try:
        with published(tmp_path / "new" / "model", 3) as staged:
            directory = staged.directory
            (directory / "variables").mkdir()
            (directory / "variables" / "data").write_text("x")
            assert existing_versions(tmp_path / "new" / "model") == []
    finally:
        os.umask(old)
    version = tmp_path / "new" / "model" / "3"
    assert staged.version == 3
    assert (version / "variables" / "data").read_text() == "x"
    assert os.listdir(tmp_path / "new" / "model") == ["3"]
    # Another user's server can read it, whatever the umask was.
    for directory in (version, version.parent, version.parent.parent):
        assert directory.stat().st_mode & 0o777 == 0o755
    assert (version / "variables" / "data").stat().st_mode & 0o777 == 0o644


def test_a_failed_export_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), published(tmp_path / "new" / "model", 1) as staged:
        (staged.directory / "half").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("files", [[], ["saved_model.pb"]])
def test_a_version_that_appeared_meanwhile_is_left_as_it_is(tmp_path, files):
    with (
        pytest.raises(UserError, match="has 1 already"),
        published(tmp_path, 1) as staged,
    ):
        (staged.directory / "ours").write_text("x")
        (tmp_path / "1").mkdir()
        for name in files:
            (tmp_path / "1" / name).write_text("theirs")
    assert os.listdir(tmp_path) == ["1"]
    assert os.listdir(tmp_path / "1") == files


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot"), published(tmp_path / "file" / "model", 1):
        pass


def test_exports_at_once_get_a_number_each(tmp_path):
    with published(tmp_path, None) as first, published(tmp_path, None) as second:
        assert first.directory != second.directory
        (first.directory / "file").write_text("first")
        (second.directory / "file").write_text("second")
    # The inner block ends first.
    assert (second.version, first.version) == (1, 2)
    assert (tmp_path / "1" / "file").read_text() == "second"
    assert (tmp_path / "2" / "file").read_text() == "first"


def test_what_a_killed_export_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    (tmp_path / ".export-killed" / "variables").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    with published(tmp_path, None) as running:
        with published(tmp_path, None):
            pass
        assert running.directory.is_dir()
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "mine"]


def test_old_versions_are_removed_but_never_the_newest_or_what_is_not_ours(tmp_path):
    for name in ("1", "2", "3", "4", "5", "007", "note", "-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "2" / "theirs").write_text("")
    (tmp_path / "6").write_text("a file")

    def ours(directory):
        return not (directory / "theirs").exists()

    assert remove_old_versions(tmp_path, 5, 3, ours) == [1]
    assert remove_old_versions(tmp_path, 5, 1, ours) == [3, 4]
    assert sorted(os.listdir(tmp_path)) == ["-1", "007", "2", "5", "6", "note"]
    assert remove_old_versions(tmp_path, 5, 1, ours) == []


def test_a_name_that_64_bits_do_not_hold_is_no_version(tmp_path):
    for name in ("3", "20260722153000123456", str(2**63), str(-(2**63) - 1)):
        (tmp_path / name).mkdir()
    assert existing_versions(tmp_path) == [3]
    assert choose_version(tmp_path, None) == 4
