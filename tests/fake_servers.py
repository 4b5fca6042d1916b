"""Model servers for the client's tests: small, over real sockets, and as odd as a test needs them.

The model looks at a picture's first pixel; gRPC and REST answer from the same lists.
"""

import base64
import collections
import concurrent.futures
import contextlib
import http.server
import io
import json
import threading
import urllib.parse

import grpc
import numpy as np
from PIL import Image, PngImagePlugin

from serving import wire

LABELS = ("cat", "dog", "eel")
SHAPE = (2, 2, 1)
METHODS = {"Predict": "predict", "GetModelStatus": "status", "GetModelMetadata": "metadata"}
SPECS = {
    "image_bytes": ({"image_bytes": ("DT_STRING", [-1])}, "tensorflow/serving/predict"),
    "gates": ({"images": ("DT_UINT8", [-1, *SHAPE])}, "tensorflow/serving/predict"),
    "classify": ({"inputs": ("DT_STRING", [-1])}, "tensorflow/serving/classify"),
    "__saved_model_init_op": ({}, ""),
}


class RefusedError(Exception):
    """A status that the server answers with."""

    def __init__(self, code, text):
        super().__init__(code, text)
        self.code = code
        self.text = text


def picture(value, broken=False, padding=0):
    """A PNG of `value`; a broken one is whole, but the server does not take it."""
    info = PngImagePlugin.PngInfo()
    if broken:
        info.add_text("Comment", "BROKEN")
    if padding:
        info.add_text("Padding", "x" * padding)
    file = io.BytesIO()
    Image.new("L", (2, 2), value).save(file, "PNG", pnginfo=info)
    return file.getvalue()


class FakeModel:
    """What both servers serve. `before(method, request)` may wait or refuse."""

    def __init__(self, before=None, max_rows=None, versions=None, labels=None):
        self.before = before or (lambda method, request: None)
        self.max_rows = max_rows
        self.versions = {1: "AVAILABLE"} if versions is None else versions
        self.version_labels = labels or {}
        self.outputs = None
        self.specs = SPECS
        self.calls = collections.Counter()
        # Over gRPC also those whose request is too large to be read.
        self.begun = collections.Counter()
        self.rows = []
        self.connections = 0
        self._lock = threading.Lock()
        self.running = self.most_running = 0

    @contextlib.contextmanager
    def _counted(self, method):
        with self._lock:
            self.calls[method] += 1
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            yield
        finally:
            with self._lock:
                self.running -= 1

    def answer(self, method, request):
        """A version number and plain values, whatever carries them."""
        with self._counted(method):
            self.before(method, request)
            return getattr(self, METHODS[method])(request)

    def _resolved(self, spec):
        if spec.name != "fake":
            raise RefusedError("NOT_FOUND", f"Servable not found for request: Latest({spec.name})")
        if spec.version_label:
            if spec.version_label not in self.version_labels:
                text = f"Unrecognized servable version label: {spec.version_label}"
                raise RefusedError("INVALID_ARGUMENT", text)
            return self.version_labels[spec.version_label]
        available = [number for number, state in self.versions.items() if state == "AVAILABLE"]
        if spec.HasField("version"):
            if spec.version.value not in available:
                asked = f"Specific(fake, {spec.version.value})"
                raise RefusedError("NOT_FOUND", f"Servable not found for request: {asked}")
            return spec.version.value
        if not available:
            raise RefusedError("NOT_FOUND", "Servable not found for request: Latest(fake)")
        return max(available)

    def predict(self, request):
        version = self._resolved(request.model_spec)
        signature = request.model_spec.signature_name
        (tensor,) = request.inputs.values()
        count = tensor.tensor_shape.dim[0].size
        with self._lock:
            self.rows.append(count)
        if self.max_rows and count > self.max_rows:
            text = f"Task size {count} is larger than maximum input batch size {self.max_rows}"
            raise RefusedError("INVALID_ARGUMENT", text)
        if signature == "classify":
            outputs = {"classes": [list(LABELS)] * count, "scores": [[0.0] * 3] * count}
        elif signature == "gates":
            step = len(tensor.tensor_content) // count
            values = [tensor.tensor_content[row * step] for row in range(count)]
            outputs = self._outputs(values)
            outputs["gates"] = [[1, value % 2, 0] for value in values]
        else:
            outputs = self._outputs([self._value(data) for data in tensor.string_val])
        if self.outputs is not None:
            outputs = self.outputs
        if request.output_filter:
            outputs = {name: outputs[name] for name in request.output_filter}
        return version, outputs

    @staticmethod
    def _value(data):
        if b"BROKEN" in data:
            raise RefusedError("INVALID_ARGUMENT", "Invalid PNG data, size 1\n\t [[{{node x}}]]")
        return Image.open(io.BytesIO(data)).convert("L").getpixel((0, 0))

    @staticmethod
    def _outputs(values):
        ids = [value % 3 for value in values]
        chances = [0.7, 0.2, 0.1]
        return {
            "labels": [LABELS[one] for one in ids],
            "class_ids": ids,
            "probabilities": [[chances[(place - one) % 3] for place in range(3)] for one in ids],
        }

    def status(self, request):
        if request.model_spec.name != "fake":
            text = f"Could not find any versions of model {request.model_spec.name}"
            raise RefusedError("NOT_FOUND", text)
        versions = dict(sorted(self.versions.items(), reverse=True))
        if request.model_spec.HasField("version"):
            asked = request.model_spec.version.value
            if asked not in versions:
                text = f"Could not find version {asked} of model fake"
                raise RefusedError("NOT_FOUND", text)
            return 0, {asked: versions[asked]}
        return 0, versions

    def metadata(self, request):
        return self._resolved(request.model_spec), self.specs


