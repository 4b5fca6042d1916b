"""A version directory appears whole or not at all."""

import os

import pytest

from export.publish import choose_version, existing_versions, published
from gaternet_tf import UserError


def test_the_next_version_is_above_every_name_that_a_server_takes_as_a_number(tmp_path):
    assert choose_version(tmp_path / "new", None) == 1
    for name in ("2", "00000005", "+8", "-3", "1.5", "tmp-1", ".export-9-x"):
        (tmp_path / name).mkdir()
    assert existing_versions(tmp_path) == [-3, 2, 5, 8]
    assert choose_version(tmp_path, None) == 9
    assert choose_version(tmp_path, 3) == 3


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


def test_nothing_numeric_is_there_before_the_block_ends(tmp_path):
    old = os.umask(0o077)
    try:
        with published(tmp_path / "model", 3) as directory:
            (directory / "variables").mkdir()
            (directory / "variables" / "data").write_text("x")
            assert existing_versions(tmp_path / "model") == []
    finally:
        os.umask(old)
    version = tmp_path / "model" / "3"
    assert (version / "variables" / "data").read_text() == "x"
    assert os.listdir(tmp_path / "model") == ["3"]
    # Another user's server can read it, whatever the umask was.
    assert version.stat().st_mode & 0o777 == 0o755
    assert (version / "variables" / "data").stat().st_mode & 0o777 == 0o644


def test_a_failed_export_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), published(tmp_path, 1) as directory:
        (directory / "half").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("files", [[], ["saved_model.pb"]])
def test_a_version_that_appeared_meanwhile_is_left_as_it_is(tmp_path, files):
    with (
        pytest.raises(UserError, match="version 1 appeared"),
        published(tmp_path, 1) as directory,
    ):
        (directory / "ours").write_text("x")
        (tmp_path / "1").mkdir()
        for name in files:
            (tmp_path / "1" / name).write_text("theirs")
    assert os.listdir(tmp_path) == ["1"]
    assert os.listdir(tmp_path / "1") == files


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot"), published(tmp_path / "file" / "model", 1):
        pass
