"""The export contract, on a really trained run and loaded as a model server loads it."""

import contextlib
import hashlib
import io
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import plant_run

from export.exporting import ExportConfig, export_run
from export.session import Request, run_requests
from export.verification import read_meta_graph
from export.warmup import read_warmup, warmup_pictures
from gaternet_tf import UserError, build_gaternet, gate_map
from gaternet_tf.manifest import read_manifest

PREDICTION = ["class_ids", "labels", "probabilities"]
WITH_GATES = ["class_ids", "gates", "labels", "probabilities"]
SIGNATURES = {
    "serving_default": ("predict", "images", PREDICTION),
    "image_bytes": ("predict", "image_bytes", PREDICTION),
    "classify": ("classify", "inputs", ["classes", "scores"]),
    "gates": ("predict", "images", WITH_GATES),
    "gates_bytes": ("predict", "image_bytes", WITH_GATES),
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


def strings(items):
    return np.array(items, object)


def example(picture, name="image/encoded"):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[picture]))
    features = tf.train.Features(feature={name: feature})
    return tf.train.Example(features=features).SerializeToString()


@pytest.fixture(scope="module", params=["exported", "exported_as_trained"])
def version(request):
    """An export of `trained`, folded or not."""
    return request.getfixturevalue(request.param) / "1"


@pytest.fixture(scope="module")
def evaluated(trained, digits):
    """Test images, labels, PNG files, and the Keras model's probabilities and gates."""
    examples = list(digits.examples("test"))
    images = np.stack([image.numpy() for image, _ in examples])
    labels = np.array([int(label) for _, label in examples])
    pictures = [tf.io.encode_png(image).numpy() for image in images]
    outputs = trained.load_model()(trained.preprocessing.normalize(images), training=False)
    probabilities = tf.nn.softmax(outputs["logits"]).numpy()
    return images, labels, pictures, probabilities, outputs["gates"].numpy()


@pytest.fixture(scope="module")
def mixed(evaluated):
    """Pictures of several sizes and formats, and none."""
    picture = evaluated[2][0]
    image = tf.io.decode_png(picture, channels=3)
    larger = tf.cast(tf.image.resize(image, (30, 17)), tf.uint8)
    return [picture, tf.io.encode_jpeg(larger).numpy(), tf.io.encode_png(larger).numpy(), b""]


@pytest.fixture(scope="module")
def answers(version, evaluated, mixed):
    """Answers to all requests of this file, from one process, by (signature, what was sent)."""
    images, _, pictures, _, _ = evaluated
    requests = {("classify", "no feature"): {"inputs": strings([example(pictures[0], "image")])}}
    examples = [example(pictures[0]), example(b""), b""]
    requests["classify", "empty"] = {"inputs": strings(examples)}
    for name, (_, key, _) in SIGNATURES.items():
        batch = {
            "images": images,
            "image_bytes": strings(pictures),
            "inputs": strings([example(picture) for picture in pictures]),
        }[key]
        requests[name, "test"] = {key: batch}
        requests[name, "no rows"] = {key: batch[:0]}
        if key == "image_bytes":
            requests[name, "mixed"] = {key: strings(mixed)}
    calls = [Request(version, name, inputs) for (name, _), inputs in requests.items()]
    return dict(zip(requests, run_requests(calls), strict=True))


def test_signatures_are_those_of_the_contract(version):
    graph = read_meta_graph(version)
    signatures = {k: v for k, v in graph.signature_def.items() if not k.startswith("__saved_model")}
    assert set(signatures) == set(SIGNATURES)
    for name, (method, key, outputs) in SIGNATURES.items():
        signature = signatures[name]
        assert signature.method_name == f"tensorflow/serving/{method}"
        assert list(signature.inputs) == [key]
        assert sorted(signature.outputs) == outputs
        for output, info in {**signature.inputs, **signature.outputs}.items():
            assert info.dtype == TYPES[output].as_datatype_enum, (name, output)
            assert info.tensor_shape.dim[0].size == -1, (name, output)
    images = signatures["gates"].inputs["images"].tensor_shape
    assert [dim.size for dim in images.dim] == [-1, 8, 8, 1]