def tensor(values):
    """As TensorFlow Serving writes it, in typed fields."""
    array = np.array(values)
    message = wire.Tensor()
    for size in array.shape:
        message.tensor_shape.dim.add(size=size)
    if array.dtype.kind == "U":
        message.dtype = wire.DT_STRING
        message.string_val.extend(value.encode() for value in array.ravel().tolist())
    elif array.dtype.kind == "f":
        message.dtype = wire.DT_FLOAT
        message.float_val.extend(array.ravel().tolist())
    else:
        message.dtype = wire.DT_INT64
        message.int64_val.extend(array.ravel().tolist())
    return message


def grpc_response(method, version, values):
    """The message that carries an answer; `values` may be that message."""
    if not isinstance(values, dict):
        return values
    if method == "Predict":
        message = wire.PredictResponse()
        for name, value in values.items():
            message.outputs[name].CopyFrom(
                value if isinstance(value, wire.Tensor) else tensor(value)
            )
        message.model_spec.version.value = version
        return message
    if method == "GetModelStatus":
        message = wire.GetModelStatusResponse()
        for number, state in values.items():
            one = message.model_version_status.add(version=number)
            state, _, error = state.partition(": ")
            one.state = wire.ModelVersionStatus.State.Value(state)
            if error:
                one.status.error_code = wire.STATUS_CODES["NOT_FOUND"]
                one.status.error_message = error
        return message
    signatures = wire.SignatureDefMap()
    for name, (inputs, kind) in values.items():
        signature = signatures.signature_def[name]
        signature.method_name = kind
        for key, (dtype, shape) in inputs.items():
            signature.inputs[key].dtype = wire.DATA_TYPES[dtype]
            for size in shape:
                signature.inputs[key].tensor_shape.dim.add(size=size)
    message = wire.GetModelMetadataResponse()
    message.model_spec.version.value = version
    message.metadata["signature_def"].value = signatures.SerializeToString()
    return message


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, model):
        self.model = model

    def service(self, handler_call_details):
        method = handler_call_details.method.rpartition("/")[2]
        request_class = getattr(wire, f"{method}Request")
        self.model.begun[method] += 1

        def answer(request, context):
            try:
                return grpc_response(method, *self.model.answer(method, request))
            except RefusedError as error:
                context.abort(grpc.StatusCode[error.code], error.text)

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=request_class.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )


