"""TensorFlow Serving's REST API on the standard library's HTTP server."""

import contextlib
import http
import http.server
import re
import socket
import threading
import urllib.parse

import grpc
from absl import logging
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    regression_pb2,
)

from serving import rest_examples, rest_json
from serving.errors import ServingError, invalid
from serving.inference import METADATA_FIELD, Call, Inference
from serving.servable import DEFAULT_SIGNATURE
from serving.versions import parse_version

MAX_BODY = 2**28
IDLE_SECONDS = 60
_MODEL = (
    r"(?i:/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
)
PREDICTION_PATH = re.compile(_MODEL + r":(?P<method>classify|regress|predict))", re.ASCII)
STATUS_PATH = re.compile(_MODEL + r"(?P<metadata>/metadata)?)", re.ASCII)
STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""By the code of an error; 500 for the others."""


class RestApi:
    """Answers requests by method, path and body.

    Args:
      inference: what answers.
      timeout: seconds for a request.
    """

    def __init__(self, inference: Inference, timeout: float):
        self._inference = inference
        self._timeout = timeout

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Returns (HTTP status, JSON)."""
        try:
            return 200, self._answer(method, path, body)
        except ServingError as error:
            return STATUSES.get(error.code, 500), rest_json.dump({"error": error.message})
        except Exception as error:  # A request that we did not foresee is still only a request.
            logging.exception("A request failed")
            return 500, rest_json.dump({"error": f"{type(error).__name__}: {error}"})

    def _answer(self, method, path, body):
        if method == "POST" and (found := PREDICTION_PATH.fullmatch(path)):
            method = found["method"].lower()
            model = urllib.parse.unquote(found["model"])
            with self._inference.counting(model, method.capitalize(), "REST"):
                try:
                    return getattr(self, method)(found, rest_json.parse(body))
                except RecursionError as error:
                    raise rest_json.too_deep() from error
        if method == "GET" and re.fullmatch("(?i)/v1/models/?", path):
            raise invalid("Missing model name in request.")
        if method == "GET" and (found := STATUS_PATH.fullmatch(path)):
            return self._metadata(found) if found["metadata"] else self._status(found)
        raise invalid(f"Malformed request: {method} {path}")

    def predict(self, found, document) -> bytes:
        """Runs a signature on tensors given as rows or columns."""
        request = _named(predict_pb2.PredictRequest(), found)
        name = rest_json.signature_name(document)
        request.model_spec.signature_name = name
        with self._inference.models.servable(request.model_spec) as servable:
            signature = servable.signatures.get(name or DEFAULT_SIGNATURE)
            if signature is None:
                raise invalid(
                    f'Serving signature name: "{name or DEFAULT_SIGNATURE}" not found in '
                    "signature def"
                )
            if not signature.inputs:
                raise invalid(f"Failed to get input map for signature: {name or 'DEFAULT'}")
        form = rest_json.fill_inputs(document, signature.inputs, request.inputs)
        response = self._inference.predict(request, self._call())
        return rest_json.write_outputs(response.outputs, form)

    def classify(self, found, document) -> bytes:
        """Runs a classify signature on examples."""
        request = _named(classification_pb2.ClassificationRequest(), found)
        rest_examples.fill_request(document, request)
        return rest_examples.write_classes(self._inference.classify(request, self._call()).result)

    def regress(self, found, document) -> bytes:
        """Refuses, as over gRPC."""
        request = _named(regression_pb2.RegressionRequest(), found)
        rest_examples.fill_request(document, request)
        return self._inference.regress(request, self._call())

    def _status(self, found):
        request = _named(get_model_status_pb2.GetModelStatusRequest(), found)
        return rest_json.dump(_to_dict(self._inference.status(request)))

    def _metadata(self, found):
        request = _named(get_model_metadata_pb2.GetModelMetadataRequest(), found)
        request.metadata_field.append(METADATA_FIELD)
        response = self._inference.metadata(request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata[METADATA_FIELD].Unpack(signatures)
        return rest_json.dump(
            {
                "model_spec": _to_dict(response.model_spec),
                "metadata": {METADATA_FIELD: _to_dict(signatures)},
            }
        )

    def _call(self):
        return Call("REST", self._timeout, counted=True)


def _named(request, found):
    """A request about the model, version and label of a path."""
    spec = request.model_spec
    spec.name = urllib.parse.unquote(found["model"])
    if found["version"]:
        number = parse_version(found["version"])
        if number is None:
            raise invalid(f"Failed to convert version: {found['version']} to numeric.")
        spec.version.value = number
    elif found["label"]:
        spec.version_label = urllib.parse.unquote(found["label"])
    return request


def _to_dict(message):
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


class RestServer(http.server.ThreadingHTTPServer):
    """Serves a `RestApi`, and the metrics page.

    Args:
      address: (host, port), which is taken at once and listened on from `start`.
      api: what answers.
      pages: bytes to serve by path, made anew by a call for each request.

    Raises:
      OSError: when the port cannot be had.
    """

    daemon_threads = False
    block_on_close = True
    request_queue_size = 128
    # A port in use is refused; one in TIME_WAIT may be taken.
    allow_reuse_address = True

    def __init__(self, address, api: RestApi, pages):
        self.api = api
        self.pages = pages
        self.stopping = False
        self.idle: set[socket.socket] = set()
        self.lock = threading.Lock()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler, bind_and_activate=False)
        try:
            self.server_bind()
        except OSError:
            self.server_close()
            raise
        self._thread = threading.Thread(target=self.serve_forever, name="rest", daemon=True)

    def start(self) -> None:
        """Begins to listen and to answer."""
        self.server_activate()
        self._thread.start()

    def stop(self) -> None:
        """Refuses new connections and requests, and waits for the running ones."""
        with self.lock:
            self.stopping = True
            for connection in self.idle:
                end_of_requests(connection)
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address) -> None:
        """A connection that breaks is the caller's affair."""
        logging.info("A connection of %s broke", client_address, exc_info=True)


