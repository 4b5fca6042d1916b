"""A model server for the client's tests, in the test's own process, as odd as a test needs it."""

import collections
import concurrent.futures
import contextlib
import io

import grpc
import numpy as np
import tensorflow as tf
from PIL import Image, PngImagePlugin

from serving import wire

LABELS = ("cat", "dog", "eel")


class RefusedError(Exception):
    """The status that the server answers with, and its text."""


def picture(value, broken=False, padding=0):
    """Returns a PNG whose pixels are `value`; the server refuses a broken one."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "BROKEN" if broken else "x" * padding)
    file = io.BytesIO()
    Image.new("L", (2, 2), value).save(file, "PNG", pnginfo=info)
    return file.getvalue()


class FakeModel:
    """The model "fake", whose class of a picture is its first pixel modulo 3.

    Args:
      before: called with each Predict request; may wait or raise `RefusedError`.
      versions: the states of its versions, "END: reason" for one that failed.
      version_labels: version numbers by label.
    """

    def __init__(self, before=None, versions=None, version_labels=None):
        self.before = before or (lambda request: None)
        self.versions = {1: "AVAILABLE"} if versions is None else versions
        self.version_labels = version_labels or {}
        self.change_outputs = lambda outputs: outputs
        self.rows = []
        self.signatures = collections.Counter()

    def predict(self, request):
        """Answers a PredictRequest."""
        (tensor,) = request.inputs.values()
        self.rows.append(len(tensor.string_val))
        self.signatures[request.model_spec.signature_name] += 1
        self.before(request)
        version = self._resolve(request.model_spec)
        outputs = self._outputs(request.model_spec.signature_name, tensor.string_val)
        response = wire.PredictResponse()
        response.model_spec.version.value = version
        for name, values in self.change_outputs(outputs).items():
            tensor = tf.make_tensor_proto(values).SerializeToString()
            response.outputs[name].MergeFromString(tensor)
        return response

    def _resolve(self, spec):
        if spec.version_label and spec.version_label not in self.version_labels:
            raise RefusedError("INVALID_ARGUMENT", "no such label")
        version = self.version_labels.get(spec.version_label) or spec.version.value
        available = [number for number, state in self.versions.items() if state == "AVAILABLE"]
        version = version or max(available, default=0)
        if spec.name != "fake" or version not in available:
            raise RefusedError("NOT_FOUND", "no such servable")
        return version

    def _outputs(self, signature, pictures):
        if signature == "classify":
            return {"classes": [LABELS] * len(pictures)}
        values = [self._first_pixel(data) for data in pictures]
        ids = [value % 3 for value in values]
        outputs = {
            "labels": [LABELS[class_id] for class_id in ids],
            "class_ids": np.array(ids, np.int64),
            "probabilities": np.float32([np.roll([0.5, 0.25, 0.125], number) for number in ids]),
        }
        if signature == "gates_bytes":
            outputs["gates"] = np.array([[1, value % 2, 0] for value in values], np.uint8)
        return outputs

    @staticmethod
    def _first_pixel(data):
        if not data:
            return 0
        if b"BROKEN" in data or not data.startswith(b"\x89PNG"):
            raise RefusedError("INVALID_ARGUMENT", "one of them is no picture")
        return Image.open(io.BytesIO(data)).convert("L").getpixel((0, 0))

    def get_model_status(self, request):
        """Answers a GetModelStatusRequest."""
        if request.model_spec.name != "fake":
            raise RefusedError("NOT_FOUND", "no such model")
        response = wire.GetModelStatusResponse()
        for number, state in self.versions.items():
            state, _, reason = state.partition(": ")
            entry = response.model_version_status.add(version=number)
            entry.state = wire.ModelVersionStatus.State.Value(state)
            entry.status.error_message = reason
        return response


def _service(name, method, call):
    """Returns the handler of a service with one method."""

    def answer(request, context):
        try:
            return call(request)
        except RefusedError as error:
            code, text = error.args
            context.abort(grpc.StatusCode[code], text)

    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=getattr(wire, f"{method}Request").FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )
    return grpc.method_handlers_generic_handler(f"tensorflow.serving.{name}", {method: handler})


@contextlib.contextmanager
def grpc_server(model, port=0, credentials=None):
    """Serves a model on 127.0.0.1; yields host:port."""
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(16),
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)],
    )
    predict = _service("PredictionService", "Predict", model.predict)
    status = _service("ModelService", "GetModelStatus", model.get_model_status)
    server.add_generic_rpc_handlers([predict, status])
    if credentials is None:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
