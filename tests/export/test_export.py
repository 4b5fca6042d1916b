"""The export contract, on a really trained run and loaded as a model server loads it."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers import plant_run, small_config

from export.exporting import ExportConfig, export_run, warmup_pictures
from export.served import Request, Served
from export.verification import read_warm_up
from gaternet_tf import UserError, gate_map
from gaternet_tf.manifest import read_manifest
from gaternet_tf.runs import open_run
from train.loop import train

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


class AsServed(Served):
    """An export behind TensorFlow's C API, asked by (signature, {input: array})."""

    def ask(self, *requests):
        """Returns a dict of arrays for each; raises what the server would answer."""
        answers = self.run([Request(*request) for request in requests])
        for answer in answers:
            if answer.error:
                raise RuntimeError(answer.error)
        return [answer.outputs for answer in answers]


@pytest.fixture(scope="module", params=["exported", "exported_as_trained"])
def version(request):
    """An export of `trained`, folded or not."""
    return request.getfixturevalue(request.param) / "1"


@pytest.fixture
def served(version):
    return AsServed(version)


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


def ask_all(served, images, pictures):
    """The answers of the four signatures on the same pictures."""
    examples = np.array([example(picture) for picture in pictures], object)
    return served.ask(
        ("serving_default", {"images": images}),
        ("image_bytes", {"image_bytes": pictures}),
        ("classify", {"inputs": examples}),
        ("gates", {"images": images}),
    )


def test_signatures_are_those_of_the_contract(served):
    signatures = served.signatures()
    assert set(signatures) == set(SIGNATURES)
    assert list(served.meta_graphs[""].meta_info_def.tags) == ["serve"]
    for name, (method, inputs, outputs) in SIGNATURES.items():
        signature = signatures[name]
        assert signature.method_name == f"tensorflow/serving/{method}"
        assert sorted(signature.inputs) == inputs
        assert sorted(signature.outputs) == outputs
        for key, info in {**signature.inputs, **signature.outputs}.items():
            assert info.dtype == TYPES[key].as_datatype_enum, (name, key)
            assert info.tensor_shape.dim[0].size == -1, (name, key)
    images = signatures["gates"].inputs["images"].tensor_shape
    assert [dim.size for dim in images.dim] == [-1, 8, 8, 1]


def test_every_signature_equals_the_keras_model(served, wanted):
    images, pictures, probabilities, gates = wanted
    default, encoded, classified, gated = ask_all(served, images, pictures)
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
    first, second = served.ask(*[("gates", {"images": images})] * 2)
    for key, value in first.items():
        assert value.tobytes() == second[key].tobytes() or value.dtype == object, key


def test_pictures_of_other_sizes_and_formats_share_a_batch(served, trained, wanted):
    picture = wanted[1][0]
    image = tf.io.decode_png(picture, channels=3)
    larger = tf.cast(tf.image.resize(image, (30, 17)), tf.uint8)
    mixed = [picture, tf.io.encode_jpeg(larger).numpy(), tf.io.encode_png(larger).numpy(), b""]
    (answer,) = served.ask(("image_bytes", {"image_bytes": np.array(mixed, object)}))
    decoded = np.stack([trained.preprocessing.decode(tf.constant(item)) for item in mixed[:3]])
    model = trained.load_model()
    logits = model(trained.preprocessing.normalize(decoded), training=False)["logits"]
    np.testing.assert_allclose(answer["probabilities"][:3], tf.nn.softmax(logits), atol=1e-5)
    # An empty string is "no picture".
    assert answer["class_ids"][3] == -1
    assert answer["labels"][3] == b""
    np.testing.assert_array_equal(answer["probabilities"][3], 0.0)


def test_an_example_without_a_picture_is_refused_and_an_empty_one_is_no_picture(served, wanted):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[wanted[1][0]]))
    named = tf.train.Features(feature={"image": feature})
    wrong = tf.train.Example(features=named).SerializeToString()
    with pytest.raises(RuntimeError, match="must have the feature image/encoded"):
        served.ask(("classify", {"inputs": np.array([wrong], object)}))
    empty = np.array([example(wanted[1][0]), example(b""), b""], object)
    (answer,) = served.ask(("classify", {"inputs": empty}))
    np.testing.assert_allclose(answer["scores"].sum(axis=1), [1, 0, 0], atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5, 8, 1), (2, 16, 16, 1), (2, 8, 8, 3)])
