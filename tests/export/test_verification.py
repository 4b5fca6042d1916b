"""export.verify finds what a model server would stumble over, and what was changed since."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers import run_module
from tensorflow.core.protobuf import saved_model_pb2

from export.exporting import ExportConfig, export_run
from export.session import Answer
from export.verification import problems_of
from export.warmup import FILE
from gaternet_tf import UserError
from gaternet_tf.manifest import PLACE, checksums


@pytest.fixture
def version(exported, tmp_path):
    """A good version that a test may spoil."""
    shutil.copytree(exported / "1", tmp_path / "1")
    return tmp_path / "1"


def edit_manifest(version, **changes):
    """Changes the manifest, whose checksums become those of the files."""
    manifest = json.loads((version / PLACE).read_text())
    manifest |= {"sha256": checksums(version), **changes}
    (version / PLACE).write_text(json.dumps(manifest))


def edit_graph(version, edit):
    path = version / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    edit(saved.meta_graphs[0])
    path.write_bytes(saved.SerializeToString())
    edit_manifest(version)


def test_a_good_version_is_good_and_what_was_changed_in_another_is_listed(version):
    changed = version.with_name("2")
    shutil.copytree(version, changed)
    (changed / FILE).write_bytes(b"x" * 12)
    (changed / "fingerprint.pb").unlink()
    (changed / "variables" / "more").write_text("")
    done = run_module("export.verify", "1", "2", cwd=version.parent)
    assert (done.status, done.out) == (1, "1: good\n")
    done.assert_refused(
        "export.verify: 2: fingerprint.pb is missing",
        "variables/more is not in the manifest",
        "assets.extra/tf_serving_warmup_requests was changed",
    )


def test_what_is_no_version_of_ours(version, tmp_path):
    (problem,) = problems_of(tmp_path / "nowhere")
    assert "must be a version that export.main wrote" in problem
    edit_manifest(version, format="gaternet-export-0")
    (problem,) = problems_of(version)
    assert "its format is gaternet-export-0" in problem
    run_module("export.verify", cwd=tmp_path).assert_refused("takes version directories")


def test_graphs_that_a_server_would_stumble_over(version):
    def edit(graph):
        graph.signature_def["classify"].method_name = "tensorflow/serving/predict"
        graph.signature_def["gates"].outputs["gates"].dtype = tf.float32.as_datatype_enum
        function = graph.graph_def.library.function[0]
        function.attr["_XlaMustCompile"].b = True
        graph.graph_def.node.add(name="python", op="EagerPyFunc")
        for name in ("RandomUniform", "TruncatedNormal", "StatefulStandardNormalV2", "RngSkip"):
            function.node_def.add(name=name, op=name)

    edit_graph(version, edit)
    method, dtype, *operations, compiled = problems_of(version)
    assert method == "classify: its method must be classify, not tensorflow/serving/predict"
    assert dtype.startswith("gates: it must have")
    assert operations == [
        "operation EagerPyFunc runs Python",
        "operation RandomUniform is random",
        "operation RngSkip is random",
        "operation StatefulStandardNormalV2 is random",
        "operation TruncatedNormal is random",
    ]
    assert "has jit_compile=True" in compiled


def test_an_operation_that_servers_do_not_have(version):
    edit_graph(version, lambda graph: graph.graph_def.node.add(name="mine", op="MyOwnOperation"))
    (problem,) = problems_of(version)
    assert "a server cannot load it: Op type not registered 'MyOwnOperation'" in problem


def test_keras_3_as_tf_saved_model_saves_it_is_found_out(trained, tmp_path, monkeypatch):
    # It loads, becomes AVAILABLE and then fails every request.
    model = trained.load_model()

    class Archive:
        """Stands for `ExportArchive`, with signatures of the same names."""

        def __init__(self):
            self.signatures = {}

        def add_endpoint(self, name, function, input_signature):
            self.signatures[name] = tf.function(function, input_signature=input_signature)

        def write_out(self, directory, verbose):
            tf.saved_model.save(model, directory, signatures=self.signatures)

    monkeypatch.setattr("keras.export.ExportArchive", Archive)
    monkeypatch.setattr("gaternet_tf.runs.RunDirectory.load_model", lambda self: model)
    with pytest.raises(UserError, match="nothing was published") as caught:
        export_run(ExportConfig(trained.path, tmp_path / "models", optimize="none"))
    _, *problems = str(caught.value).splitlines()
    assert problems
    assert all("Could not find variable" in problem for problem in problems), problems
    assert not list((tmp_path / "models").iterdir())


def test_a_signature_without_a_warm_up_record(version):
    records = list(tf.data.TFRecordDataset(str(version / FILE)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(version / FILE)) as writer:
        for record in records:
            if b"gates_bytes" not in record:
                writer.write(record)
    edit_manifest(version)
    assert problems_of(version) == ["the warm-up file has no record for gates_bytes"]


def test_answers_that_cannot_be_right(version, monkeypatch):
    def wrong_answers(requests):
        rng = np.random.default_rng(0)
        answers = [Answer({}, "it is out of memory", [])]
        for request in requests[1:]:
            (rows,) = (len(batch) for batch in request.inputs.values())
            outputs = {"class_ids": np.full(rows, 10), "labels": np.full(rows, b"a", object)}
            outputs["classes"] = np.full((rows, 10), b"a", object)
            outputs["gates"] = np.full((rows, 112), 2, np.uint8)
            scores = rng.uniform(size=(rows, 10))
            answers.append(Answer({**outputs, "scores": scores, "probabilities": scores}, "", []))
        return answers

    monkeypatch.setattr("export.verification.run_requests", wrong_answers)
    first, *problems = problems_of(version)
    assert first == "warm-up record 1 (serving_default) fails: it is out of memory"
    assert {problem.partition(")")[2] for problem in problems} == {
        " gets another answer the second time",
        ": its probabilities do not sum up to 1",
        ": its class_ids are not those of its probabilities and the manifest",
        ": its labels are not those of its probabilities and the manifest",
        ": its classes are not those of its probabilities and the manifest",
        ": its gates must be 0 or 1 and have the shape (1, 112)",
        ": its gates must be 0 or 1 and have the shape (8, 112)",
        ": its gates must be 0 or 1 and have the shape (32, 112)",
        ": its probabilities differ from another signature's",
    }
