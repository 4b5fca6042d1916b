"""TensorFlow Serving's gRPC services: each method hands its request on to `serving.inference`."""

import contextlib

import grpc
from absl import logging
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from serving.errors import ServingError, invalid
from serving.inference import Call, Inference

NO_DEADLINE_SECONDS = 1e8
UNSUPPORTED_CONFIG = (
    "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is "
    "currently supported"
)


@contextlib.contextmanager
def answering(context):
    """Turns an error inside the block into the call's status; none may end the server."""
    try:
        yield
    except ServingError as error:
        context.abort(error.code, error.cut_message)
    except Exception as error:  # A request that we did not foresee is still only a request.
        logging.exception("A request failed")
        context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")


def _timeout(context) -> float | None:
    """Seconds that are left; a call without a deadline has a very late one."""
    left = context.time_remaining()
    return left if left is not None and left < NO_DEADLINE_SECONDS else None


def _call(context) -> Call:
    call = Call("GRPC", _timeout(context))
    context.add_callback(call.ended.set)
    return call


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference and GetModelMetadata."""

    def __init__(self, inference: Inference):
        self._inference = inference

    def Predict(self, request, context):  # noqa: N802 - the service's name
        """Runs a signature on tensors."""
        with answering(context):
            return self._inference.predict(request, _call(context))

    def Classify(self, request, context):  # noqa: N802 - the service's name
        """Runs a classify signature on tf.Examples."""
        with answering(context):
            return self._inference.classify(request, _call(context))

    def Regress(self, request, context):  # noqa: N802 - the service's name
        """Refuses, as TensorFlow Serving does for signatures that are not of regression."""
        with answering(context):
            return self._inference.regress(request, _call(context))

    def MultiInference(self, request, context):  # noqa: N802 - the service's name
        """Runs several classify signatures on the same tf.Examples."""
        with answering(context):
            return self._inference.multi_inference(request, _call(context))

    def GetModelMetadata(self, request, context):  # noqa: N802 - the service's name
        """Tells the signatures of a model."""
        with answering(context):
            return self._inference.metadata(request)


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, inference: Inference):
        self._inference = inference

    def GetModelStatus(self, request, context):  # noqa: N802 - the service's name
        """Tells the states of a model's versions."""
        with answering(context):
            return self._inference.status(request)

    def HandleReloadConfigRequest(self, request, context):  # noqa: N802 - the service's name
        """Replaces the list of models."""
        with answering(context):
            if request.config.WhichOneof("config") != "model_config_list":
                raise invalid(UNSUPPORTED_CONFIG)
            self._inference.models.reload(request.config, _timeout(context))
            response = model_management_pb2.ReloadConfigResponse()
            response.status.SetInParent()
            return response


class _Unknown(grpc.GenericRpcHandler):
    """Answers methods that there are not, as the real server does: without a word."""

    def service(self, handler_call_details):
        """Takes every call that no service has taken before."""
        return grpc.unary_unary_rpc_method_handler(
            lambda _, context: context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        )


def register(server: grpc.Server, inference: Inference) -> None:
    """Adds both services to a gRPC server."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(inference), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(inference), server)


def refuse_all_others(server: grpc.Server) -> None:
    """Has the right words for services that are not there; call it last."""
    server.add_generic_rpc_handlers((_Unknown(),))
