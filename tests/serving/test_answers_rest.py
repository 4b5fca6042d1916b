"""The local server's REST API over a real socket: TensorFlow Serving's paths, codes and words."""

import base64
import contextlib
import http.client
import json
import math
import socket

import pytest
from local_servers import serving
from toy_models import write_toy


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    write_toy(directory)
    with serving(directory) as calls:
        yield calls


def b64(data):
    return {"b64": base64.b64encode(data).decode()}


TAGGED = {"signature_name": "tagged"}
RIGHT = {
    "row": ({"instances": [[1, 2], [3, 4]]}, {"predictions": [[3.0, 5.0], [7.0, 9.0]]}),
    "row_of_objects": ({"instances": [{"x": [1, 2]}]}, {"predictions": [[3.0, 5.0]]}),
    "column": ({"inputs": [[1, 2]]}, {"outputs": [[3.0, 5.0]]}),
    "named_column": ({"inputs": {"x": [[1, 2]]}}, {"outputs": [[3.0, 5.0]]}),
    "unknown_column": ({"inputs": {"x": [[1, 2]], "q": 1}}, {"outputs": [[3.0, 5.0]]}),
    "several_rows": (
        TAGGED | {"instances": [{"x": [1, 2], "tag": "ä"}, {"x": [3, 4], "tag": b64(b"ab")}]},
        {
            "predictions": [
                {"tag": "ä", "tag_bytes": b64("ä".encode()), "total": 3.0},
                {"tag": "ab", "tag_bytes": b64(b"ab"), "total": 7.0},
            ]
        },
    ),
    "escaped_pair": (
        TAGGED | {"inputs": {"x": [[1, 2]], "tag": ["\U0001f600"]}},
        {
            "outputs": {
                "tag": ["\U0001f600"],
                "tag_bytes": [b64("\U0001f600".encode())],
                "total": [3.0],
            }
        },
    ),
    "several_columns": (
        TAGGED | {"inputs": {"x": [[1, 2]], "tag": ["a"]}},
        {"outputs": {"tag": ["a"], "tag_bytes": [b64(b"a")], "total": [3.0]}},
    ),
    "integers": (
        {"signature_name": "whole", "inputs": [1, -2]},
        {"outputs": {"n": [1, -2], "even": [False, True]}},
    ),
    "scalar_output": ({"signature_name": "scalar", "inputs": [1, 2]}, {"outputs": 3.0}),
    "shortest_digits": ({"inputs": [[0.05]]}, {"outputs": [[1.1]]}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_predict(calls, name):
    document, wanted = RIGHT[name]
    assert calls.post("toy:predict", document) == (200, wanted)


def test_the_version_may_be_named_and_case_does_not_count(calls):
    for path in ("toy/versions/1:predict", "toy:PREDICT"):
        assert calls.post(path, {"inputs": [[1]]}) == (200, {"outputs": [[3.0]]})
    status, _ = calls.rest("GET", "/V1/MODELS/toy")
    assert status == 200


def test_numbers_that_are_none_are_bare_tokens(calls):
    body = '{"inputs": [[NaN, Infinity, -Infinity]]}'
    status, document = calls.post("toy:predict", body)
    assert status == 200
    first, *others = document["outputs"][0]
    assert math.isnan(first)
    assert others == [math.inf, -math.inf]


HALF_A_PAIR = "JSON Parse error: The surrogate pair in string is invalid."
WRONG = {
    "unknown_model": ("nope:predict", {"inputs": [[1]]}, 404, "Latest(nope)"),
    "unknown_version": (
        "toy/versions/99:predict",
        {"inputs": [[1]]},
        404,
        "Servable not found for request: Specific(toy, 99)",
    ),
    "unknown_label": (
        "toy/labels/stable:predict",
        {"inputs": [[1]]},
        400,
        "Unrecognized servable version label: stable",
    ),
    "unknown_model_and_label": (
        "nope/labels/stable:predict",
        {"inputs": [[1]]},
        400,
        "Unrecognized servable version label: stable",
    ),
    "endless_version": (
        f"toy/versions/{'9' * 5000}:predict",
        {"inputs": [[1]]},
        400,
        f"Failed to convert version: {'9' * 5000} to numeric.",
    ),
    "unknown_signature": (
        "toy:predict",
        {"signature_name": "zzz", "inputs": [[1]]},
        400,
        'Serving signature name: "zzz" not found in signature def',
    ),
    "missing_column": (
        "toy:predict",
        TAGGED | {"inputs": {"x": [[1, 2]]}},
        400,
        "Missing named input: tag in 'inputs' object.",
    ),
    "missing_in_row": (
        "toy:predict",
        TAGGED | {"instances": [{"x": [1, 2]}]},
        400,
        "keys must be equal to: tag,x",
    ),
    "no_rows": ("toy:predict", {"instances": []}, 400, "No values in 'instances' array"),
    "both_keys": (
        "toy:predict",
        {"instances": [[1]], "inputs": [[1]]},
        400,
        "expecting only one of 'inputs' or 'instances' keys to exist",
    ),
    "no_key": ("toy:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
    "ragged": (
        "toy:predict",
        {"instances": [[1, 2, 3, 4], [1]]},
        400,
        "Expecting tensor size: 4 but got: 1",
    ),
    "bad_base64": (
        "toy:predict",
        TAGGED | {"inputs": {"x": [[1, 2]], "tag": [{"b64": "%%%"}]}},
        400,
        "Unable to base64 decode",
    ),
    "text_for_a_number": (
        "toy:predict",
        {"instances": [["a"]]},
        400,
        "Type: String is not of expected type: float",
    ),
    "fraction_for_a_whole_number": (
        "toy:predict",
        {"signature_name": "whole", "instances": [1.5]},
        400,
        "Type: Number is not of expected type: int64",
    ),
    "no_json": ("toy:predict", "{", 400, "JSON Parse error: Invalid value. at offset: 1"),
    "half_a_pair_in_a_value": (
        "toy:predict",
        {"signature_name": "\ud800", "inputs": [[1]]},
        400,
        HALF_A_PAIR,
    ),
    "half_a_pair_in_a_key": ("toy:predict", {"instances": [{"\ud800": 1}]}, 400, HALF_A_PAIR),
    "half_a_pair_in_an_example": (
        "toy:classify",
        {"signature_name": "classify", "examples": [{"v": "\udc00"}]},
        400,
        HALF_A_PAIR,
    ),
    "half_a_pair_in_a_feature": (
        "toy:classify",
        {"signature_name": "classify", "examples": [{"\udc00": 1.0}]},
        400,
        HALF_A_PAIR,
    ),
    "half_a_pair_as_bytes": (
        "toy:predict",
        b'{"signature_name": "\xed\xa0\x80", "inputs": [[1]]}',
        400,
        "JSON Parse error: Invalid encoding in string. at offset: 20",
    ),
    "empty_body": ("toy:predict", "", 400, "JSON Parse error: The document is empty"),
    "no_object": ("toy:predict", "[]", 400, "Is not object"),
    "deep_json": ("toy:predict", "[" * 100_000, 400, "JSON Parse error"),
    # Deep enough for the parser, and too deep for who writes it into a message.
    "less_deep_json": (
        "toy:predict",
        '{"signature_name": ' + "[" * 980 + "]" * 980 + "}",
        400,
        "JSON Parse error",
    ),
    "half": (
        "toy:predict",
        {"signature_name": "half", "instances": [1.0]},
        400,
        "Failed to write JSON value for tensor type: half",
    ),
    "scalar_by_rows": (
        "toy:predict",
        {"signature_name": "scalar", "instances": [1.0]},
        400,
        "Tensor name: s has no shape information",
    ),
    "no_method": ("toy:nope", {}, 400, "Malformed request: POST /v1/models/toy:nope"),
    "no_examples": ("toy:classify", {}, 400, "key 'examples' is expected and was not found"),
    "classify_of_predict": ("toy:classify", {"examples": [{"x": 1}]}, 400, "Expected one input"),
    "classify_nothing": (
        "toy:classify",
        {"signature_name": "classify", "examples": []},
        400,
        "Input is empty.",
    ),
    "mixed_feature": (
        "toy:classify",
        {"signature_name": "classify", "examples": [{"v": [1, 2.0]}]},
        400,
        "Unexpected element type in feature: v expecting type: int64",
    ),
    "classify_unknown_signature": (
        "toy:classify",
        {"signature_name": "nope", "examples": [{"v": 1.0}]},
        400,
        "No signature was found with the name: nope",
    ),
    "regress": (
        "toy:regress",
        {"examples": [{"v": [1.0, 2.0]}]},
        400,
        "No regression inputs found",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request(calls, name):
    path, document, status, words = WRONG[name]
    found, answer = calls.post(path, document)
    assert found == status
    assert list(answer) == ["error"]
    assert words in answer["error"]


def test_classify(calls):
    document = {"signature_name": "classify", "examples": [{"v": [1.0, 2.5]}]}
    wanted = {"results": [[["left", 1.0], ["right", 2.5]]]}
    assert calls.post("toy:classify", document) == (200, wanted)
    shared = {"signature_name": "classify", "context": {"v": [1.0, 2.5]}, "examples": [{}]}
    assert calls.post("toy:classify", shared) == (200, wanted)


def test_a_request_that_takes_too_long(tmp_path):
    write_toy(tmp_path / "toy")
    document = {"signature_name": "wait", "instances": [str(tmp_path / "never")]}
    with serving(tmp_path / "toy", rest_timeout_seconds=0.5) as calls:
        status, answer = calls.post("toy:predict", document)
    assert (status, answer) == (504, {"error": "Timed out waiting for notification"})


def test_status(calls):
    wanted = {
        "model_version_status": [
            {
                "version": "1",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    for path in ("toy", "toy/versions/1", "toy/labels/whatever"):
        assert calls.get(path) == (200, wanted)
    assert calls.get("nope") == (404, {"error": "Could not find any versions of model nope"})
    assert calls.get("toy/versions/99") == (
        404,
        {"error": "Could not find version 99 of model toy"},
    )


def test_metadata(calls):
    status, document = calls.get("toy/metadata")
    assert status == 200
    assert document["model_spec"] == {"name": "toy", "signature_name": "", "version": "1"}
    signatures = document["metadata"]["signature_def"]["signature_def"]
    assert signatures["classify"]["method_name"] == "tensorflow/serving/classify"
    assert signatures["tagged"]["inputs"]["tag"]["dtype"] == "DT_STRING"
    assert calls.get("nope/metadata")[0] == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "GET"])
def test_another_method_or_path_is_malformed(calls, method):
    status, answer = calls.rest(method, "/v1/models/toy:predict")
    assert (status, answer) == (
        400,
        {"error": f"Malformed request: {method} /v1/models/toy:predict"},
    )


def test_paths_that_are_not_of_the_api_are_html(calls):
    status, text = calls.rest("GET", "/")
    assert (status, "404 Not Found" in text) == (404, True)


def test_a_host_in_brackets_that_is_none_is_a_path_that_is_not_of_the_api(calls):
    with socket.create_connection(("127.0.0.1", calls.server.rest_port), timeout=30) as raw:
        raw.sendall(b"GET http://[ HTTP/1.1\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 404 ")


def test_a_name_is_percent_decoded(tmp_path):
    write_toy(tmp_path)
    with serving(tmp_path, name="a b/c:d") as calls:
        assert calls.post("a%20b%2Fc%3Ad:predict", {"inputs": [[1]]})[0] == 200


def test_a_connection_serves_several_requests_chunks_and_survives_an_error(calls):
    connection = http.client.HTTPConnection("127.0.0.1", calls.server.rest_port, timeout=30)
    for body, wanted in (([b'{"inputs"', b": [[1]]}"], 200), ([b"{"], 400), ([b"{}"], 400)):
        connection.request("POST", "/v1/models/toy:predict", iter(body), encode_chunked=True)
        response = connection.getresponse()
        assert response.status == wanted
        json.loads(response.read())
    connection.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\xff garbage\r\n\r\n",
        b"POST /v1/models/toy:predict HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST /v1/models/toy:predict HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n",
        b"POST /v1/models/toy:predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/models/toy:predict HTTP/1.1\r\nContent-Length: 100\r\n\r\n{}",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_broken_http_costs_nobody_else_anything(calls, sent):
    answer = b""
    with socket.create_connection(("127.0.0.1", calls.server.rest_port), timeout=30) as raw:
        # The server may have seen enough, and end the connection, before all of it has come.
        with contextlib.suppress(OSError):
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while piece := raw.recv(65536):
                answer += piece
    assert not answer or answer.split()[1] in (b"400", b"413", b"414") or b"error" in answer.lower()
    assert calls.post("toy:predict", {"inputs": [[1]]}) == (200, {"outputs": [[3.0]]})
