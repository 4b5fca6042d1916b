"""export.verify finds what a model server would stumble over, and what was changed since."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers import run_module
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from export.exporting import ExportConfig, export_run
from export.verification import RANDOM, problems_of
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


def rename_signature(graph):
    graph.signature_def["mine"].CopyFrom(graph.signature_def["gates"])
    del graph.signature_def["gates"]


def to_predict(graph):
    graph.signature_def["classify"].method_name = "tensorflow/serving/predict"


def other_type(graph):
    graph.signature_def["gates"].outputs["gates"].dtype = tf.float32.as_datatype_enum


def retag(graph):
    graph.meta_info_def.tags.append("gpu")


def compiled(graph):
    graph.graph_def.library.function[0].attr["_XlaMustCompile"].b = True


def python(graph):
    graph.graph_def.node.add(name="python", op="EagerPyFunc")


def random(graph):
    graph.graph_def.library.function[0].node_def.add(name="random", op="RandomUniform")


def foreign(graph):
    graph.graph_def.node.add(name="foreign", op="MyOwnOperation")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (rename_signature, "the signatures must be"),
        (to_predict, "classify: its method must be classify"),
        (other_type, "gates: it must have"),
        (retag, "no graph tagged exactly {serve}"),
        (compiled, "has jit_compile=True"),
        (python, "operation EagerPyFunc runs Python"),
        (random, "operation RandomUniform is random"),
        (foreign, "a server cannot load it: Op type not registered 'MyOwnOperation'"),
    ],
)
def test_graphs_that_a_server_would_stumble_over(version, edit, words):
    edit_graph(version, edit)
    (problem,) = problems_of(version)
    assert words in problem


@pytest.mark.parametrize(
    "name",
    ["TruncatedNormal", "StatefulUniform", "StatefulStandardNormalV2", "NonDeterministicInts"],
)
def test_every_random_operation_is_known(name):
    assert RANDOM.search(name)


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
    assert not (tmp_path / "models").exists()


def read_records(version):
    return list(tf.data.TFRecordDataset(str(version / FILE)).as_numpy_iterator())


def write_records(version, records):
    with tf.io.TFRecordWriter(str(version / FILE)) as writer:
        for record in records:
            writer.write(record)
    edit_manifest(version)


def test_a_signature_without_a_warm_up_record(version):
    records = [record for record in read_records(version) if b"gates_bytes" not in record]
    write_records(version, records)
    assert problems_of(version) == ["the warm-up file has no record for gates_bytes"]


def test_requests_that_fail_and_answers_that_cannot_be_right(version):
    logs = []
    for signature, name, dtype in [
        ("gates", "images", np.float32),
        ("gates", "pixels", np.uint8),
        ("mine", "images", np.uint8),
    ]:
        logs.append(prediction_log_pb2.PredictionLog())
        request = logs[-1].predict_log.request
        request.model_spec.signature_name = signature
        request.inputs[name].CopyFrom(tf.make_tensor_proto(np.zeros((1, 8, 8, 1), dtype)))

    def spoil(graph):
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                if node.op == "Const" and len(node.attr["value"].tensor.tensor_content) > 2_000:
                    value = node.attr["value"].tensor
                    noise = np.frombuffer(value.tensor_content, np.float32) * np.nan
                    value.tensor_content = noise.tobytes()

    write_records(version, [*read_records(version), *(log.SerializeToString() for log in logs)])
    edit_graph(version, spoil)
    edit_manifest(version, labels=list("9876543210"), gates={"count": 3, "segments": []})
    assert {problem.partition(": ")[2] for problem in problems_of(version)} >= {
        "the inputs must be {'images': 'uint8'}, not {'images': 'float32'}",
        "the inputs must be {'images': 'uint8'}, not {'pixels': 'uint8'}",
        "there is no signature 'mine'",
        "its probabilities do not sum up to 1",
        "its labels are not those of the manifest",
        "its classes are not the labels of the manifest",
        "it has gates of shape (112,), and the manifest 3",
    }
