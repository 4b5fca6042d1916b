"""export.verify finds what a model server would stumble over, and what was changed since."""

import json
import os
import shutil
import socket

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import run_module, spoil_json
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from export.manifest import PLACE, checksums
from export.verification import RANDOM, problems_of


@pytest.fixture
def version(exported, tmp_path):
    """A good version that a test may spoil."""
    shutil.copytree(exported / "1", tmp_path / "1")
    return tmp_path / "1"


def sign_anew(version):
    """Makes the manifest's checksums those of the files, so that only the rest is wrong."""
    manifest = json.loads((version / PLACE).read_text())
    manifest["sha256"] = checksums(version)
    (version / PLACE).write_text(json.dumps(manifest))


def edit_graph(version, edit):
    path = version / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    edit(saved.meta_graphs[0])
    path.write_bytes(saved.SerializeToString())
    sign_anew(version)


def test_a_good_version_has_no_problem(version):
    assert problems_of(version) == []
    done = run_module("export.verify", version, cwd=version.parent)
    assert (done.status, done.out) == (0, f"{version}: good\n")


def test_changed_missing_and_added_files_are_listed(version):
    warm_up = version / "assets.extra" / "tf_serving_warmup_requests"
    warm_up.write_bytes(warm_up.read_bytes() + b"x" * 12)
    (version / "fingerprint.pb").unlink()
    (version / "variables" / "more").write_text("")
    done = run_module("export.verify", version, cwd=version.parent)
    done.assert_refused(
        "fingerprint.pb is missing",
        "variables/more is not in the manifest",
        "assets.extra/tf_serving_warmup_requests was changed",
        "corrupted record",
    )
    assert done.status == 1


def test_what_is_no_file_is_listed(version):
    (version / "nowhere").symlink_to("gone")
    (version / "variables" / "round").symlink_to("round")
    (version / "assets.extra" / "elsewhere").symlink_to(version.parent)
    os.mkfifo(version / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        # A socket's address is short, and pytest's paths are not.
        place = os.open(version, os.O_RDONLY)
        bound.bind(f"/proc/self/fd/{place}/socket")
        os.close(place)
    done = run_module("export.verify", version, cwd=version.parent)
    done.assert_refused(
        "nowhere is a link to no file",
        "variables/round is a link to no file",
        "assets.extra/elsewhere is a link to a directory",
        "pipe is a pipe, a socket or a device",
        "socket is a pipe, a socket or a device",
    )
    assert done.status == 1


def test_a_pipe_in_a_files_place_is_listed_at_once(version):
    for name in (PLACE, "saved_model.pb"):
        (version / name).unlink()
        os.mkfifo(version / name)
    assert [problem.split()[0] for problem in problems_of(version)] == [
        str(PLACE),
        "saved_model.pb",
    ]


def test_a_link_to_a_file_is_the_file(version):
    (version / "saved_model.pb").rename(version.parent / "graph")
    (version / "saved_model.pb").symlink_to(version.parent / "graph")
    assert problems_of(version) == []


@pytest.mark.parametrize("content", [b"", b"not a proto \xff\xff\xff"])
def test_a_graph_that_is_none(version, content):
    (version / "saved_model.pb").write_bytes(content)
    sign_anew(version)
    (problem,) = problems_of(version)
    assert problem.startswith("saved_model.pb ")


def test_a_warm_up_record_that_is_none(version):
    with tf.io.TFRecordWriter(str(version / "assets.extra/tf_serving_warmup_requests")) as writer:
        writer.write(b"not a proto \xff\xff\xff")
    sign_anew(version)
    (problem,) = problems_of(version)
    assert problem.startswith("warm-up record 1 cannot be parsed")


def test_what_is_no_version_of_ours(tmp_path):
    (problem,) = problems_of(tmp_path / "nowhere")
    assert "must be a version that export.main wrote" in problem


def rename_signature(graph):
    graph.signature_def["mine"].CopyFrom(graph.signature_def["gates"])
    del graph.signature_def["gates"]


def to_predict(graph):
    graph.signature_def["classify"].method_name = "tensorflow/serving/predict"


def other_type(graph):
    graph.signature_def["gates"].outputs["gates"].dtype = tf.float32.as_datatype_enum


def retag(graph):
    graph.meta_info_def.tags.append("gpu")


def foreign(graph):
    graph.graph_def.node.add(name="foreign", op="MyOwnOperation")


def compiled(graph):
    graph.graph_def.library.function[0].attr["_XlaMustCompile"].b = True


def python(graph):
    node = graph.graph_def.node.add(name="python", op="EagerPyFunc")
    node.attr["token"].s = b"pyfunc_0"
    node.attr["Tin"].list.SetInParent()
    node.attr["Tout"].list.SetInParent()


def random(graph):
    shape = graph.graph_def.node.add(name="random/shape", op="Const")
    shape.attr["dtype"].type = tf.int32.as_datatype_enum
    shape.attr["value"].tensor.CopyFrom(tf.make_tensor_proto([2]))
    node = graph.graph_def.node.add(name="random", op="RandomUniform", input=["random/shape"])
    node.attr["T"].type = tf.int32.as_datatype_enum
    node.attr["dtype"].type = tf.float32.as_datatype_enum


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (rename_signature, "the signatures must be"),
        (to_predict, "classify: its method must be classify"),
        (other_type, "gates: its outputs must be"),
        (retag, "no graph tagged exactly {serve}"),
        (foreign, "a server cannot load it: Op type not registered 'MyOwnOperation'"),
        (foreign, "operation MyOwnOperation is not TensorFlow's own"),
        (compiled, "has jit_compile=True"),
        (python, "operation EagerPyFunc runs Python"),
        (random, "operation RandomUniform is random"),
    ],
)
def test_graphs_that_a_server_would_stumble_over(version, edit, words):
    edit_graph(version, edit)
    assert any(words in problem for problem in problems_of(version)), problems_of(version)


