"""Warm-up, metrics and the orderly end of the local server."""

import concurrent.futures
import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys

import grpc
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT
from local_servers import entries, error_of, serving
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from toy_models import predict_request, warm_up_log, write_toy, write_warm_up

from serving import rest_json
from serving.config import Batching, single_model
from serving.errors import ServingError
from serving.hosting import LocalServer, Settings
from serving.models import LoadingOptions
from serving.servable import typed_proto
from serving.warmup import PLACE

X = np.array([[1, 2]], np.float32)
SECONDS = 60
PAGE = "/monitoring/prometheus/metrics"
ONCE = LoadingOptions(poll_seconds=0, max_num_load_retries=0)


def classify_log(value):
    log = prediction_log_pb2.PredictionLog()
    request = log.classify_log.request
    request.model_spec.signature_name = "classify"
    example = request.input.example_list.examples.add()
    example.features.feature["v"].float_list.value.extend(value)
    return log


def empty_log(kind):
    log = prediction_log_pb2.PredictionLog()
    getattr(log, kind).SetInParent()
    return log


GOOD = warm_up_log({"x": X})


def test_warm_up_runs_every_record_and_ignores_whose_they_are(tmp_path):
    another = warm_up_log({"x": X})
    another.predict_log.request.model_spec.name = "another"
    another.predict_log.request.model_spec.version.value = 77
    logs = [GOOD, another, classify_log([1, 2]), prediction_log_pb2.PredictionLog()]
    write_toy(tmp_path, warm_up=logs)
    for batching in (None, Batching()):
        with serving(tmp_path, batching=batching, warm_up_rounds=2) as calls:
            assert calls.server.models.available() == {"toy": [1]}


BAD = {
    "signature": (
        warm_up_log({"x": X}, signature="nope"),
        'FAILED_PRECONDITION: Serving signature key "nope" not found.',
    ),
    "input": (warm_up_log({"q": X}), "INVALID_ARGUMENT: Signature input alias: x"),
    "dtype": (warm_up_log({"x": X.astype(int)}), "Expects arg[0] to be float but int64"),
    "classify": (classify_log([1]), "INVALID_ARGUMENT: "),
    "streamed": (
        empty_log("predict_streamed_log"),
        "UNIMPLEMENTED: Unsupported log_type for warmup: 7",
    ),
    "session_run": (
        empty_log("session_run_log"),
        "UNIMPLEMENTED: Unsupported log_type for warmup: 5",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_record_that_fails_fails_the_load(tmp_path, name):
    log, words = BAD[name]
    write_toy(tmp_path, warm_up=[GOOD, log])
    with pytest.raises(ServingError, match=re.escape(words)), serving(tmp_path, loading=ONCE):
        pass
    with serving(tmp_path, warm_up_rounds=0) as calls:
        assert calls.server.models.available() == {"toy": [1]}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda path: path.write_bytes(b"These are no records."),
            "Please verify your warmup data is in TFRecord format.",
        ),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "DATA_LOSS"),
        (lambda path: path.write_bytes(b""), None),
    ],
)
def test_a_damaged_warm_up_file(tmp_path, damage, words):
    version = write_toy(tmp_path, warm_up=[GOOD])
    damage(version / PLACE)
    if words is None:
        with serving(tmp_path) as calls:
            assert calls.server.models.available() == {"toy": [1]}
        return
    with pytest.raises(ServingError, match=words), serving(tmp_path, loading=ONCE):
        pass


def test_a_record_that_does_not_parse(tmp_path):
    version = write_toy(tmp_path, warm_up=[GOOD])
    with tf.io.TFRecordWriter(str(version / PLACE)) as writer:
        writer.write(b"\xff\xff")
    with (
        pytest.raises(ServingError, match="Failed to parse warmup record"),
        serving(tmp_path, loading=ONCE),
    ):
        pass


