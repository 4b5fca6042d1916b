"""TensorFlow Serving itself on an export: its warm-up, signatures, REST, hot swap and labels.

Set TENSORFLOW_MODEL_SERVER to a tensorflow_model_server binary; without it, docker runs the image
that serving/docker/compose.yaml names.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
import uuid

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from helpers import ROOT
from tensorflow_serving.apis import (
    classification_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)
from toy_models import predict_request

from serving.client import ClientError, GaterNetClient, UnknownModelError

yaml = pytest.importorskip("yaml")

BINARY = os.environ.get("TENSORFLOW_MODEL_SERVER")
COMPOSE = yaml.safe_load((ROOT / "serving/docker/compose.yaml").read_text())["services"]["gaternet"]
DEADLINE = 300
"""Seconds for a server to start, an image to be pulled included, or to swap."""


def docker_works():
    if not shutil.which("docker"):
        return False
    # It asks the daemon, without which docker can run nothing.
    return subprocess.run(["docker", "version"], capture_output=True, timeout=60).returncode == 0


pytestmark = pytest.mark.skipif(
    not BINARY and not docker_works(),
    reason="TENSORFLOW_MODEL_SERVER must name a tensorflow_model_server binary, or docker must run",
)


@dataclasses.dataclass
class Server:
    """A running TensorFlow Serving."""

    port: int
    rest_port: int
    log: pathlib.Path

    def client(self, **options):
        return GaterNetClient(f"127.0.0.1:{self.port}", "gaternet", **options)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def tensorflow_serving(directory, *flags):
    """Runs TensorFlow Serving, which sees `directory` under the same path as we do, until ready."""
    server = Server(free_port(), free_port(), directory / "server.log")
    ports = [f"--port={server.port}", f"--rest_api_port={server.rest_port}"]
    name = f"gaternet-test-{uuid.uuid4().hex}"
    if BINARY:
        command = [BINARY]
    else:
        # With --init, SIGTERM ends the server, which would ignore it as the first process.
        command = ["docker", "run", "--rm", "--init", f"--name={name}", "--network=host"]
        command += [f"--volume={directory}:{directory}:ro", "--entrypoint=tensorflow_model_server"]
        command += [COMPOSE["image"]]
    with server.log.open("w") as log:
        process = subprocess.Popen(
            [*command, *ports, *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            # conftest.py's setting would suppress the log.
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"},
        )
    try:
        wait_ready(server, process)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            if not BINARY:
                subprocess.run(["docker", "rm", "--force", name], check=False)


def wait_ready(server, process):
    deadline = time.monotonic() + DEADLINE
    with server.client() as client:
        while True:
            try:
                client.wait_ready(5)
                return
            except ClientError:
                late = process.poll() is not None or time.monotonic() > deadline
                assert not late, server.log.read_text()[-3000:]


def publish(exported, base_path, version):
    """Copies the export's version 1 to a version of its own: written beside, and renamed."""
    scratch = base_path / f"tmp-{version}"
    shutil.copytree(exported / "1", scratch)
    scratch.rename(base_path / str(version))


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
    """Serves version 1 of the export, as docs/serving.md's `docker run` does."""
    directory = tmp_path_factory.mktemp("plain")
    publish(exported, directory / "gaternet", 1)
    flags = ["--model_name=gaternet", f"--model_base_path={directory / 'gaternet'}"]
    with tensorflow_serving(directory, *flags, "--grpc_max_threads=80") as server:
        yield server


@pytest.fixture(scope="module")
def paths(trained):
    """Ten pictures of digits, CLASS/NUMBER.png."""
    return sorted(trained.pictures.glob("*/*.png"))


@pytest.fixture(scope="module")
def expected(trained, paths):
    """What the Keras model answers for the pictures."""
    images = np.stack([trained.preprocessing.decode(path.read_bytes()) for path in paths])
    outputs = trained.load_model()(trained.preprocessing.normalize(images), training=False)
    return {
        "images": images,
        "probabilities": tf.nn.softmax(outputs["logits"]).numpy(),
        "gates": outputs["gates"].numpy(),
    }


