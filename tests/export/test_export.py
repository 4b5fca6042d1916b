"""The export contract, on a really trained run and loaded as a model server loads it."""

import json
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from export.exporting import export_run
from gaternet_tf import UserError, gate_map

C_SESSION = pathlib.Path(__file__).with_name("c_session.py")
SIGNATURES = {
    "serving_default": ("predict", ["images"], ["class_ids", "labels", "probabilities"]),
    "image_bytes": ("predict", ["image_bytes"], ["class_ids", "labels", "probabilities"]),
    "classify": ("classify", ["inputs"], ["classes", "scores"]),
    "gates": ("predict", ["images"], ["class_ids", "gates", "labels", "probabilities"]),
}
TYPES = {
    "images": tf.uint8,
    "image_bytes": tf.string,
    "inputs": tf.string,
    "class_ids": tf.int64,
    "labels": tf.string,
    "probabilities": tf.float32,
    "gates": tf.uint8,
    "classes": tf.string,
    "scores": tf.float32,
}


class AsServed:
    """An export behind TensorFlow's C API, in a process without TensorFlow's Python."""

    def __init__(self, version_dir, scratch):
        self.version_dir = version_dir
        self.scratch = scratch
        saved = saved_model_pb2.SavedModel.FromString((version_dir / "saved_model.pb").read_bytes())
        (self.meta_graph,) = saved.meta_graphs
        self.signatures = self.meta_graph.signature_def

    def run(self, *requests):
        """Runs (signature, {input: array}) each; returns a dict of arrays each.

        Raises:
          RuntimeError: with the server's message, when a request fails.
        """
        job, names = [], []
        for signature, inputs in requests:
            info = self.signatures[signature]
            feeds = [
                (info.inputs[key].name, info.inputs[key].dtype, value)
                for key, value in inputs.items()
            ]
            names.append(sorted(info.outputs))
            job.append((feeds, [info.outputs[name].name for name in names[-1]]))
        (self.scratch / "job").write_bytes(pickle.dumps(job))
        libraries = pathlib.Path(tf.__file__).parent
        arguments = [libraries, self.version_dir, self.scratch / "job", self.scratch / "answer"]
        done = subprocess.run(
            [sys.executable, C_SESSION, *arguments], capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        answers = pickle.loads((self.scratch / "answer").read_bytes())
        return [dict(zip(*pair, strict=True)) for pair in zip(names, answers, strict=True)]


@pytest.fixture
def served(exported, tmp_path):
    return AsServed(exported / "1", tmp_path)


@pytest.fixture(scope="module")
def wanted(trained, digits):
    """Real test images, their PNG files, and what the Keras model says of them."""
    images = np.stack([image.numpy() for image, _ in digits.examples("test").take(40)])
    pictures = np.array([tf.io.encode_png(image).numpy() for image in images], object)
    outputs = trained.load_model()(trained.preprocessing.normalize(images), training=False)
    probabilities = tf.nn.softmax(outputs["logits"]).numpy()
    return images, pictures, probabilities, outputs["gates"].numpy()


def example(picture):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[picture]))
    features = tf.train.Features(feature={"image/encoded": feature})
    return tf.train.Example(features=features).SerializeToString()


def test_signatures_are_those_of_the_contract(served):
    assert set(served.signatures) - {"__saved_model_init_op"} == set(SIGNATURES)
    assert list(served.meta_graph.meta_info_def.tags) == ["serve"]
    for name, (method, inputs, outputs) in SIGNATURES.items():
        signature = served.signatures[name]
        assert signature.method_name == f"tensorflow/serving/{method}"
        assert sorted(signature.inputs) == inputs
        assert sorted(signature.outputs) == outputs
        for key, info in {**signature.inputs, **signature.outputs}.items():
            assert info.dtype == TYPES[key].as_datatype_enum, (name, key)
            assert info.tensor_shape.dim[0].size == -1, (name, key)
    images = served.signatures["gates"].inputs["images"].tensor_shape
    assert [dim.size for dim in images.dim] == [-1, 8, 8, 1]


def test_every_signature_equals_the_keras_model(served, wanted):
    images, pictures, probabilities, gates = wanted
    examples = np.array([example(picture) for picture in pictures], object)
    default, encoded, classified, gated = served.run(
        ("serving_default", {"images": images}),
        ("image_bytes", {"image_bytes": pictures}),
        ("classify", {"inputs": examples}),
        ("gates", {"images": images}),
    )
    for answer in (default, encoded, gated):
        np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
        np.testing.assert_array_equal(answer["class_ids"], probabilities.argmax(axis=1))
        labels = [b"%d" % number for number in answer["class_ids"]]
        assert answer["labels"].tolist() == labels
    np.testing.assert_allclose(classified["scores"], probabilities, atol=1e-5)
    assert classified["classes"].tolist() == [[b"%d" % number for number in range(10)]] * 40
    np.testing.assert_array_equal(gated["gates"], gates)
    assert 0 < gates.mean() < 1


def test_the_same_request_gives_the_same_bytes(served, wanted):
    images = wanted[0]
    first, second = served.run(*[("gates", {"images": images})] * 2)
    for key, value in first.items():
        assert value.tobytes() == second[key].tobytes() or value.dtype == object, key