def test_a_thousand_records_and_no_more(tmp_path):
    version = write_toy(tmp_path, warm_up=[empty_log("predict_log")])
    nothing = prediction_log_pb2.PredictionLog()
    write_warm_up(version, [nothing] * 1000)
    with serving(tmp_path) as calls:
        assert calls.server.models.available() == {"toy": [1]}
    write_warm_up(version, [nothing] * 1001)
    with (
        pytest.raises(ServingError, match=r"exceeds the maximum \(1000\) at"),
        serving(tmp_path, loading=ONCE),
    ):
        pass


def test_a_warm_up_that_fails_leaves_the_old_version_in_place(tmp_path):
    write_toy(tmp_path, 1)
    with serving(tmp_path, loading=ONCE) as calls:
        write_toy(tmp_path, 2, warm_up=[BAD["signature"][0]])
        models = calls.server.models
        models.poll()
        with models._changed:
            assert models._changed.wait_for(
                lambda: models.statuses("toy")[0][1].name == "END", SECONDS
            )
        response = calls.prediction.Predict(predict_request({"x": X}), timeout=SECONDS)
        assert response.model_spec.version.value == 1


def metrics(calls):
    status, text = calls.rest("GET", PAGE)
    assert status == 200
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_metrics(tmp_path):
    write_toy(tmp_path)
    settings = {"monitoring_path": PAGE, "batching": Batching(allowed_batch_sizes=(4, 1000))}
    with serving(tmp_path, **settings) as calls:
        for _ in range(3):
            calls.prediction.Predict(predict_request({"x": X}), timeout=SECONDS)
        calls.post("toy:predict", {"inputs": [[1]]})
        error_of(calls.prediction.Predict, predict_request({}))
        for name in ("nope", "nope2"):
            error_of(calls.prediction.Predict, predict_request({}, model=name))
        gates = np.array([[1, 0, 0, 1], [1, 0, 0, 0]], np.uint8)
        calls.prediction.Predict(
            predict_request({"gates": gates}, signature="gates"), timeout=SECONDS
        )
        # Refused by REST before a signature is run.
        calls.post("toy:predict", {"signature_name": "nope", "inputs": [[1]]})
        calls.post("toy:predict", "{")
        calls.post("toy:predict", '{"signature_name": ' + "[" * 980 + "]" * 980 + "}")
        calls.post("toy/versions/7:predict", {"inputs": [[1]]})
        calls.post("toy:classify", {"signature_name": "classify", "examples": [{"v": [1.0, 2.0]}]})
        found = metrics(calls)
    count = ":tensorflow:serving:request_count"
    assert found[count + '{model_name="toy",status="OK"}'] == 6
    assert found[count + '{model_name="toy",status="INVALID_ARGUMENT"}'] == 1 + 3
    assert found[count + '{model_name="toy",status="NOT_FOUND"}'] == 1
    # Names that nobody configured have no entries of their own: there is no end of them.
    assert found[count + '{model_name="",status="NOT_FOUND"}'] == 2
    latency = ":tensorflow:serving:request_latency_count"
    # As there, only of what was answered.
    assert found[latency + '{API="Predict",entrypoint="GRPC",model_name="toy"}'] == 4
    assert found[latency + '{API="Predict",entrypoint="REST",model_name="toy"}'] == 1
    runtime = ":tensorflow:serving:runtime_latency_count"
    assert found[runtime + '{API="Predict",model_name="toy",runtime="TF1"}'] == 5
    batches = ":tensorflow:serving:batching_session:"
    assert found[batches + "wrapped_run_count"] == 6
    assert found[batches + "processed_batch_size_sum"] == 6 * 4
    assert found[batches + "padding_size_sum"] == 5 * 3 + 2
    assert found[':gaternet:serving:gate_rate{model_name="toy",version="1"}'] == 3 / 8


def free_ports(count):
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


def knock(port):
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port))