def test_the_warm_up_file_is_replayed(server, exported):
    (path,) = (exported / "1").glob("assets.extra/tf_serving_warmup_requests")
    records = len(list(tf.data.TFRecordDataset(str(path))))
    log = server.log.read_text()
    assert "Finished reading warmup data" in log
    assert f"Number of warmup records read: {records}" in log


@pytest.mark.parametrize(
    ("signature", "with_gates"),
    [("serving_default", 0), ("image_bytes", 0), ("gates", 1), ("gates_bytes", 1)],
)
def test_predict_answers_what_the_keras_model_does(server, paths, expected, signature, with_gates):
    if signature.endswith("_bytes"):
        inputs = {"image_bytes": [path.read_bytes() for path in paths]}
    else:
        inputs = {"images": expected["images"]}
    request = predict_request(inputs, model="gaternet", signature=signature)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        response = stub.Predict(request, timeout=60)
    answer = {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
    assert response.model_spec.version.value == 1
    np.testing.assert_allclose(answer["probabilities"], expected["probabilities"], atol=1e-5)
    classes = expected["probabilities"].argmax(-1).tolist()
    assert answer["class_ids"].tolist() == classes
    assert [int(label) for label in answer["labels"]] == classes
    assert ("gates" in answer) == bool(with_gates)
    if with_gates:
        np.testing.assert_array_equal(answer["gates"], expected["gates"])


def test_classify_answers_what_the_keras_model_does(server, paths, expected):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "gaternet", "classify"
    for path in paths:
        example = request.input.example_list.examples.add()
        example.features.feature["image/encoded"].bytes_list.value.append(path.read_bytes())
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        rows = stub.Classify(request, timeout=60).result.classifications
    scores = [[entry.score for entry in row.classes] for row in rows]
    np.testing.assert_allclose(scores, expected["probabilities"], atol=1e-5)
    assert [entry.label for entry in rows[0].classes] == [str(digit) for digit in range(10)]


def test_the_client_gets_classes_and_gates(server, paths, expected):
    with server.client() as client:
        answers = client.gates(paths)
    assert [answer.class_id for answer in answers] == expected["probabilities"].argmax(-1).tolist()
    np.testing.assert_array_equal([answer.gates for answer in answers], expected["gates"])


def test_a_picture_of_too_many_pixels_is_refused(server):
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 12_000, 12_000)
    with server.client() as client:
        (answer,) = client.classify([header])
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "25,000,000 pixels; scale it down" in str(answer)
    assert "144000000" in str(answer)


def test_rest_answers_the_documented_commands(server, paths, expected):
    text = (ROOT / "docs" / "serving.md").read_text()
    (script,) = re.findall(r"^```text\n(curl .*?)^```$", text, re.MULTILINE | re.DOTALL)
    script = script.replace("localhost:8501", f"127.0.0.1:{server.rest_port}")
    script = script.replace("runs/demo/pictures/1/0000.png", str(paths[0]))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    documents, rest = [], done.stdout.strip()
    while rest:
        document, end = json.JSONDecoder().raw_decode(rest)
        documents.append(document)
        rest = rest[end:].strip()
    status, metadata, predicted, classified = documents
    assert [entry["state"] for entry in status["model_version_status"]] == ["AVAILABLE"]
    assert "image_bytes" in metadata["metadata"]["signature_def"]["signature_def"]
    (probabilities,) = predicted["outputs"]["probabilities"]
    np.testing.assert_allclose(probabilities, expected["probabilities"][0], atol=1e-5)
    assert predicted["outputs"]["labels"] == [str(expected["probabilities"][0].argmax())]
    (row,) = classified["results"]
    np.testing.assert_allclose([score for _, score in row], probabilities, atol=1e-5)


def test_a_hot_swap_fails_no_request(exported, paths, tmp_path):
    base_path = tmp_path / "gaternet"
    publish(exported, base_path, 1)
    flags = ["--model_name=gaternet", f"--model_base_path={base_path}"]
    deadline = time.monotonic() + DEADLINE
    versions = []
    with (
        tensorflow_serving(tmp_path, *flags) as server,
        server.client(batch_size=1, in_flight=4) as client,
    ):
        for answer in client.stream(itertools.cycle(paths)):
            versions.append(answer.version)
            if len(versions) == 20:
                publish(exported, base_path, 2)
            if versions[-20:] == [2] * 20:
                break
            assert time.monotonic() < deadline, f"version 2 is not served: {client.status()}"
    assert set(versions) == {1, 2}


