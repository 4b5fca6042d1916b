"""The local server: what it answers, which exports it refuses, how it starts, swaps and stops."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import time

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers import ROOT, help_without_tensorflow, running
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)
from toy_models import predict_request, write_toy, write_warm_up

from serving.server.services import start_server
from serving.server.versions import NewestVersion

DEADLINE = 120
"""Seconds after which a test gives up waiting for another process or thread."""
X = np.array([[1, 2], [3, 4]], np.float32)


class Stubs:
    """Calls the server at host:port."""

    def __init__(self, channel):
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.predict = self.prediction.Predict
        self.model = model_service_pb2_grpc.ModelServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    def states(self, name="toy"):
        """Returns the state and error message of each version, in the order of the answer."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        answer = self.model.GetModelStatus(request, timeout=DEADLINE)
        state_name = get_model_status_pb2.ModelVersionStatus.State.Name
        return {
            entry.version: (state_name(entry.state), entry.status.error_message)
            for entry in answer.model_version_status
        }


@contextlib.contextmanager
def connected(target):
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(target, options) as channel:
        yield Stubs(channel)


@contextlib.contextmanager
def serving(model):
    """Serves a `NewestVersion` in this process."""
    server, port = start_server(model, "127.0.0.1", 0)
    try:
        with connected(f"127.0.0.1:{port}") as stubs:
            yield stubs
    finally:
        server.stop(None)


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def arrays(response):
    return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    base_path = tmp_path_factory.mktemp("models") / "toy"
    write_toy(base_path)
    with serving(NewestVersion("toy", base_path)) as stubs:
        yield stubs


def classify_request(pictures, model="gaternet"):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "classify"
    for picture in pictures:
        example = request.input.example_list.examples.add()
        example.features.feature["image/encoded"].bytes_list.value.append(picture)
    return request


def test_all_methods_answer_what_the_keras_model_does(server, digits, trained):
    images = np.stack([image.numpy() for image, _ in digits.examples("test").take(3)])
    outputs = trained.load_model()(trained.preprocessing.normalize(images), training=False)
    wanted = tf.nn.softmax(outputs["logits"]).numpy()
    pictures = [tf.io.encode_png(image).numpy() for image in images]
    with connected(server) as stubs:
        for signature, inputs in [
            ("", {"images": images}),
            ("gates", {"images": images}),
            ("image_bytes", {"image_bytes": pictures}),
        ]:
            request = predict_request(inputs, model="gaternet", signature=signature)
            response = stubs.predict(request, timeout=DEADLINE)
            spec = response.model_spec
            assert (spec.name, spec.version.value) == ("gaternet", 1)
            assert spec.signature_name == (signature or "serving_default")
            # As TensorFlow Serving does: clients that read this field work on either.
            assert len(response.outputs["probabilities"].float_val) == wanted.size
            answer = arrays(response)
            np.testing.assert_allclose(answer["probabilities"], wanted, atol=1e-5)
            assert answer["class_ids"].tolist() == wanted.argmax(-1).tolist()
            assert [int(label) for label in answer["labels"]] == answer["class_ids"].tolist()
            if signature == "gates":
                np.testing.assert_array_equal(answer["gates"], outputs["gates"])
        result = stubs.prediction.Classify(classify_request(pictures), timeout=DEADLINE).result
    for row, probabilities in zip(result.classifications, wanted, strict=True):
        assert [entry.label for entry in row.classes] == [str(digit) for digit in range(10)]
        scores = [entry.score for entry in row.classes]
        np.testing.assert_allclose(scores, probabilities, atol=1e-5)


def test_metadata_lists_the_signatures(server):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "gaternet"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    with connected(server) as stubs:
        answer = stubs.prediction.GetModelMetadata(request, timeout=DEADLINE)
    answer.metadata["signature_def"].Unpack(signatures)
    assert {"serving_default", "image_bytes", "classify", "gates"} <= set(signatures.signature_def)
    assert answer.model_spec.version.value == 1


def test_status_and_health(toy):
    assert toy.states() == {1: ("AVAILABLE", "")}
    answer = toy.health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_version_may_be_named_and_no_rows_be_given(toy):
    for x in (X, X[:0]):
        response = toy.predict(predict_request({"x": x}, version=1), timeout=DEADLINE)
        np.testing.assert_array_equal(arrays(response)["y"], x + 1)


def test_messages_above_64_mib_pass(toy):
    many = np.ones((2**23 + 1, 2), np.float32)
    answer = arrays(toy.predict(predict_request({"x": many}), timeout=DEADLINE))
    assert answer["rows"].tolist() == [len(many)]


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (predict_request({"x": X}, model="no"), "NOT_FOUND", "only version 1 of 'toy' is"),
        (predict_request({"x": X}, version=9), "NOT_FOUND", "only version 1 of 'toy' is"),
        (predict_request({"x": X}, label="stable"), "UNIMPLEMENTED", "are TensorFlow Serving's"),
        (predict_request({"x": X}, signature="no"), "FAILED_PRECONDITION", "got 'no'"),
        (predict_request({}), "INVALID_ARGUMENT", "must be ['x'], got []"),
        (predict_request({"x": X.astype(int)}), "INVALID_ARGUMENT", "must be float32, got int64"),
        (predict_request({"x": X[:, :1]}), "INVALID_ARGUMENT", "Cannot feed value of shape (2, 1)"),
        (classify_request([b"x"], "toy"), "INVALID_ARGUMENT", "got 'classify'"),
    ],
)
def test_a_wrong_request_gets_the_code_of_tensorflow_serving(toy, request_, code, text):
    predict = isinstance(request_, type(predict_request({})))
    with pytest.raises(grpc.RpcError) as error:
        (toy.predict if predict else toy.prediction.Classify)(request_, timeout=DEADLINE)
    assert error.value.code().name == code
    assert text in error.value.details()