def test_pictures_of_other_sizes_and_formats_share_a_batch(served, trained, wanted):
    picture = wanted[1][0]
    image = tf.io.decode_png(picture, channels=3)
    larger = tf.cast(tf.image.resize(image, (30, 17)), tf.uint8)
    mixed = [picture, tf.io.encode_jpeg(larger).numpy(), tf.io.encode_png(larger).numpy(), b""]
    (answer,) = served.run(("image_bytes", {"image_bytes": np.array(mixed, object)}))
    decoded = np.stack([trained.preprocessing.decode(tf.constant(item)) for item in mixed[:3]])
    model = trained.load_model()
    logits = model(trained.preprocessing.normalize(decoded), training=False)["logits"]
    np.testing.assert_allclose(answer["probabilities"][:3], tf.nn.softmax(logits), atol=1e-5)
    # An empty string is "no picture".
    assert answer["class_ids"][3] == -1
    assert answer["labels"][3] == b""
    np.testing.assert_array_equal(answer["probabilities"][3], 0.0)


@pytest.mark.parametrize("shape", [(2, 5, 8, 1), (2, 16, 16, 1), (2, 8, 8, 3)])
def test_pixels_of_another_size_are_refused(served, shape):
    with pytest.raises(RuntimeError, match=r"not compatible with expected shape \[\?,8,8,1\]"):
        served.run(("gates", {"images": np.zeros(shape, np.uint8)}))


def test_an_empty_batch_is_an_empty_answer(served):
    default, encoded, classified = served.run(
        ("serving_default", {"images": np.zeros([0, 8, 8, 1], np.uint8)}),
        ("image_bytes", {"image_bytes": np.array([], object)}),
        ("classify", {"inputs": np.array([], object)}),
    )
    assert default["probabilities"].shape == encoded["probabilities"].shape == (0, 10)
    assert classified["classes"].shape == (0, 10)


def test_warm_up_replays_on_every_signature(exported, tmp_path, served):
    path = exported / "1" / "assets.extra" / "tf_serving_warmup_requests"
    requests = []
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        if log.HasField("predict_log"):
            request = log.predict_log.request
            inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        else:
            request = log.classify_log.request
            examples = request.input.example_list.examples
            inputs = {"inputs": np.array([item.SerializeToString() for item in examples], object)}
        requests.append((request.model_spec.signature_name, inputs))
    assert {signature for signature, _ in requests} == set(SIGNATURES)
    for (_, inputs), answer in zip(requests, served.run(*requests), strict=True):
        (size,) = {len(value) for value in inputs.values()}
        assert {len(value) for value in answer.values()} == {size}


def all_ops(meta_graph):
    nodes = list(meta_graph.graph_def.node)
    for function in meta_graph.graph_def.library.function:
        nodes += function.node_def
    return nodes


def test_the_graph_is_deterministic_and_plain(served):
    nodes = all_ops(served.meta_graph)
    assert len(nodes) > 100
    for node in nodes:
        assert not re.search("Random|Multinomial|Dropout|PyFunc|Xla", node.op), node.op
        assert not node.attr["_gradient_op_type"].s, (node.name, "a custom gradient is left in")
        assert not node.attr["_XlaMustCompile"].b, node.name


def test_only_variables_that_inference_reads_are_saved(exported, trained):
    names = [name for name, _ in tf.train.list_variables(str(exported / "1/variables/variables"))]
    kept = [name for name in names if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    assert len(kept) == len(trained.load_model().weights)


def test_manifest_tells_where_the_version_came_from(exported, trained):
    manifest = json.loads((exported / "1" / "assets.extra" / "gaternet.json").read_text())
    assert (manifest["model"], manifest["version"]) == ("gaternet", 1)
    assert manifest["labels"] == list("0123456789")
    assert manifest["run"]["config"] == trained.config
    assert manifest["run"]["result"]["test_accuracy"] == trained.result["test_accuracy"]
    assert manifest["preprocessing"]["mean"] == list(trained.preprocessing.mean)
    assert manifest["preprocessing"]["mean"] == pytest.approx([0.305], abs=5e-4)
    assert manifest["gates"]["segments"] == gate_map(trained.load_model()).to_rows()
    assert manifest["gates"]["count"] == 112
    assert manifest["export"]["versions"]["tensorflow"] == tf.__version__


def test_a_plain_backbone_exports_too(data_dir, tmp_path):
    from helpers import small_config

    from gaternet_tf.training import train

    train(small_config(data_dir, gater="none", batch_size=512), tmp_path / "run")
    version = export_run(tmp_path / "run", tmp_path / "models" / "plain")
    (answer,) = AsServed(version, tmp_path).run(
        ("gates", {"images": np.zeros([2, 8, 8, 1], np.uint8)})
    )
    assert answer["gates"].shape == (2, 0)
    assert answer["probabilities"].shape == (2, 10)


def test_weights_that_are_not_finite_are_refused(trained, tmp_path, monkeypatch):
    model = trained.load_model()
    model.get_layer("logits").bias.assign(np.full(10, np.nan))
    monkeypatch.setattr("gaternet_tf.runs.RunDirectory.load_model", lambda self: model)
    with pytest.raises(UserError, match=r"finite, and logits/bias is not"):
        export_run(trained.path, tmp_path / "models")
    assert not (tmp_path / "models").exists()