def test_ports_open_when_the_models_are_loaded(tmp_path):
    write_toy(tmp_path)
    ports = free_ports(2)
    config = single_model("toy", str(tmp_path))
    server = LocalServer(Settings(config, port=ports[0], rest_port=ports[1]))
    load, found = server.models._load, []

    def knock_and_load(*version):
        found.extend(map(knock, ports))
        return load(*version)

    server.models._load = knock_and_load
    server.start()
    try:
        assert found == [errno.ECONNREFUSED] * 2
        assert list(map(knock, ports)) == [0, 0]
    finally:
        server.stop(SECONDS)


@pytest.mark.parametrize("address", ["::1", "[::1]"])
def test_an_address_of_ipv6_may_be_served(tmp_path, address):
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")
    write_toy(tmp_path)
    config = single_model("toy", str(tmp_path))
    server = LocalServer(Settings(config, address=address, port=0, rest_port=-1))
    server.start()
    try:
        with grpc.insecure_channel(f"[::1]:{server.port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            stub.Predict(predict_request({"x": X}), timeout=SECONDS)
        with socket.create_connection(("::1", server.rest_port), timeout=SECONDS) as rest:
            rest.sendall(b"GET /v1/models/toy HTTP/1.0\r\n\r\n")
            assert rest.recv(100).startswith(b"HTTP/1.1 200 OK")
    finally:
        server.stop(SECONDS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"address": "no.invalid"}, r"--port must be free .*no\.invalid:0 cannot be had \(.+\)"),
        ({"socket_path": "/nowhere/s"}, r"--grpc_socket_path .*Failed to bind.*unix:/nowhere/s"),
    ],
)
def test_an_address_that_cannot_be_had_is_told_with_the_reason(tmp_path, changes, words):
    write_toy(tmp_path)
    settings = {"port": 0, "rest_port": 0} | changes
    server = LocalServer(Settings(single_model("toy", str(tmp_path)), **settings))
    with pytest.raises(OSError, match=words):
        server.start()


@pytest.mark.parametrize(
    ("dtype", "field"),
    [
        (np.float32, "float_val"),
        (np.float64, "double_val"),
        (np.float16, "half_val"),
        (tf.bfloat16.as_numpy_dtype, "half_val"),
        (np.int8, "int_val"),
        (np.int16, "int_val"),
        (np.int32, "int_val"),
        (np.uint8, "int_val"),
        (np.uint16, "int_val"),
        (np.uint32, "uint32_val"),
        (np.int64, "int64_val"),
        (np.uint64, "uint64_val"),
        (np.bool_, "bool_val"),
    ],
)
def test_outputs_of_every_type_are_in_typed_fields(dtype, field):
    array = np.array([[0, 1, 3], [2, 1, 100]]).astype(dtype)
    proto = typed_proto(array)
    assert [name.name for name, _ in proto.ListFields()] == ["dtype", "tensor_shape", field]
    assert len(getattr(proto, field)) == 6
    np.testing.assert_array_equal(tf.make_ndarray(proto), array)


def test_rest_writes_no_uint16():
    with pytest.raises(ServingError, match="Failed to write JSON value for tensor type: uint16"):
        rest_json._to_lists("y", np.zeros(2, np.uint16))


def test_without_monitoring_there_is_no_page(tmp_path):
    write_toy(tmp_path)
    with serving(tmp_path) as calls:
        assert calls.rest("GET", PAGE)[0] == 404


