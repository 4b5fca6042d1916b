"""TensorFlow Serving's gRPC services over one servable."""

import contextlib

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.errors import ServingError, invalid, not_found
from serving.servable import DEFAULT_SIGNATURE, Servable, typed_proto

CLASSIFY_METHOD = "tensorflow/serving/classify"
METADATA_FIELD = "signature_def"
MAX_MESSAGE = 1024
"""The real server cuts longer error messages."""


@contextlib.contextmanager
def answering(context):
    """Turns a `ServingError` inside the block into the call's status."""
    try:
        yield
    except ServingError as error:
        message = error.message
        if len(message) > MAX_MESSAGE:
            message = message[:MAX_MESSAGE] + "...TRUNCATED"
        context.abort(error.code, message)


class ModelStore:
    """The one model that the local server has."""

    def __init__(self, name: str, servable: Servable):
        self.name = name
        self.servable = servable

    def find(self, request) -> Servable:
        """Returns the servable that a request's model_spec names, in the server's own words if not.

        Raises:
          ServingError: NOT_FOUND or INVALID_ARGUMENT.
        """
        spec = self.checked_spec(request)
        if spec.version_label:
            if spec.name == self.name:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
            raise not_found(f"Servable not found for request: Latest({spec.name})")
        wanted = spec.version.value if spec.HasField("version") else None
        if spec.name != self.name or wanted not in (None, self.servable.version):
            asked = f"Latest({spec.name})" if wanted is None else f"Specific({spec.name}, {wanted})"
            raise not_found(f"Servable not found for request: {asked}")
        return self.servable

    @staticmethod
    def checked_spec(request):
        """The request's model_spec, if it names a model."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        if not request.model_spec.name:
            raise invalid("ModelSpec has no name specified.")
        return request.model_spec

    def fill(self, spec, signature_name=""):
        """Fills the model_spec of an answer."""
        spec.name = self.name
        spec.version.value = self.servable.version
        spec.signature_name = signature_name


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify and GetModelMetadata; the other methods answer UNIMPLEMENTED."""

    def __init__(self, store: ModelStore):
        self.store = store

    def Predict(self, request, context):  # noqa: N802 - the service's name
        """Runs a signature on tensors."""
        with answering(context):
            servable = self.store.find(request)
            signature = request.model_spec.signature_name or DEFAULT_SIGNATURE
            outputs = servable.predict(signature, request.inputs, request.output_filter)
            response = predict_pb2.PredictResponse()
            self.store.fill(response.model_spec, signature)
            for name, array in outputs.items():
                response.outputs[name].CopyFrom(typed_proto(array))
            return response

    def Classify(self, request, context):  # noqa: N802 - the service's name
        """Runs a classify signature on tf.Examples."""
        with answering(context):
            servable = self.store.find(request)
            name = request.model_spec.signature_name or DEFAULT_SIGNATURE
            signature = servable.signatures.get(name)
            if signature is None:
                raise invalid(f"No signature was found with the name: {name}")
            if signature.method_name != CLASSIFY_METHOD:
                raise invalid("Expected one input Tensor.")
            examples = [item.SerializeToString() for item in _examples(request.input)]
            if not examples:
                raise invalid("Input is empty.")
            inputs, outputs = ["inputs"], ["classes", "scores"]
            values = servable.run(name, inputs, [examples], outputs)
            response = classification_pb2.ClassificationResponse()
            self.store.fill(response.model_spec, name)
            for classes, scores in zip(values["classes"], values["scores"], strict=True):
                answer = response.result.classifications.add()
                for label, score in zip(classes, scores, strict=True):
                    answer.classes.add(label=label, score=score)
            return response

    def GetModelMetadata(self, request, context):  # noqa: N802 - the service's name
        """Tells the signatures of the model."""
        with answering(context):
            servable = self.store.find(request)
            if not request.metadata_field:
                raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
            for field in request.metadata_field:
                if field != METADATA_FIELD:
                    raise invalid(f"Metadata field {field} is not supported")
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            self.store.fill(response.model_spec)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, signature in servable.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
            response.metadata[METADATA_FIELD].Pack(signatures)
            return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus; reloading a configuration answers UNIMPLEMENTED."""

    def __init__(self, store: ModelStore):
        self.store = store

    def GetModelStatus(self, request, context):  # noqa: N802 - the service's name
        """Tells that the version is available; a version label is ignored, as the server does."""
        with answering(context):
            spec = self.store.checked_spec(request)
            if spec.name != self.store.name:
                raise not_found(f"Could not find any versions of model {spec.name}")
            version = self.store.servable.version
            if spec.HasField("version") and spec.version.value != version:
                raise not_found(f"Could not find version {spec.version.value} of model {spec.name}")
            state = get_model_status_pb2.ModelVersionStatus.AVAILABLE
            response = get_model_status_pb2.GetModelStatusResponse()
            response.model_version_status.add(version=version, state=state).status.SetInParent()
            return response


def _examples(request_input):
    kind = request_input.WhichOneof("kind")
    if kind == "example_list":
        return request_input.example_list.examples
    if kind == "example_list_with_context":
        examples = request_input.example_list_with_context.examples
        context = request_input.example_list_with_context.context
        for example in examples:
            for name, feature in context.features.feature.items():
                if name not in example.features.feature:
                    example.features.feature[name].CopyFrom(feature)
        return examples
    return []


def register(server: grpc.Server, store: ModelStore) -> None:
    """Adds both services to a gRPC server."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(store), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(store), server)