def end_of_requests(connection: socket.socket) -> None:
    """Lets whoever reads from the connection find its end; answers can still be sent."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "gaternet-local-server"
    sys_version = ""
    timeout = IDLE_SECONDS
    wbufsize = -1
    disable_nagle_algorithm = True
    server: RestServer

    def setup(self):
        super().setup()
        with self.server.lock:
            self.server.idle.add(self.connection)
            if self.server.stopping:
                end_of_requests(self.connection)

    def finish(self):
        with self.server.lock:
            self.server.idle.discard(self.connection)
        super().finish()

    def parse_request(self):
        with self.server.lock:
            self.server.idle.discard(self.connection)
        return super().parse_request()

    def handle_one_request(self):
        super().handle_one_request()
        with self.server.lock:
            self.server.idle.add(self.connection)
            if self.server.stopping:
                self.close_connection = True

    def _respond(self):
        try:
            path = urllib.parse.urlsplit(self.path).path
        except ValueError:
            # A host in brackets that is none.
            path = self.path
        body = self._body()
        if body is None:
            return
        page = self.server.pages.get(path) if self.command == "GET" else None
        if page is not None:
            self._send(200, "text/plain", page())
        elif re.match("(?i)/v1/", path):
            self._send(*self._api(path, body))
        else:
            text = "<html><head><title>404 Not Found</title></head></html>\n"
            self._send(404, "text/html", text.encode())

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_HEAD = _respond  # noqa: N815

    def _api(self, path, body):
        status, text = self.server.api.answer(self.command, path, body)
        return status, "application/json", text

    def _body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self._chunks()
        length = self.headers.get("Content-Length", "0")
        if not re.fullmatch("[0-9]{1,18}", length):
            return self._refuse(400, f"Content-Length must be a number, and is {length!r}")
        if int(length) > MAX_BODY:
            return self._refuse(413, f"A body must have at most {MAX_BODY} bytes, not {length}")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return None
        return body

    def _chunks(self):
        body = b""
        while True:
            size = self.rfile.readline(64).split(b";")[0].strip()
            if not re.fullmatch(b"[0-9a-fA-F]{1,8}", size):
                return self._refuse(400, "A chunk must begin with its size")
            if len(body) + int(size, 16) > MAX_BODY:
                return self._refuse(413, f"A body must have at most {MAX_BODY} bytes")
            if not int(size, 16):
                while self.rfile.readline(65536).strip():
                    pass
                return body
            body += self.rfile.read(int(size, 16))
            self.rfile.readline(64)

    def _refuse(self, status, text):
        self.close_connection = True
        self._send(status, "application/json", rest_json.dump({"error": text}))

    def _send(self, status, kind, body):
        reason = "" if status in set(http.HTTPStatus) else "Client Closed Request"
        self.send_response(status, reason or None)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection or self.server.stopping:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format, *args):
        logging.debug(format, *args)