def test_keras_3_as_tf_saved_model_saves_it_is_found_out(version):
    # Loads, becomes AVAILABLE, and then fails every request: see TensorFlow Serving's behaviour.
    images = keras.Input((8, 8, 1), name="images")
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(images))
    model = keras.Model(images, outputs)
    gates = json.loads((version / PLACE).read_text())["gates"]["count"]
    labels = tf.constant([str(number) for number in range(10)])

    def predict(images):
        probabilities = tf.nn.softmax(model(tf.cast(images, tf.float32)))
        best = tf.argmax(probabilities, axis=1)
        return {
            "probabilities": probabilities,
            "class_ids": best,
            "labels": tf.gather(labels, best),
        }

    def blank(encoded):
        return tf.zeros([tf.size(encoded), 8, 8, 1], tf.uint8)

    def classify(inputs):
        classes = tf.tile(labels[None], [tf.size(inputs), 1])
        return {"classes": classes, "scores": predict(blank(inputs))["probabilities"]}

    def gated(images):
        return {**predict(images), "gates": tf.zeros([tf.shape(images)[0], gates], tf.uint8)}

    pixels = tf.TensorSpec((None, 8, 8, 1), tf.uint8, name="images")

    def text(name):
        return tf.TensorSpec([None], tf.string, name=name)

    signatures = {
        "serving_default": tf.function(predict, [pixels]),
        "image_bytes": tf.function(
            lambda image_bytes: predict(blank(image_bytes)), [text("image_bytes")]
        ),
        "classify": tf.function(classify, [text("inputs")]),
        "gates": tf.function(gated, [pixels]),
    }
    broken = version.with_name("broken")
    tf.saved_model.save(model, str(broken), signatures=signatures)
    (version / "saved_model.pb").write_bytes((broken / "saved_model.pb").read_bytes())
    shutil.rmtree(version / "variables")
    shutil.copytree(broken / "variables", version / "variables")

    def to_classify(graph):
        graph.signature_def["classify"].method_name = "tensorflow/serving/classify"

    edit_graph(version, to_classify)
    problems = problems_of(version)
    assert problems
    assert all("Could not find variable" in problem for problem in problems), problems


def write_records(version, *logs):
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    kept = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in [*kept, *(log.SerializeToString() for log in logs)]:
            writer.write(record)
    sign_anew(version)


