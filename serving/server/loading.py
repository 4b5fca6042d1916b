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
    """A request or a version that the server refuses; `code` is the gRPC status code."""

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
      ServingError: if the SavedModel cannot be loaded, or a request of its warm-up file fails.
    """

    def __init__(self, directory: pathlib.Path, number: int):
        self.number = number
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            meta_graph = tf.compat.v1.saved_model.load(self._session, ["serve"], str(directory))
        except tf.errors.OpError as error:
            raise _from_tensorflow(error) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise ServingError(grpc.StatusCode.UNKNOWN, str(error)) from error
        self.signatures = meta_graph.signature_def
        self._warm_up(directory / WARM_UP_FILE)

    def predict(self, request) -> tuple[str, dict[str, np.ndarray]]:
        """Runs the signature that a PredictRequest names.

        Returns:
          The signature's name, and its outputs: all of them, or those of the `output_filter`.

        Raises:
          ServingError: if the request does not fit the signature, or the graph fails.
        """
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the signature must be {_either(self.signatures)}, got '{name}'",
            )
        signature = self.signatures[name]
        if set(request.inputs) != set(signature.inputs):
            raise invalid(
                f"the inputs of '{name}' must be {sorted(signature.inputs)}, "
                f"got {sorted(request.inputs)}"
            )
        inputs = {
            key: _to_array(key, proto, signature.inputs[key].dtype)
            for key, proto in request.inputs.items()
        }
        unknown = sorted(set(request.output_filter) - set(signature.outputs))
        if unknown:
            raise invalid(f"'{name}' has the outputs {sorted(signature.outputs)}, not {unknown}")
        return name, self._run(signature, inputs, request.output_filter or signature.outputs)

    def classify(self, request) -> tuple[str, dict[str, np.ndarray]]:
        """Runs the signature that a ClassificationRequest names on its tf.Examples.

        Returns:
          The signature's name, and `classes` string [examples, K], `scores` float32 [examples, K].

        Raises:
          ServingError: if the signature does not classify, or the graph fails.
        """
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        signature = self.signatures.get(name)
        if signature is None or signature.method_name != CLASSIFY_METHOD:
            able = [
                key
                for key, value in self.signatures.items()
                if value.method_name == CLASSIFY_METHOD
            ]
            raise invalid(f"Classify needs the signature {_either(able)}, got '{name}'")
        examples = request.input.example_list.examples
        if not examples:
            raise invalid("Classify needs an example_list with one tf.Example at least")
        strings = np.array([example.SerializeToString() for example in examples], object)
        return name, self._run(signature, {"inputs": strings}, ["classes", "scores"])

    def _run(self, signature, inputs, output_names):
        feeds = {signature.inputs[key].name: array for key, array in inputs.items()}
        fetches = {key: signature.outputs[key].name for key in output_names}
        try:
            return self._session.run(fetches, feeds)
        except tf.errors.OpError as error:
            raise _from_tensorflow(error) from error
        except ValueError as error:  # A shape that the signature's placeholder does not have.
            raise invalid(str(error)) from error

    def _warm_up(self, path):
        """Replays the recorded requests; one that fails makes the version unfit to be served."""
        if not path.exists():
            return
        try:
            for number, record in enumerate(tf.compat.v1.io.tf_record_iterator(str(path)), 1):
                if number > MAX_WARM_UP_RECORDS:
                    raise invalid(f"it must have {MAX_WARM_UP_RECORDS} records at most")
                log = prediction_log_pb2.PredictionLog.FromString(record)
                kind = log.WhichOneof("log_type")
                if kind == "predict_log":
                    self.predict(log.predict_log.request)
                elif kind == "classify_log":
                    self.classify(log.classify_log.request)
                else:
                    raise invalid(f"record {number} must be a Predict or Classify request")
        except ServingError as error:
            raise ServingError(error.code, f"its warm-up file fails: {error}") from error
        except tf.errors.DataLossError as error:
            raise _from_tensorflow(error) from error
        except DecodeError as error:
            raise invalid(f"its warm-up file holds no PredictionLog: {error}") from error


def _either(names) -> str:
    return " or ".join(f"'{name}'" for name in sorted(names) if not name.startswith("__"))


def _to_array(name, proto, dtype):
    """Returns the array of a TensorProto, which must be of the signature's type."""
    wanted = tf.as_dtype(dtype)
    if proto.dtype != dtype:
        raise invalid(f"'{name}' must be {wanted.name}, got {tf.as_dtype(proto.dtype).name}")
    try:
        return tf.make_ndarray(proto)
    except (TypeError, ValueError) as error:
        raise invalid(f"'{name}' is no whole tensor: {error}") from error
