"""Where a network comes from; a damaged export is refused and never analysed."""

import hashlib
import json
import shutil

import pytest

from gaternet_tf import UserError
from gaternet_tf.analysis.networks import network_of_export, network_of_run
from gaternet_tf.manifest import PLACE

GRAPH = "saved_model.pb"


@pytest.fixture(name="version")
def version_fixture(tmp_path, exported_as_trained):
    return shutil.copytree(exported_as_trained / "1", tmp_path / "1")


def sign(version, name):
    """Makes the manifest's checksum that of the file as it is now."""
    manifest = json.loads((version / PLACE).read_text())
    manifest["sha256"][name] = hashlib.sha256((version / name).read_bytes()).hexdigest()
    (version / PLACE).write_text(json.dumps(manifest))


def test_both_kinds_know_what_the_network_was_trained_on(trained, exported, data_dir):
    wanted = {key: trained.document["dataset"][key] for key in ("name", "version")}
    assert wanted["name"] == "digits"
    assert network_of_run(trained.path).source["dataset"] == wanted
    assert network_of_export(exported / "1").source["dataset"] == {
        **wanted,
        "content": trained.document["dataset"]["content"],
    }


@pytest.mark.parametrize("name", [GRAPH, "variables/variables.data-00000-of-00001"])
def test_a_changed_file_of_an_export_is_refused(version, name):
    content = bytearray((version / name).read_bytes())
    content[len(content) // 2] ^= 1
    (version / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} was changed.*export the run again"):
        network_of_export(version)
    (version / name).unlink()
    with pytest.raises(UserError, match=f"{name}: No such file"):
        network_of_export(version)


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x08\x01"])
def test_a_graph_that_cannot_be_loaded_is_refused(version, content):
    (version / GRAPH).write_bytes(content)
    sign(version, GRAPH)
    with pytest.raises(UserError, match=r"as export\.main wrote it, and is not"):
        network_of_export(version)


def test_a_manifest_without_the_checksum_is_refused(version):
    manifest = json.loads((version / PLACE).read_text())
    del manifest["sha256"][GRAPH]
    (version / PLACE).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"no checksum of {GRAPH}"):
        network_of_export(version)
