"""Replays a version's warm-up file, as TensorFlow Serving does before it serves the version."""

import pathlib
from collections.abc import Callable

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from serving.errors import ServingError, invalid

PLACE = pathlib.PurePath("assets.extra") / "tf_serving_warmup_requests"
MAX_RECORDS = 1000
KINDS = ("classify_log", "regress_log", "predict_log", "multi_inference_log")


def replay(
    directory: pathlib.Path, answer: Callable[[str, object], object], rounds: int = 1
) -> int:
    """Sends every recorded request to `answer`, and returns how many records there were.

    Args:
      directory: the version's.
      answer: takes one of `KINDS` and the request of that kind.
      rounds: how often each is sent.

    Raises:
      ServingError: when a record cannot be read, is of another kind, or fails; then the version
        must not be served.
    """
    path = directory / PLACE
    if not path.is_file():
        return 0
    count = 0
    for log in _records(path):
        kind = log.WhichOneof("log_type")
        if kind is not None:
            if kind not in KINDS:
                number = log.DESCRIPTOR.fields_by_name[kind].number
                raise ServingError(
                    grpc.StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}"
                )
            for _ in range(rounds):
                answer(kind, getattr(log, kind).request)
        count += 1
        if count > MAX_RECORDS:
            raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
    return count


def _records(path):
    try:
        # Not tf.data: that would hold the file in a graph and a device.
        for record in tf.compat.v1.io.tf_record_iterator(str(path)):
            yield prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError as error:
        raise invalid(f"Failed to parse warmup record at {path}") from error
    except tf.errors.DataLossError as error:
        raise ServingError(
            grpc.StatusCode.DATA_LOSS,
            f"{error.message}. Please verify your warmup data is in TFRecord format.",
        ) from error
