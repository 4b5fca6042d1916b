"""Starts servers in this process for tests, and calls them over their sockets."""

import contextlib
import http.client
import json
import threading

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from serving.config import single_model
from serving.hosting import LocalServer, Settings

GRACE = 30


class Calls:
    """Stubs and REST calls to one server."""

    def __init__(self, server: LocalServer, channel: grpc.Channel):
        self.server = server
        self.channel = channel
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(channel)

    def rest(self, method, path, body=None, headers=()):
        """Returns (status, parsed JSON, or text where the answer is not JSON)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.rest_port, timeout=60)
        with contextlib.closing(connection):
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            text = response.read().decode()
        if "json" in response.headers["Content-Type"]:
            return response.status, json.loads(text)
        return response.status, text

    def post(self, path, body):
        """POSTs to a path below /v1/models/."""
        return self.rest("POST", f"/v1/models/{path}", body)

    def get(self, path):
        """GETs a path below /v1/models/."""
        return self.rest("GET", f"/v1/models/{path}")


@contextlib.contextmanager
def serving(base_path=None, name="toy", stop=True, **settings):
    """Runs a server with a gRPC and a REST port; gives `Calls` to it."""
    defaults = {"port": 0, "rest_port": -1, "config": single_model(name, str(base_path))}
    server = LocalServer(Settings(**(defaults | settings)))
    server.start()
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}", options) as channel:
            yield Calls(server, channel)
    finally:
        if stop:
            server.stop(GRACE)


def entries(server) -> threading.Semaphore:
    """Is released whenever a request has got hold of a version from now on."""
    entered = threading.Semaphore(0)
    lend = server.models.servable

    @contextlib.contextmanager
    def noticed(spec):
        with lend(spec) as servable:
            entered.release()
            yield servable

    server.models.servable = noticed
    return entered


def error_of(call, request, timeout=30):
    """(code name, details) of a call that must fail."""
    try:
        call(request, timeout=timeout)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError(f"{call} was answered")
