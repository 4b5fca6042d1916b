"""Warm-up requests: what TensorFlow Serving runs before it says that a version is available."""

import pathlib

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, predict_pb2, prediction_log_pb2

from export.signatures import CLASSIFY, IMAGE_FEATURE
from gaternet_tf.data import Preprocessing

FILE_NAME = "tf_serving_warmup_requests"
BATCH_SIZES = (1, 8, 32)


def write_warmup(
    path: pathlib.Path, pictures: list[bytes], preprocessing: Preprocessing, model_name: str
) -> int:
    """Writes records for every signature at several batch sizes, and returns how many.

    Args:
      path: the file to write.
      pictures: encoded pictures, one at least; repeated to fill a batch.
      preprocessing: that of the exported model.
      model_name: goes into the records; servers ignore it.
    """
    records = 0
    with tf.io.TFRecordWriter(str(path)) as writer:
        for size in BATCH_SIZES:
            batch = [pictures[i % len(pictures)] for i in range(size)]
            images = np.stack([preprocessing.decode(tf.constant(item)).numpy() for item in batch])
            for log in (
                _predict("serving_default", {"images": images}, model_name),
                _predict("image_bytes", {"image_bytes": batch}, model_name),
                _classify(batch, model_name),
                _predict("gates", {"images": images}, model_name),
            ):
                writer.write(log.SerializeToString())
                records += 1
    return records


def _predict(signature, inputs, model_name):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model_name
    request.model_spec.signature_name = signature
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return prediction_log_pb2.PredictionLog(
        predict_log=prediction_log_pb2.PredictLog(request=request)
    )


def _classify(pictures, model_name):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = model_name
    request.model_spec.signature_name = CLASSIFY
    for picture in pictures:
        example = request.input.example_list.examples.add()
        example.features.feature[IMAGE_FEATURE].bytes_list.value.append(picture)
    return prediction_log_pb2.PredictionLog(
        classify_log=prediction_log_pb2.ClassifyLog(request=request)
    )