@contextlib.contextmanager
def grpc_server(model, port=0, credentials=None, max_bytes=-1):
    """Serves a model over gRPC; gives host:port."""
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(16),
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", max_bytes)],
    )
    server.add_generic_rpc_handlers([_Handler(model)])
    address = f"127.0.0.1:{port}"
    if credentials is None:
        port = server.add_insecure_port(address)
    else:
        port = server.add_secure_port(address, credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


HTTP_CODES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    # Over gRPC too large a body is RESOURCE_EXHAUSTED too.
    413: 413,
}


@contextlib.contextmanager
def rest_server(model, port=0, context=None):
    """Serves a model over REST, as TF_SERVING's REST interface answers; gives its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self):
            super().setup()
            model.connections += 1
            connections.append(self.connection)

        def do_GET(self):
            self.answer(None)

        def do_POST(self):
            size = int(self.headers["Content-Length"])
            content = self.rfile.read(size)
            # Who asked may be gone before all of it has come.
            if len(content) == size:
                self.answer(json.loads(content))

        def answer(self, body):
            try:
                status, document = 200, rest_answer(model, self.path, body)
            except RefusedError as error:
                status, document = HTTP_CODES.get(error.code, 500), {"error": error.text}
            content = json.dumps(document).encode()
            # Who was asked too long may be gone.
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    connections = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    try:
        scheme = "http" if context is None else "https"
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(2)
        server.server_close()


def rest_answer(model, path, body):
    """The JSON for a request."""
    _, v1, models, name, *rest = path.split("/")
    assert (v1, models) == ("v1", "models")
    spec = wire.ModelSpec()
    last = rest[-1] if rest else name
    verb = last.partition(":")[2]
    spec.name = urllib.parse.unquote(name.partition(":")[0])
    if rest[:1] == ["versions"]:
        spec.version.value = int(rest[1].partition(":")[0])
    if rest[:1] == ["labels"]:
        spec.version_label = rest[1].partition(":")[0]
    if verb == "predict":
        return _rest_predict(model, spec, body)
    if last == "metadata":
        version, specs = model.answer(
            "GetModelMetadata", wire.GetModelMetadataRequest(model_spec=spec)
        )
        signatures = {
            key: {
                "inputs": {
                    alias: {
                        "dtype": dtype,
                        "tensor_shape": {
                            "dim": [{"size": str(size), "name": ""} for size in shape]
                        },
                    }
                    for alias, (dtype, shape) in inputs.items()
                },
                "outputs": {},
                "method_name": kind,
            }
            for key, (inputs, kind) in specs.items()
        }
        return {
            "model_spec": {"name": spec.name, "signature_name": "", "version": str(version)},
            "metadata": {"signature_def": {"signature_def": signatures}},
        }
    _, versions = model.answer("GetModelStatus", wire.GetModelStatusRequest(model_spec=spec))
    return {
        "model_version_status": [
            {
                "version": str(number),
                "state": state.partition(": ")[0],
                "status": {
                    "error_code": "NOT_FOUND" if ": " in state else "OK",
                    "error_message": state.partition(": ")[2],
                },
            }
            for number, state in versions.items()
        ]
    }


def _rest_predict(model, spec, body):
    spec.signature_name = body["signature_name"]
    request = wire.PredictRequest(model_spec=spec)
    for name, values in body["inputs"].items():
        message = request.inputs[name]
        if isinstance(values[0], dict):
            message.string_val.extend(base64.b64decode(value["b64"]) for value in values)
            message.tensor_shape.dim.add(size=len(values))
        else:
            pixels = np.array(values, np.uint8)
            message.tensor_content = pixels.tobytes()
            for size in pixels.shape:
                message.tensor_shape.dim.add(size=size)
    return {"outputs": model.answer("Predict", request)[1]}
