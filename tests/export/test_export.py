"""The export contract, on a really trained run and loaded as a model server loads it."""

import contextlib
import hashlib
import io
import json
import pathlib
import shutil
import struct

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import plant_run
from PIL import Image

from export.exporting import ExportConfig, build_network, export_run
from export.session import Request, run_requests
from export.signatures import write_saved_model
from export.verification import CONTRACT, read_meta_graph
from export.warmup import read_warmup, warmup_pictures
from gaternet_tf import UserError, build_gaternet, gate_map
from gaternet_tf.documents import read_json
from gaternet_tf.macs import Macs
from gaternet_tf.manifest import read_manifest

# The input and the outputs of each signature.
SIGNATURES = {name: (*inputs, set(outputs)) for name, (_, inputs, outputs) in CONTRACT.items()}


def strings(items):
    return np.array(items, object)


def example(picture, name="image/encoded"):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[picture]))
    features = tf.train.Features(feature={name: feature})
    return tf.train.Example(features=features).SerializeToString()


@pytest.fixture(scope="module")
def model(trained):
    return trained.load_model()


@pytest.fixture(scope="module", params=["folded", "as trained"])
def version(request, versions):
    """An export of `trained`, folded or not."""
    return versions[request.param]


@pytest.fixture(scope="module")
def versions(exported, exported_as_trained):
    return {"folded": exported / "1", "as trained": exported_as_trained / "1"}


@pytest.fixture(scope="module")
def evaluated(trained, digits, model):
    """Test images, labels, PNG files, and the Keras model's probabilities and gates."""
    examples = list(digits.examples("test"))
    images = np.stack([image.numpy() for image, _ in examples])
    labels = np.array([int(label) for _, label in examples])
    pictures = [tf.io.encode_png(image).numpy() for image in images]
    outputs = model(trained.preprocessing.normalize(images), training=False)
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
def all_answers(versions, evaluated, mixed):
    """Answers to all requests of this file, from one process."""
    images, _, pictures, _, _ = evaluated
    requests = {("classify", "no feature"): {"inputs": strings([example(pictures[0], "image")])}}
    examples = [example(pictures[0]), example(b""), b""]
    requests["classify", "empty"] = {"inputs": strings(examples)}
    for name, (key, _) in SIGNATURES.items():
        batch = {
            "images": images,
            "image_bytes": strings(pictures),
            "inputs": strings([example(picture) for picture in pictures]),
        }[key]
        requests[name, "test"] = {key: batch}
        requests[name, "no rows"] = {key: batch[:0]}
        if key == "image_bytes":
            requests[name, "mixed"] = {key: strings(mixed)}
    calls = {
        (version, *key): Request(version, key[0], inputs)
        for version in versions.values()
        for key, inputs in requests.items()
    }
    return dict(zip(calls, run_requests(list(calls.values())), strict=True))


@pytest.fixture(scope="module")
def answers(all_answers, version):
    """Those of one version, by (signature, what was sent)."""
    return {tuple(key): each for (path, *key), each in all_answers.items() if path == version}


def test_every_signature_equals_the_keras_model(answers, evaluated):
    *_, probabilities, gates = evaluated
    assert 0 < gates.mean() < 1
    for name, (_, outputs) in SIGNATURES.items():
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
    for name, (_, outputs) in SIGNATURES.items():
        answer = answers[name, "test"].outputs
        class_ids = answer["class_ids"] if name != "classify" else answer["scores"].argmax(axis=1)
        assert int((class_ids == labels).sum()) == right
        if "gates" in outputs:
            assert answer["gates"].mean() == pytest.approx(trained.result["gate_rate"])


def test_pictures_of_other_sizes_and_formats_share_a_batch(answers, trained, mixed, model):
    decoded = np.stack([trained.preprocessing.decode(tf.constant(item)) for item in mixed[:3]])
    outputs = model(trained.preprocessing.normalize(decoded), training=False)
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


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(exported):
    def header(side):
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", side, side)

    signatures = tf.saved_model.load(exported / "1").signatures
    for name, (key, _) in SIGNATURES.items():
        if key == "images":
            continue
        for picture, words in [
            (header(5001), r"of 1 to 25,000,000 pixels; scale it down.*\[25010001\]"),
            (b"no picture", "must be a JPEG, PNG, BMP or GIF"),
            (header(5000), "Invalid PNG"),
        ]:
            batch = tf.constant([example(picture) if key == "inputs" else picture])
            with pytest.raises(tf.errors.InvalidArgumentError, match=words):
                signatures[name](**{key: batch})


def test_an_empty_batch_is_an_empty_answer(answers):
    for name, (_, outputs) in SIGNATURES.items():
        answer = answers[name, "no rows"].outputs
        assert {key: len(answer[key]) for key in outputs} == dict.fromkeys(outputs, 0)


def test_warm_up_covers_every_signature_with_real_pictures(exported, trained):
    requests = read_warmup(exported / "1")
    sizes = {(each.signature, len(batch)) for each in requests for batch in each.inputs.values()}
    assert sizes == {(name, size) for name in SIGNATURES for size in (1, 8, 32)}
    pictures = [path.read_bytes() for path in sorted(trained.pictures.glob("*/*.png"))]
    sent = [each.inputs["image_bytes"].tolist() for each in requests if "bytes" in each.signature]
    assert (4 * pictures)[:32] in sent