def test_a_broken_picture_is_refused_in_the_words_of_the_graph(server):
    request = predict_request({"image_bytes": [b"no"]}, model="gaternet", signature="image_bytes")
    with connected(server) as stubs, pytest.raises(grpc.RpcError, match="JPEG, PNG, BMP") as error:
        stubs.predict(request, timeout=DEADLINE)
    assert error.value.code().name == "INVALID_ARGUMENT"
    assert "\n" not in error.value.details()


def damaged_graph(version):
    (version / "saved_model.pb").write_bytes(b"damaged")


def failing_warm_up(version):
    write_warm_up(version, [predict_request({"x": X}), predict_request({"x": X[:, :1]})])


def cut_warm_up(version):
    write_warm_up(version, [predict_request({"x": X})])
    os.truncate(version / "assets.extra" / "tf_serving_warmup_requests", 50)


def saved_by_keras(version):
    """Answers under `tf.saved_model.load`, and nowhere else."""
    shutil.rmtree(version)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    tf.saved_model.save(model, str(version))
    write_warm_up(version, [predict_request({"inputs": X})])


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (damaged_graph, "Cannot parse file"),
        (failing_warm_up, "record 2 of its warm-up file fails: Cannot feed value of shape"),
        (cut_warm_up, "truncated record"),
        (saved_by_keras, "record 1 of its warm-up file fails: Could not find variable"),
    ],
)
def test_a_version_that_tensorflow_serving_refuses_is_refused(tmp_path, damage, text):
    version = write_toy(tmp_path)
    damage(version)
    with pytest.raises(ValueError, match="cannot be loaded: ") as error:
        NewestVersion("toy", tmp_path)
    assert text in str(error.value)
    assert str(version) in str(error.value)


def test_the_version_with_the_highest_number_is_served(tmp_path):
    for name in ("9", "0010"):
        write_toy(tmp_path / "made", int(name)).rename(tmp_path / name)
    for name in ("0", "11.5", "tmp-12", "-13", "made"):
        (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / "14").write_text("a file")
    assert NewestVersion("toy", tmp_path).loaded.number == 10


def test_a_failed_version_is_reported_and_not_tried_again(tmp_path):
    write_toy(tmp_path, 1)
    model = NewestVersion("toy", tmp_path)
    with serving(model) as stubs:
        damaged_graph(write_toy(tmp_path, 2))
        with pytest.raises(ValueError, match="2' cannot be loaded"):
            model.poll()
        for _ in range(2):
            (newest, failed), (older, good) = stubs.states().items()
            assert (newest, failed[0]) == (2, "END")
            assert "Cannot parse file" in failed[1]
            assert (older, good) == (1, ("AVAILABLE", ""))
            # Mended in place, which helps no more than it does on TensorFlow Serving.
            shutil.rmtree(tmp_path / "2")
            write_toy(tmp_path, 2)
            model.poll()
        write_toy(tmp_path, 3)
        model.poll()
        assert stubs.states()[3] == ("AVAILABLE", "")
        assert stubs.predict(predict_request({"x": X})).model_spec.version.value == 3


def begin_to_wait(stubs, path):
    """Sends a request that is answered when the file `path` exists; returns once it runs."""
    inputs = {"path": np.array(str(path), object)}
    call = stubs.predict.future(predict_request(inputs, signature="wait"), timeout=DEADLINE)
    wait_until(pathlib.Path(f"{path}.begun").exists)
    return call


def test_the_command_swaps_under_load_and_finishes_requests_on_their_version(tmp_path):
    write_toy(tmp_path / "toy", 1)
    flags = ["--port=0", "--model_name=toy", f"--model_base_path={tmp_path / 'toy'}"]
    with running("serving.server", *flags, cwd=ROOT) as process:
        line = process.stdout.readline()
        port = re.fullmatch(
            r"serving toy version 1 on 127\.0\.0\.1:(\d+) "
            r"\(for development and tests; production is TensorFlow Serving\)\n",
            line,
        )[1]
        with connected(f"127.0.0.1:{port}") as stubs:

            def answering_version():
                response = stubs.predict(predict_request({"x": X}), timeout=DEADLINE)
                version = response.model_spec.version.value
                np.testing.assert_array_equal(arrays(response)["y"], X + version)
                return version

            assert answering_version() == 1
            slow_call = begin_to_wait(stubs, tmp_path / "go")
            write_toy(tmp_path / "toy", 2)
            wait_until(lambda: answering_version() == 2)
            process.send_signal(signal.SIGTERM)

            def refuses():
                try:
                    stubs.states()
                except grpc.RpcError as error:
                    return error.code() == grpc.StatusCode.UNAVAILABLE
                return False

            wait_until(refuses)
            (tmp_path / "go").touch()
            assert slow_call.result().model_spec.version.value == 1
        out, _ = process.communicate(timeout=DEADLINE)
        assert (process.returncode, out) == (0, "server stopped\n")


def test_a_start_without_a_version_ends_with_one_sentence(call):
    done = call("serving.server.__main__", "--port=0", "--model_base_path=nowhere")
    assert done.status == 1
    (line,) = done.err.splitlines()
    assert "with a version such as 'nowhere/1' in it, and 'nowhere' has none" in line


def test_a_port_that_is_taken_is_refused(tmp_path):
    write_toy(tmp_path)
    model = NewestVersion("toy", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"must be free on 127.0.0.1, and {port} is not"):
            start_server(model, "127.0.0.1", port)


def test_help_needs_no_tensorflow(tmp_path):
    assert "--model_base_path" in help_without_tensorflow("serving.server", tmp_path)