def predict_log(signature, **inputs):
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(value)
    return log


def no_examples():
    log = prediction_log_pb2.PredictionLog()
    log.classify_log.request.model_spec.signature_name = "classify"
    return log


FLOATS = tf.make_tensor_proto(np.zeros((1, 8, 8, 1), np.float32))


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (predict_log("gates", images=FLOATS), "(gates): its inputs must be"),
        (predict_log("mine", images=FLOATS), "(mine): there is no such signature"),
        (predict_log("gates", pixels=FLOATS), "(gates): its inputs must be"),
        (predict_log("gates", images=tensor_pb2.TensorProto()), "holds no tensor"),
        (no_examples(), "(classify): it holds nothing"),
    ],
)
def test_warm_up_records_that_a_server_refuses(version, log, words):
    write_records(version, log)
    (problem,) = problems_of(version)
    assert words in problem


@pytest.mark.parametrize("part", ["labels", "preprocessing", "sha256", "gates"])
def test_a_manifest_without_a_part(version, part):
    spoil_json(version / PLACE, part)
    (problem,) = problems_of(version)
    assert f"has no '{part}'" in problem


MANIFESTS = {
    "empty run": (["run"], {}, "'run' has no 'workdir'"),
    "empty export": (["export"], {}, "'export' has no 'optimize'"),
    "labels of numbers": (["labels"], [1, 2], "an item of 'labels' is no str"),
    "nested labels": (["labels"], [["a"], ["b"]], "an item of 'labels' is no str"),
    "no count of gates": (["gates", "count"], None, "'gates' has no 'count'"),
    "another count of gates": (["gates", "count"], 5, "it counts 5 gates, and lists 112"),
    "preprocessing": (["preprocessing"], {}, "'mean'"),
}


def test_damaged_manifests_are_a_problem_and_no_traceback(exported, tmp_path):
    for name, (keys, value, _) in MANIFESTS.items():
        shutil.copytree(exported / "1", tmp_path / name)
        spoil_json(tmp_path / name / PLACE, *keys, value=value)
    done = run_module("export.verify", *MANIFESTS, cwd=tmp_path)
    done.assert_refused(*(f"export.verify: {name}: " for name in MANIFESTS))
    done.assert_refused(*(words for *_, words in MANIFESTS.values()))
    assert done.status == 1


def test_another_number_of_gates_than_the_manifest_says(version):
    manifest = json.loads((version / PLACE).read_text())
    manifest["gates"]["segments"] = manifest["gates"]["segments"][:1]
    manifest["gates"]["count"] = count = manifest["gates"]["segments"][0]["channels"]
    del manifest["macs"]
    (version / PLACE).write_text(json.dumps(manifest))
    problems = problems_of(version)
    assert problems
    assert all(f"and the manifest {count}" in problem for problem in problems)


@pytest.mark.parametrize(
    "name",
    ["TruncatedNormal", "StatefulUniform", "StatefulStandardNormalV2", "NonDeterministicInts"],
)
def test_every_random_operation_is_known(name):
    assert RANDOM.search(name)


def test_labels_and_probabilities_that_contradict_the_manifest(version):
    manifest = json.loads((version / PLACE).read_text())
    manifest["labels"] = list("9876543210")
    (version / PLACE).write_text(json.dumps(manifest))
    problems = problems_of(version)
    assert problems
    assert {problem.partition(": ")[2] for problem in problems} == {
        "its labels are not those of the manifest",
        "its classes are not the labels of the manifest",
    }


def test_weights_changed_behind_the_checksums_are_found(version):
    def spoil(graph):
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                if node.op != "Const":
                    continue
                value = node.attr["value"].tensor
                if len(value.tensor_content) > 2_000:
                    noise = np.frombuffer(value.tensor_content, np.float32) * np.nan
                    value.tensor_content = noise.tobytes()

    edit_graph(version, spoil)
    problems = problems_of(version)
    assert any("do not sum up to 1" in problem for problem in problems), problems


def test_usage(tmp_path):
    run_module("export.verify", cwd=tmp_path).assert_refused("takes version directories")
