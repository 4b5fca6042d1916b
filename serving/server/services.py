"""The part of TensorFlow Serving's gRPC services that exported models and `serving.client` need."""

import concurrent.futures
import contextlib

import grpc
import numpy as np
import tensorflow as tf
from absl import logging
from grpc_health.v1 import health, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.server.loading import LoadedVersion, ServingError
from serving.server.versions import NewestVersion

TYPED_FIELDS = {"float32": "float_val", "int64": "int64_val", "uint8": "int_val"}


@contextlib.contextmanager
def _answering(context):
    """Turns an exception inside the block into the call's status."""
    try:
        yield
    except ServingError as error:
        context.abort(error.code, str(error))
    except Exception as error:
        logging.exception("a request failed")
        context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")


def _served_version(model: NewestVersion, spec) -> LoadedVersion:
    """Returns the version that is served, if it is the one that a ModelSpec asks for."""
    loaded = model.loaded
    if spec.HasField("version_label"):
        raise ServingError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"the local server has no version labels, and '{spec.version_label}' was asked for: "
            "labels are TensorFlow Serving's",
        )
    version = spec.version.value if spec.HasField("version") else loaded.number
    if (spec.name, version) != (model.name, loaded.number):
        raise ServingError(
            grpc.StatusCode.NOT_FOUND,
            f"only version {loaded.number} of '{model.name}' is served here",
        )
    return loaded


def _fill_spec(spec, model, loaded, signature_name=""):
    spec.name, spec.signature_name = model.name, signature_name
    spec.version.value = loaded.number


def _to_proto(array: np.ndarray, dtype):
    """Returns a TensorProto with numbers in typed fields, where TensorFlow Serving puts them."""
    proto = tf.make_tensor_proto(array, dtype)
    field = TYPED_FIELDS.get(array.dtype.name)
    if field and proto.tensor_content:
        proto.ClearField("tensor_content")
        getattr(proto, field).extend(array.ravel().tolist())
    return proto


class Services(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    """Predict, Classify, GetModelMetadata and GetModelStatus of one model."""

    def __init__(self, model: NewestVersion):
        self._model = model

    def Predict(self, request, context):  # noqa: N802 - the service's name
        """Runs a signature on tensors."""
        response = predict_pb2.PredictResponse()
        with _answering(context):
            loaded = _served_version(self._model, request.model_spec)
            name, outputs = loaded.predict(request)
            for key, array in outputs.items():
                dtype = loaded.signatures[name].outputs[key].dtype
                response.outputs[key].CopyFrom(_to_proto(array, dtype))
            _fill_spec(response.model_spec, self._model, loaded, name)
        return response

    def Classify(self, request, context):  # noqa: N802 - the service's name
        """Runs a classify signature on tf.Examples."""
        response = classification_pb2.ClassificationResponse()
        with _answering(context):
            loaded = _served_version(self._model, request.model_spec)
            name, outputs = loaded.classify(request)
            for labels, scores in zip(outputs["classes"], outputs["scores"], strict=True):
                classes = response.result.classifications.add().classes
                for label, score in zip(labels, scores, strict=True):
                    classes.add(label=label, score=score)
            _fill_spec(response.model_spec, self._model, loaded, name)
        return response

    def GetModelMetadata(self, request, context):  # noqa: N802 - the service's name
        """Returns the signatures of the model."""
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        with _answering(context):
            loaded = _served_version(self._model, request.model_spec)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, signature in loaded.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
            response.metadata["signature_def"].Pack(signatures)
            _fill_spec(response.model_spec, self._model, loaded)
        return response

    def GetModelStatus(self, request, context):  # noqa: N802 - the service's name
        """Returns the state of each version, the newest first: the served one and failed ones."""
        response = get_model_status_pb2.GetModelStatusResponse()
        name = request.model_spec.name
        if name != self._model.name:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"served here is '{self._model.name}', not '{name}'"
            )
        status = get_model_status_pb2.ModelVersionStatus
        states = {number: (status.END, text) for number, text in self._model.failed.copy().items()}
        states[self._model.loaded.number] = (status.AVAILABLE, "")
        for number, (state, text) in sorted(states.items(), reverse=True):
            entry = response.model_version_status.add(version=number, state=state)
            entry.status.error_code = grpc.StatusCode.UNKNOWN.value[0] if text else 0
            entry.status.error_message = text
        return response


def start_server(model: NewestVersion, address: str, port: int) -> tuple[grpc.Server, int]:
    """Starts to serve a model over gRPC, with gRPC's health service.

    Args:
      model: the model, with a version loaded.
      address: where to listen.
      port: TCP port; 0 takes a free one.

    Returns:
      The server and its port.

    Raises:
      OSError: if the port cannot be had.
    """
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(),
        options=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
    )
    services = Services(model)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(services, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(services, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    try:
        port = server.add_insecure_port(f"{address}:{port}")
    except RuntimeError as error:
        raise OSError(f"--port must be free on {address}, and {port} is not: {error}") from error
    server.start()
    return server, port