def test_pixels_of_another_size_are_refused(served, shape):
    with pytest.raises(RuntimeError, match=r"not compatible with expected shape \[\?,8,8,1\]"):
        served.ask(("gates", {"images": np.zeros(shape, np.uint8)}))


def test_an_empty_batch_is_an_empty_answer(served):
    default, encoded, classified = served.ask(
        ("serving_default", {"images": np.zeros([0, 8, 8, 1], np.uint8)}),
        ("image_bytes", {"image_bytes": np.array([], object)}),
        ("classify", {"inputs": np.array([], object)}),
    )
    assert default["probabilities"].shape == encoded["probabilities"].shape == (0, 10)
    assert classified["classes"].shape == (0, 10)


def test_warm_up_covers_every_signature_with_real_pictures(version, trained, served):
    requests = read_warm_up(version / "assets.extra" / "tf_serving_warmup_requests")
    assert {request.signature for request in requests} == set(SIGNATURES)
    sizes = {len(value) for request in requests for value in request.inputs.values()}
    assert sizes == {1, 8, 32}
    pictures = [path.read_bytes() for path in sorted(trained.pictures.glob("*/*.png"))]
    for request, answer in zip(requests, served.run(requests), strict=True):
        assert not answer.error
        (size,) = {len(value) for value in request.inputs.values()}
        assert {len(value) for value in answer.outputs.values()} == {size}
        if request.signature == "image_bytes":
            assert request.inputs["image_bytes"].tolist() == [
                pictures[i % len(pictures)] for i in range(size)
            ]


def all_ops(meta_graph):
    nodes = list(meta_graph.graph_def.node)
    for function in meta_graph.graph_def.library.function:
        nodes += function.node_def
    return nodes


def test_the_graph_is_deterministic_and_plain(served):
    nodes = all_ops(served.meta_graphs[""])
    assert len(nodes) > 100
    for node in nodes:
        assert not re.search("Random|Multinomial|Dropout|PyFunc|Xla", node.op), node.op
        assert not node.attr["_gradient_op_type"].s, (node.name, "a custom gradient is left in")
        assert not node.attr["_XlaMustCompile"].b, node.name


