"""Rows of TensorFlow Serving's error table over gRPC that a gated network cannot show.

The others are in test_services.py, on a trained network.
"""

import concurrent.futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from local_servers import entries, error_of, serving
from tensorflow_serving.apis import (
    inference_pb2,
    model_management_pb2,
)
from toy_models import CLASSIFY, predict_request, write_toy

X = np.array([[1, 2]], np.float32)


@pytest.fixture(scope="module")
def base_path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    write_toy(directory)
    return directory


@pytest.fixture(scope="module")
def calls(base_path):
    with serving(base_path) as calls:
        yield calls


def answer(calls, inputs, **spec):
    response = calls.prediction.Predict(predict_request(inputs, **spec), timeout=30)
    return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}


@pytest.mark.parametrize(
    ("inputs", "spec", "code", "text"),
    [
        (
            {"x": X},
            {"signature": "tagged"},
            "INVALID_ARGUMENT",
            "input size does not match signature: 1!=2 len({x}) != len({tag,x}). Sent extra: {}. "
            "Missing but required: {tag}.",
        ),
        (
            {"q": X},
            {},
            "INVALID_ARGUMENT",
            "Signature input alias: x(feed name: serving_default_x:0) not found in request and no "
            "default value provided. Inputs expected to be in the request {q}, or default input "
            "alias set: ",
        ),
        (
            {"x": X.astype(np.float64)},
            {},
            "INVALID_ARGUMENT",
            "Expects arg[0] to be float but double is provided",
        ),
        (
            {"x": X.astype(np.float16)},
            {},
            "INVALID_ARGUMENT",
            "Expects arg[0] to be float but half is provided",
        ),
        (
            {"tag": [1], "x": X},
            {"signature": "tagged"},
            "INVALID_ARGUMENT",
            "Expects arg[0] to be string but int32 is provided",
        ),
        (
            {"x": X},
            {"output_filter": ["nope"], "signature": "scalar"},
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: nope Outputs expected to be in the set "
            "{s}.",
        ),
    ],
)
def test_a_wrong_predict(calls, inputs, spec, code, text):
    assert error_of(calls.prediction.Predict, predict_request(inputs, **spec)) == (code, text)


def test_a_kernels_words_name_the_node(calls):
    request = predict_request({"inputs": [b"no example"]}, signature="classify")
    code, text = error_of(calls.prediction.Predict, request)
    assert code == "INVALID_ARGUMENT"
    assert "Could not parse example input" in text
    assert "{{node " in text


def test_rows_may_differ_between_inputs_without_batching(calls):
    found = answer(calls, {"x": np.ones((2, 2), np.float32), "tag": [b"a"] * 3}, signature="tagged")
    assert (found["total"].tolist(), len(found["tag"])) == ([2.0, 2.0], 3)


def test_no_rows_in_none_out(calls):
    assert answer(calls, {"x": X[:0]})["y"].shape == (0, 2)


def test_a_long_message_is_cut(calls):
    code, text = error_of(calls.prediction.Predict, predict_request({}, model="m" * 3000))
    assert code == "NOT_FOUND"
    assert text == "Servable not found for request: Latest(" + "m" * 985 + "...TRUNCATED"


def test_a_deadline_reaches_the_running_graph(calls, tmp_path):
    request = predict_request({"path": [str(tmp_path / "never")]}, signature="wait")
    assert error_of(calls.prediction.Predict, request, timeout=0.3)[0] == "DEADLINE_EXCEEDED"


def test_a_service_that_is_not_there_has_no_words(calls):
    call = calls.channel.unary_unary("/tensorflow.serving.SessionService/SessionRun")
    assert error_of(call, b"") == ("UNIMPLEMENTED", "")


def test_all_threads_busy(base_path, tmp_path):
    go = tmp_path / "go"
    with serving(base_path, max_threads=2) as calls:
        entered = entries(calls.server)
        request = predict_request({"path": [str(go)]}, signature="wait")
        running = [calls.prediction.Predict.future(request, timeout=60) for _ in range(2)]
        for _ in running:
            assert entered.acquire(timeout=30)
        assert error_of(calls.prediction.Predict, predict_request({"x": X})) == (
            "RESOURCE_EXHAUSTED",
            "Server Threadpool Exhausted",
        )
        assert calls.post("toy:predict", {"inputs": [[1]]}) == (
            429,
            {"error": "Server Threadpool Exhausted"},
        )
        go.touch()
        assert [one.result().model_spec.version.value for one in running] == [1, 1]
        assert answer(calls, {"x": X})["y"].tolist() == [[3, 5]]


def multi(*tasks):
    request = inference_pb2.MultiInferenceRequest()
    for name, signature, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name = name
        task.model_spec.signature_name = signature
    example = request.input.example_list.examples.add()
    example.features.feature["v"].float_list.value.extend([1, 2])
    return request


ONE = ("toy", "classify", CLASSIFY)


@pytest.mark.parametrize(
    ("tasks", "code", "text"),
    [
        ([], "INVALID_ARGUMENT", "Inference request must have at least one task"),
        ([("", "", CLASSIFY)], "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (
            [ONE, ("other", "classify", CLASSIFY)],
            "INVALID_ARGUMENT",
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        ([ONE, ONE], "INVALID_ARGUMENT", "Duplicate evaluation of signature: classify"),
        (
            [("toy", "nope", CLASSIFY)],
            "INVALID_ARGUMENT",
            "Requested signature not found in model graph: nope",
        ),
        (
            [("toy", "classify", "tensorflow/serving/predict")],
            "UNIMPLEMENTED",
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        (
            [("toy", "gates", "tensorflow/serving/regress")],
            "FAILED_PRECONDITION",
            None,
        ),
    ],
)
def test_a_wrong_multi_inference(calls, tasks, code, text):
    found = error_of(calls.prediction.MultiInference, multi(*tasks))
    assert found[0] == code
    assert text is None or found[1] == text


def test_only_a_list_of_models_can_be_reloaded(calls):
    request = model_management_pb2.ReloadConfigRequest()
    code, text = error_of(calls.model.HandleReloadConfigRequest, request)
    assert code == "INVALID_ARGUMENT"
    assert text.startswith("ServerModelConfig type not supported by HandleReloadConfigRequest.")


def test_health_is_of_the_server_and_not_of_models(base_path):
    with serving(base_path, health=True) as calls:
        check = health_pb2_grpc.HealthStub(calls.channel).Check
        for name in ("", "ModelService", "PredictionService"):
            answer = check(health_pb2.HealthCheckRequest(service=name), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        unknown = health_pb2.HealthCheckRequest(service="tensorflow.serving.PredictionService")
        assert error_of(check, unknown) == ("NOT_FOUND", "service name unknown")


def test_many_callers_at_once_get_their_own_answers(calls):
    def ask(number):
        return answer(calls, {"x": X * number})["y"].tolist() == [[2 * number + 1, 4 * number + 1]]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(200)))


def test_a_unix_socket(base_path, tmp_path):
    socket_path = tmp_path / "grpc.sock"
    with serving(base_path, socket_path=str(socket_path)) as calls:
        with grpc.insecure_channel(f"unix:{socket_path}") as channel:
            stub = type(calls.prediction)(channel)
            response = stub.Predict(predict_request({"x": X}), timeout=30)
        assert tf.make_ndarray(response.outputs["y"]).tolist() == [[3, 5]]