def test_every_signature_equals_the_keras_model(answers, evaluated):
    *_, probabilities, gates = evaluated
    assert 0 < gates.mean() < 1
    for name, (_, _, outputs) in SIGNATURES.items():
        answer = answers[name, "test"].outputs
        if name == "classify":
            np.testing.assert_allclose(answer["scores"], probabilities, atol=1e-5)
            assert answer["classes"].tolist() == [[b"%d" % number for number in range(10)]] * 360
            continue
        np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
        np.testing.assert_array_equal(answer["class_ids"], probabilities.argmax(axis=1))
        assert answer["labels"].tolist() == [b"%d" % number for number in answer["class_ids"]]
        if "gates" in outputs:
            np.testing.assert_array_equal(answer["gates"], gates)


def test_accuracy_through_every_signature_is_the_evaluated_one(answers, trained, evaluated):
    labels = evaluated[1]
    right = round(trained.result["test_accuracy"] * len(labels))
    for name, (_, _, outputs) in SIGNATURES.items():
        answer = answers[name, "test"].outputs
        class_ids = answer["class_ids"] if name != "classify" else answer["scores"].argmax(axis=1)
        assert int((class_ids == labels).sum()) == right
        if "gates" in outputs:
            assert answer["gates"].mean() == pytest.approx(trained.result["gate_rate"])


def test_pictures_of_other_sizes_and_formats_share_a_batch(answers, trained, mixed):
    decoded = np.stack([trained.preprocessing.decode(tf.constant(item)) for item in mixed[:3]])
    outputs = trained.load_model()(trained.preprocessing.normalize(decoded), training=False)
    for name in ("image_bytes", "gates_bytes"):
        answer = answers[name, "mixed"].outputs
        probabilities = tf.nn.softmax(outputs["logits"])
        np.testing.assert_allclose(answer["probabilities"][:3], probabilities, atol=1e-5)
        # An empty string is "no picture".
        assert answer["class_ids"][3] == -1
        assert answer["labels"][3] == b""
        np.testing.assert_array_equal(answer["probabilities"][3], 0.0)
    np.testing.assert_array_equal(answer["gates"][:3], outputs["gates"])
    np.testing.assert_array_equal(answer["gates"][3], 0)


def test_an_example_without_a_picture_is_refused_and_an_empty_one_is_no_picture(answers):
    error = answers["classify", "no feature"].error
    assert "must have the feature image/encoded" in error
    scores = answers["classify", "empty"].outputs["scores"]
    np.testing.assert_allclose(scores.sum(axis=1), [1, 0, 0], atol=1e-5)


def test_pixels_of_another_size_are_refused_by_the_graph(exported):
    graph = read_meta_graph(exported / "1")
    for name in ("serving_default", "gates"):
        signature = graph.signature_def[name]
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            # A server does not check shapes, Python's session does, so the input gets none.
            images = tf.compat.v1.placeholder(tf.uint8)
            outputs = tf.import_graph_def(
                graph.graph_def,
                {signature.inputs["images"].name: images},
                [signature.outputs["labels"].name],
            )
            session.run(outputs, {images: np.zeros([2, 8, 8, 1], np.uint8)})
            for shape in [(2, 5, 8, 1), (2, 16, 16, 1), (2, 8, 8, 3)]:
                with pytest.raises(
                    tf.errors.InvalidArgumentError, match=r"expected shape \[\?,8,8"
                ):
                    session.run(outputs, {images: np.zeros(shape, np.uint8)})


def test_an_empty_batch_is_an_empty_answer(answers):
    for name, (_, _, outputs) in SIGNATURES.items():
        answer = answers[name, "no rows"].outputs
        assert {key: len(answer[key]) for key in outputs} == dict.fromkeys(outputs, 0)


def test_warm_up_covers_every_signature_with_real_pictures(version, trained):
    requests = read_warmup(version)
    sizes = {(each.signature, len(batch)) for each in requests for batch in each.inputs.values()}
    assert sizes == {(name, size) for name in SIGNATURES for size in (1, 8, 32)}
    pictures = [path.read_bytes() for path in sorted(trained.pictures.glob("*/*.png"))]
    for request in requests:
        if request.signature == "gates_bytes":
            sent = request.inputs["image_bytes"].tolist()
            assert sent == [pictures[i % len(pictures)] for i in range(len(sent))]


def test_no_custom_gradient_is_left_in_the_graph(version):
    graph = read_meta_graph(version).graph_def
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    assert len(nodes) > 100
    assert not [node.name for node in nodes if node.attr["_gradient_op_type"].s]