def test_only_variables_that_inference_reads_are_saved(version, trained):
    names = [name for name, _ in tf.train.list_variables(str(version / "variables/variables"))]
    kept = [name for name in names if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    optimize = read_manifest(version)["export"]["optimize"]
    assert len(kept) == {"none": len(trained.load_model().weights), "fold": 0}[optimize]


def test_folded_constants_are_stored_once(exported, trained):
    weights = sum(int(np.prod(variable.shape)) for variable in trained.load_model().weights)
    size = (exported / "1" / "saved_model.pb").stat().st_size
    assert weights * 4 < size < weights * 4 * 2


def test_manifest_tells_where_the_version_came_from(version, trained):
    manifest = json.loads((version / "assets.extra" / "gaternet.json").read_text())
    assert manifest["model"] == "gaternet"
    assert manifest["labels"] == list("0123456789")
    assert manifest["run"]["config"] == trained.config
    assert manifest["run"]["result"]["test_accuracy"] == trained.result["test_accuracy"]
    assert manifest["preprocessing"]["mean"] == list(trained.preprocessing.mean)
    assert manifest["preprocessing"]["mean"] == pytest.approx([0.305], abs=5e-4)
    assert manifest["gates"]["segments"] == gate_map(trained.load_model()).to_rows()
    assert manifest["gates"]["count"] == 112
    assert manifest["export"]["versions"]["tensorflow"] == tf.__version__
    files = {str(path.relative_to(version)) for path in version.rglob("*") if path.is_file()}
    assert set(manifest["sha256"]) == files - {"assets.extra/gaternet.json"}
    content = (version / "saved_model.pb").read_bytes()
    assert manifest["sha256"]["saved_model.pb"] == hashlib.sha256(content).hexdigest()


def test_accuracy_through_every_signature_is_the_evaluated_one(served, trained, digits):
    images = np.stack([image.numpy() for image, _ in digits.examples("test")])
    labels = np.array([int(label) for _, label in digits.examples("test")])
    pictures = np.array([tf.io.encode_png(image).numpy() for image in images], object)
    default, encoded, classified, gated = ask_all(served, images, pictures)
    right = round(trained.result["test_accuracy"] * len(labels))
    for answer in (default, encoded, gated):
        assert int((answer["class_ids"] == labels).sum()) == right
    assert int((classified["scores"].argmax(axis=1) == labels).sum()) == right
    assert gated["gates"].mean() == pytest.approx(trained.result["gate_rate"])


def test_a_plain_backbone_exports_too(data_dir, tmp_path):
    train(small_config(data_dir, gater="none", batch_size=512), tmp_path / "run")
    version = export_run(ExportConfig(tmp_path / "run", tmp_path / "models" / "plain"))
    (answer,) = AsServed(version).ask(("gates", {"images": np.zeros([2, 8, 8, 1], np.uint8)}))
    assert answer["gates"].shape == (2, 0)
    assert answer["probabilities"].shape == (2, 10)


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype_policy": "mixed_bfloat16"},
        {"strategy": "mirrored", "gated_convs": "all", "head_batch_norm": False},
    ],
    ids=["half precision", "two replicas"],
)
def test_a_run_trained_in_another_way_exports_to_what_was_evaluated(
    settings, data_dir, digits, tmp_path, capsys
):
    train(small_config(data_dir, **settings), tmp_path / "run")
    version = export_run(ExportConfig(tmp_path / "run", tmp_path / "models" / "other"))
    half = "dtype_policy" in settings
    assert ("exported as trained, in bfloat16" in capsys.readouterr().out) == half
    assert read_manifest(version)["export"]["optimize"] == ("none" if half else "fold")
    images = np.stack([image.numpy() for image, _ in digits.examples("test")])
    labels = np.array([int(label) for _, label in digits.examples("test")])
    # In batches as evaluation has them: half precision rounds differently in others.
    first, second = AsServed(version).ask(
        ("gates", {"images": images[:250]}), ("gates", {"images": images[250:]})
    )
    class_ids = np.concatenate([first["class_ids"], second["class_ids"]])
    result = open_run(tmp_path / "run").result
    assert int((class_ids == labels).sum()) == round(result["test_accuracy"] * len(labels))
    gates = np.concatenate([first["gates"], second["gates"]])
    assert gates.sum(axis=1).max() == result["gates_on_max"]


def test_weights_that_are_not_finite_are_refused(trained, tmp_path, monkeypatch):
    model = trained.load_model()
    model.get_layer("logits").bias.assign(np.full(10, np.nan))
    monkeypatch.setattr("gaternet_tf.runs.RunDirectory.load_model", lambda self: model)
    with pytest.raises(UserError, match=r"finite, and logits/bias is not"):
        export_run(ExportConfig(trained.path, tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_a_converted_run_is_warmed_up_with_a_grey_picture_and_says_so(tmp_path, capsys):
    run = plant_run(tmp_path / "run", {"converted_from": {"file": "a.pth"}})
    (picture,) = warmup_pictures(run)
    assert (tf.io.decode_png(picture).numpy() == 128).all()
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "grey picture" in out
    assert "--warmup_images" in out


def test_a_trained_run_without_its_pictures_is_refused(tmp_path, trained, capsys):
    run = plant_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"there are none in .*run/pictures'; .*--warmup_images"):
        warmup_pictures(run)
    assert len(warmup_pictures(run, str(trained.pictures))) == 10
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("size", [0, 40, 70])
def test_a_damaged_picture_of_the_run_is_named(tmp_path, trained, size):
    run = plant_run(tmp_path / "run")
    shutil.copytree(trained.pictures, run.pictures)
    damaged = sorted(run.pictures.glob("*/*.png"))[3]
    damaged.write_bytes(damaged.read_bytes()[:size])
    with pytest.raises(UserError, match=f"'{damaged}' cannot be decoded .*--warmup_images"):
        warmup_pictures(run)