def test_a_model_whose_only_version_went_is_reported_as_one_without_a_version(
    exported, paths, tmp_path
):
    base_path = tmp_path / "gaternet"
    publish(exported, base_path, 1)
    flags = ["--model_name=gaternet", f"--model_base_path={base_path}"]
    deadline = time.monotonic() + DEADLINE
    with tensorflow_serving(tmp_path, *flags) as server, server.client() as client:
        (base_path / "1").rename(base_path / "aside")
        text = ""
        while "has no version that is loaded" not in text:
            assert time.monotonic() < deadline, text or "it still answers"
            try:
                client.classify(paths[:1])
            except UnknownModelError as error:
                text = str(error)


def test_a_label_goes_back_to_an_unloaded_version_in_two_readings(exported, tmp_path):
    """As docs/serving.md says, but replacing the list by the RPC, which reports a failure."""

    def model_list(versions, stable):
        policy = " ".join(f"versions: {version}" for version in versions)
        return (
            f'model_config_list {{ config {{ name: "gaternet" base_path: "{tmp_path / "gaternet"}" '
            f'model_platform: "tensorflow" model_version_policy {{ specific {{ {policy} }} }} '
            f'version_labels {{ key: "stable" value: {stable} }} }} }}'
        )

    def reload(versions, stable):
        request = model_management_pb2.ReloadConfigRequest()
        text_format.Parse(model_list(versions, stable), request.config)
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            try:
                code = stub.HandleReloadConfigRequest(request, timeout=DEADLINE).status.error_code
            except grpc.RpcError as error:
                (code, _) = error.code().value
        return code

    for version in (1, 2):
        publish(exported, tmp_path / "gaternet", version)
    (tmp_path / "models.config").write_text(model_list([2], 2))
    flags = [f"--model_config_file={tmp_path / 'models.config'}"]
    flags.append("--allow_version_labels_for_unavailable_models=true")
    with (
        tensorflow_serving(tmp_path, *flags) as server,
        server.client(label="stable") as client,
        server.client(version=1) as first,
    ):
        assert client.wait_ready() == 2
        for versions in ([1], [1, 2]):
            assert reload(versions, stable=1) == grpc.StatusCode.FAILED_PRECONDITION.value[0]
            assert client.wait_ready() == 2
        assert reload([1, 2], stable=2) == 0
        assert first.wait_ready(DEADLINE) == 1
        assert reload([1, 2], stable=1) == 0
        assert client.wait_ready() == 1


def test_the_canary_configuration_labels_two_versions_and_batches(exported, paths, tmp_path):
    """With compose's own flags and files; only the paths are this test's."""
    shutil.copytree(ROOT / "serving" / "docker", tmp_path / "config")
    models = (tmp_path / "config" / "models.canary.config").read_text()
    models = models.replace("/models/gaternet", str(tmp_path / "gaternet"))
    (tmp_path / "config" / "models.config").write_text(models)
    for version in (1, 2):
        publish(exported, tmp_path / "gaternet", version)
    flags = [
        flag.replace("/config/", f"{tmp_path}/config/").replace("${GATERNET_CPUS:-2}", "2")
        for flag in COMPOSE["command"]
    ]
    with tensorflow_serving(tmp_path, *flags) as server:
        for options, version in [({"label": "stable"}, 1), ({"label": "canary"}, 2), ({}, 2)]:
            with server.client(batch_size=1, in_flight=4, **options) as client:
                assert {answer.version for answer in client.classify(paths)} == {version}
        page = f"http://127.0.0.1:{server.rest_port}/monitoring/prometheus/metrics"
        with urllib.request.urlopen(page, timeout=60) as response:
            metrics = response.read().decode()
    assert ":tensorflow:serving:request_count" in metrics
    assert ":tensorflow:serving:batching_session" in metrics