def test_only_variables_that_inference_reads_are_saved(version, trained):
    names = [name for name, _ in tf.train.list_variables(str(version / "variables/variables"))]
    kept = [name for name in names if name != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    optimize = read_manifest(version)["export"]["optimize"]
    assert len(kept) == {"none": len(trained.load_model().weights), "fold": 0}[optimize]


def test_folded_constants_are_stored_once(exported, trained):
    weights = sum(int(np.prod(variable.shape)) for variable in trained.load_model().weights)
    size = (exported / "1" / "saved_model.pb").stat().st_size
    assert weights * 4 < size < weights * 4 * 2


def test_the_manifest_says_where_the_version_came_from(exported, trained):
    version = exported / "1"
    manifest = json.loads((version / "assets.extra" / "gaternet.json").read_text())
    assert manifest["model"] == "gaternet"
    assert manifest["labels"] == list("0123456789")
    assert manifest["run"]["config"] == trained.config
    assert manifest["run"]["result"]["test_accuracy"] == trained.result["test_accuracy"]
    assert manifest["preprocessing"]["mean"] == pytest.approx([0.305], abs=5e-4)
    assert manifest["gates"]["segments"] == gate_map(trained.load_model()).to_rows()
    assert manifest["gates"]["count"] == 112
    assert len(manifest["macs"]["gates"]) == 112
    assert manifest["export"]["versions"]["tensorflow"] == tf.__version__
    files = {str(path.relative_to(version)) for path in version.rglob("*") if path.is_file()}
    assert set(manifest["sha256"]) == files - {"assets.extra/gaternet.json"}
    content = (version / "saved_model.pb").read_bytes()
    assert manifest["sha256"]["saved_model.pb"] == hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def specialized(trained, data_dir, tmp_path_factory):
    """A specialised export of `trained`, and what the export printed."""
    output_dir = tmp_path_factory.mktemp("models") / "specialized"
    config = ExportConfig(trained.path, output_dir, optimize="specialize", data_dir=data_dir)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        return export_run(config), printed


def test_a_specialised_export_says_what_it_left_out(specialized):
    version, printed = specialized
    report = read_manifest(version)["export"]["specialized"]
    out = printed.getvalue()
    assert "specialized (exact) on 1437 images of 'train'" in out
    settled = report["gates_settled_on"] + report["gates_settled_off"]
    assert settled + report["gates_free"] == report["gates"] == 112
    assert f"{report['gates_free']} depend on the image" in out
    assert f"{report['macs_before']:,} before, {report['macs_after']:,} after" in out
    for name in ("specialized", "folded"):
        assert report["milliseconds"][name].keys() == {"1", "32"}
    changed = report["images_with_a_settled_gate_changed"]
    assert (
        f"held out 360 images of 'test': {changed} change a gate that was settled, 0 get another "
        f"prediction; {report['batches_in_full']} of 12 batches of 32 take the full network"
    ) in out


def test_an_exactly_specialised_export_equals_the_keras_model(specialized, evaluated):
    images, _, _, probabilities, gates = evaluated
    answer = tf.saved_model.load(str(specialized[0])).signatures["gates"](images=images)
    np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
    np.testing.assert_array_equal(answer["gates"], gates)


def test_a_plain_half_precision_run_is_exported_as_it_is_evaluated(
    trained, evaluated, tmp_path, capsys
):
    run = plant_run(tmp_path / "run", gater="none")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        build_gaternet("resnet8", "none", run.preprocessing.shape, 2).save(run.model_file)
    finally:
        keras.config.set_dtype_policy("float32")
    config = ExportConfig(run.path, tmp_path / "half", warmup_images=str(trained.pictures))
    version = export_run(config)
    assert "exported as trained, in bfloat16" in capsys.readouterr().out
    assert read_manifest(version)["export"]["optimize"] == "none"
    signature = tf.saved_model.load(str(version)).signatures["gates_bytes"]
    answer = signature(image_bytes=tf.constant(evaluated[2][:50]))
    assert answer["gates"].shape == (50, 0)
    model = run.load_model()
    outputs = model(run.preprocessing.normalize(evaluated[0][:50]), training=False)
    probabilities = tf.nn.softmax(tf.cast(outputs["logits"], tf.float32))
    np.testing.assert_allclose(answer["probabilities"], probabilities, atol=0.02)


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


def test_pictures_that_are_not_there_or_damaged_are_named(tmp_path, trained):
    run = plant_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"--warmup_images .* there are none in '.*run/pictures'"):
        warmup_pictures(run)
    assert len(warmup_pictures(run, str(trained.pictures))) == 10
    shutil.copytree(trained.pictures, run.pictures)
    damaged = sorted(run.pictures.glob("*/*.png"))[3]
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(UserError, match=f"'{damaged}' cannot be decoded .*--warmup_images"):
        warmup_pictures(run)