def test_folded_constants_are_stored_once(exported, model):
    weights = sum(int(np.prod(variable.shape)) for variable in model.weights)
    size = (exported / "1" / "saved_model.pb").stat().st_size
    assert weights * 4 < size < weights * 4 * 2


def test_the_manifest_says_where_the_version_came_from(exported, trained, model):
    version = exported / "1"
    manifest = json.loads((version / "assets.extra" / "gaternet.json").read_text())
    assert manifest["labels"] == list("0123456789")
    assert manifest["run"]["config"] == trained.config
    assert manifest["run"]["result"]["test_accuracy"] == trained.result["test_accuracy"]
    assert manifest["preprocessing"]["mean"] == pytest.approx([0.305], abs=5e-4)
    assert manifest["gates"]["segments"] == gate_map(model).to_rows()
    assert Macs.from_rows(manifest["macs"]["products"]).total == trained.result["macs"]
    assert manifest["export"]["versions"]["tensorflow"] == tf.__version__
    files = {str(path.relative_to(version)) for path in version.rglob("*") if path.is_file()}
    assert set(manifest["sha256"]) == files - {"assets.extra/gaternet.json"}
    content = (version / "saved_model.pb").read_bytes()
    assert manifest["sha256"]["saved_model.pb"] == hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def specialized(trained, data_dir, tmp_path_factory):
    """A specialised export of `trained`, and what the export printed."""
    output_dir = tmp_path_factory.mktemp("models") / "specialized"
    config = ExportConfig(
        trained.path,
        output_dir,
        optimize="specialize",
        specialize_mode="exact",
        data_dir=data_dir,
    )
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        return export_run(config), printed


def test_a_specialised_export_says_what_it_left_out(specialized):
    version, printed = specialized
    record = read_manifest(version)["export"]
    report, out = record["specialized"], printed.getvalue()
    assert "specialized (exact) on 1437 images of 'train'" in out
    settled = report["gates_settled_on"] + report["gates_settled_off"]
    assert settled + report["gates_free"] == report["gates"] == 112
    for name in ("exported", "plain"):
        assert record["milliseconds"][name].keys() == {"1", "8", "32"}
    assert "time, as a share of the plain network's: batch 1" in out
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


def test_a_conditional_export_equals_the_keras_model(trained, data_dir, evaluated, tmp_path):
    cost = str(tmp_path / "cost.json")
    config = ExportConfig(
        trained.path, tmp_path / "models", optimize="conditional", data_dir=data_dir, cost=cost
    )
    version = export_run(config)
    report = read_manifest(version)["export"]["specialized"]
    assert report["mode"] == "calibrated"
    assert report["conditional"]["batch"] in (0, 1, 8, 32)
    assert len(read_json(pathlib.Path(cost))) == report["conditional"]["costs_measured_here"] > 0
    images, _, _, probabilities, gates = evaluated
    answers = tf.saved_model.load(str(version)).signatures["gates"]
    for part in (slice(0, 1), slice(1, None)):
        answer = answers(images=images[part])
        agree = (answer["gates"] == gates[part]).numpy().all(axis=1)
        assert agree.mean() > 0.9
        np.testing.assert_allclose(
            answer["probabilities"][agree], probabilities[part][agree], atol=1e-5
        )


def test_a_half_precision_network_without_gates_is_exported_as_it_is_evaluated(
    trained, evaluated, tmp_path, capsys
):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = build_gaternet("resnet8", "none", trained.preprocessing.shape, 10)
    finally:
        keras.config.set_dtype_policy("float32")
    network, record = build_network(
        half, trained, ExportConfig(trained.path, tmp_path), evaluated[0]
    )
    assert record == {"optimize": "none"}
    assert "exported as trained, in bfloat16" in capsys.readouterr().out
    with pytest.raises(UserError, match="trained in bfloat16; give --optimize=none"):
        build_network(
            half, trained, ExportConfig(trained.path, tmp_path, optimize="fold"), evaluated[0]
        )
    write_saved_model(network, trained.preprocessing, trained.labels, str(tmp_path))
    answer = tf.saved_model.load(tmp_path).signatures["gates"](images=evaluated[0][:50])
    assert answer["gates"].shape == (50, 0)
    outputs = half(trained.preprocessing.normalize(evaluated[0][:50]), training=False)
    probabilities = tf.nn.softmax(tf.cast(outputs["logits"], tf.float32))
    np.testing.assert_allclose(answer["probabilities"], probabilities, atol=0.02)


def test_a_converted_run_is_warmed_up_with_a_grey_picture_and_says_so(tmp_path, capsys):
    run = plant_run(tmp_path / "run", {"converted_from": {"file": "a.pth"}})
    (_,), images = warmup_pictures(run)
    assert (images == 128).all()
    assert "grey picture" in capsys.readouterr().out


def test_damaged_pictures_are_named(tmp_path, trained):
    run = plant_run(tmp_path / "run")
    shutil.copytree(trained.pictures, run.pictures)
    damaged = sorted(run.pictures.glob("*/*.png"))[3]
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(UserError, match=f"'{damaged}' cannot be decoded .*--warmup_images"):
        warmup_pictures(run)


def test_a_webp_is_recorded_as_png(tmp_path, trained):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.webp")
    (picture,), _ = warmup_pictures(trained, str(tmp_path))
    assert picture.startswith(b"\x89PNG")
