"""Loads one version of a model as TensorFlow Serving does, and runs its signatures."""

import pathlib

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

DEFAULT_SIGNATURE = "serving_default"
CLASSIFY_METHOD = "tensorflow/serving/classify"
WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"
MAX_WARM_UP_RECORDS = 1000
"""TensorFlow Serving refuses a version with more."""
STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ServingError(Exception):
    """A request that the server refuses; `code` is the gRPC status code."""

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code


def invalid(message: str) -> ServingError:
    """Returns the error of a request that can never succeed."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def _from_tensorflow(error: tf.errors.OpError) -> ServingError:
    # Python's session raises the kernel's error again, with a stack trace in its message.
    while isinstance(error.__context__, tf.errors.OpError):
        error = error.__context__
    return ServingError(STATUS_CODES[error.error_code], error.message.partition("\n")[0])


class LoadedVersion:
    """A version that is loaded, warmed up and ready to answer.

    It runs in a session of TensorFlow 1: `tf.saved_model.load` gives right answers from exports on
    which TensorFlow Serving fails, such as those of `tf.saved_model.save(keras_model)`.

    Args:
      directory: the version's directory.
      number: the version's number.

    Raises:
      ValueError: if the SavedModel cannot be loaded, or a request of its warm-up file fails.
    """

    def __init__(self, directory: pathlib.Path, number: int):
        self.number = number
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(directory))
            self.signatures = meta_graph.signature_def
            self._warm_up(directory / WARM_UP_FILE)
        except tf.errors.OpError as error:
            raise ValueError(
                f"'{directory}' cannot be loaded: {_from_tensorflow(error)}"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"'{directory}' cannot be loaded: {error}") from error

    def predict(self, request) -> tuple[str, dict[str, np.ndarray]]:
        """Runs the signature that a PredictRequest names; returns its name and its outputs.

        Raises:
          ServingError: if the request does not fit the signature, or the graph fails.
        """
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the signature must be one of {sorted(self.signatures)}, got '{name}'",
            )
        signature = self.signatures[name]
        if set(request.inputs) != set(signature.inputs):
            raise invalid(
                f"the inputs of '{name}' must be {sorted(signature.inputs)}, "
                f"got {sorted(request.inputs)}"
            )
        for key, proto in request.inputs.items():
            wanted, given = map(tf.as_dtype, (signature.inputs[key].dtype, proto.dtype))
            # The session would convert it.
            if wanted != given:
                raise invalid(f"'{key}' must be {wanted.name}, got {given.name}")
        return name, self._run(signature, request.inputs, tf.make_ndarray)

    def classify(self, request) -> tuple[str, dict[str, np.ndarray]]:
        """Runs the signature that a ClassificationRequest names on its tf.Examples.

        Returns:
          The signature's name, and `classes` string [examples, K], `scores` float32 [examples, K].

        Raises:
          ServingError: if the signature does not classify, or the graph fails.
        """
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        if name not in self.signatures or self.signatures[name].method_name != CLASSIFY_METHOD:
            raise invalid(f"the signature must be one that classifies, got '{name}'")
        examples = request.input.example_list.examples
        if not examples:
            raise invalid("Classify needs an example_list with one tf.Example at least")
        strings = [example.SerializeToString() for example in examples]
        return name, self._run(self.signatures[name], {"inputs": strings}, np.array)

    def _run(self, signature, inputs, to_array):
        fetches = {key: info.name for key, info in signature.outputs.items()}
        try:
            feeds = {signature.inputs[key].name: to_array(value) for key, value in inputs.items()}
            return self._session.run(fetches, feeds)
        except tf.errors.OpError as error:
            raise _from_tensorflow(error) from error
        except (TypeError, ValueError) as error:  # A shape that the signature does not have.
            raise invalid(str(error)) from error

    def _warm_up(self, path):
        """Replays the recorded requests; one that fails makes the version unfit to be served."""
        records = tf.compat.v1.io.tf_record_iterator(str(path)) if path.exists() else ()
        for number, record in enumerate(records, 1):
            try:
                if number > MAX_WARM_UP_RECORDS:
                    raise invalid(f"there may be {MAX_WARM_UP_RECORDS} at most")
                log = prediction_log_pb2.PredictionLog.FromString(record)
                if log.HasField("classify_log"):
                    self.classify(log.classify_log.request)
                else:
                    self.predict(log.predict_log.request)
            except (DecodeError, ServingError) as error:
                raise ValueError(f"record {number} of its warm-up file fails: {error}") from error