def test_a_stop_lets_running_requests_end_and_refuses_new_ones(tmp_path):
    write_toy(tmp_path / "toy")
    go = tmp_path / "go"
    with serving(tmp_path / "toy", stop=False, rest_timeout_seconds=SECONDS) as calls:
        entered = entries(calls.server)
        wait = {"signature": "wait"}
        over_grpc = calls.prediction.Predict.future(
            predict_request({"path": [str(go)]}, **wait), timeout=SECONDS
        )
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            document = {"signature_name": "wait", "instances": [str(go)]}
            over_rest = pool.submit(calls.post, "toy:predict", document)
            # REST looks a model up twice, for its signature and to run it.
            for _ in range(3):
                assert entered.acquire(timeout=SECONDS)
            port = calls.server.port
            stopped = pool.submit(calls.server.stop, SECONDS)
            assert not stopped.done()
            with grpc.insecure_channel(f"127.0.0.1:{port}") as late:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(late)
                while not refuses(stub):
                    pass
            assert not stopped.done()
            go.touch()
            assert over_grpc.result().model_spec.version.value == 1
            assert over_rest.result() == (200, {"predictions": [str(go)]})
            stopped.result(SECONDS)


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "serving.server", "--port=0", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def port_of(process):
    line = process.stdout.readline()
    return re.search(r" on 127\.0\.0\.1:(\d+) ", line)[1]


def test_sigterm_lets_a_running_request_end(tmp_path):
    write_toy(tmp_path / "toy")
    go = tmp_path / "go"
    arguments = ["--model_name=toy", f"--model_base_path={tmp_path / 'toy'}"]
    with start(*arguments) as process:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port_of(process)}") as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                waiting = predict_request({"path": [str(go)]}, signature="wait")
                running = stub.Predict.future(waiting, timeout=SECONDS)
                # A second call on the same connection that is answered: the first has arrived.
                stub.Predict(predict_request({"x": X}), timeout=SECONDS)
                process.send_signal(signal.SIGTERM)
                while not refuses(stub):
                    pass
                assert process.poll() is None
                go.touch()
                assert running.result().model_spec.version.value == 1
            assert process.communicate(timeout=SECONDS)[0] == "server stopped\n"
            assert process.returncode == 0
        finally:
            process.kill()


def refuses(stub):
    try:
        stub.Predict(predict_request({"x": X}), timeout=SECONDS)
    except grpc.RpcError as error:
        return error.code().name == "UNAVAILABLE"
    return False


def test_sigterm_ends_a_graph_that_never_ends(tmp_path):
    write_toy(tmp_path / "toy")
    arguments = ["--model_name=toy", f"--model_base_path={tmp_path / 'toy'}"]
    with start(*arguments, "--grace_period_seconds=0.5") as process:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port_of(process)}") as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                never = predict_request({"path": [str(tmp_path / "never")]}, signature="wait")
                running = stub.Predict.future(never)
                stub.Predict(predict_request({"x": X}), timeout=SECONDS)
                process.send_signal(signal.SIGTERM)
                assert running.exception().code().name in ("UNAVAILABLE", "CANCELLED")
            assert process.communicate(timeout=SECONDS)[0] == "server stopped\n"
            assert process.returncode == 0
        finally:
            process.kill()


def test_flags_and_files_of_the_real_server(tmp_path):
    """Several models, batching and metrics, as a configuration for the real server says it."""
    for name in ("a", "b"):
        write_toy(tmp_path / name)
    (tmp_path / "models.config").write_text(
        "model_config_list {"
        + "".join(
            f'config {{ name: "{name}" base_path: "{tmp_path / name}" '
            'model_platform: "tensorflow" }'
            for name in ("a", "b")
        )
        + "}"
    )
    docker = ROOT / "serving" / "docker"
    arguments = [
        f"--model_config_file={tmp_path / 'models.config'}",
        "--rest_api_port=-1",
        "--enable_batching",
        f"--batching_parameters_file={docker / 'batching.config'}",
        f"--monitoring_config_file={docker / 'monitoring.config'}",
    ]
    with start(*arguments) as process:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port_of(process)}") as channel:
                stub = model_service_pb2_grpc.ModelServiceStub(channel)
                for name in ("a", "b"):
                    request = get_model_status_pb2.GetModelStatusRequest()
                    request.model_spec.name = name
                    (found,) = stub.GetModelStatus(request, timeout=SECONDS).model_version_status
                    assert found.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=SECONDS)[0] == "server stopped\n"
        finally:
            process.kill()
