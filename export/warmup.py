"""Warm-up requests, which TensorFlow Serving runs before a version becomes available."""

import pathlib

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, predict_pb2, prediction_log_pb2

from export.session import Request
from export.signatures import IMAGE_FEATURE
from gaternet_tf.data import Preprocessing
from gaternet_tf.errors import UserError
from gaternet_tf.runs import RunDirectory

FILE = pathlib.PurePath("assets.extra") / "tf_serving_warmup_requests"
"""Where a version holds its warm-up requests."""
BATCH_SIZES = (1, 8, 32)
FORMATS = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
MAX_PICTURES = 250


def warmup_pictures(run: RunDirectory, given: str | None = None) -> list[bytes]:
    """Returns encoded pictures to warm up with: those given, or the run's own.

    A converted run has no pictures; without given ones it is warmed up with a grey one.

    Args:
      run: a finished run, which holds a few test pictures.
      given: a directory of pictures, or one picture.

    Raises:
      UserError: where there is no picture, or one that cannot be decoded.
    """
    place = run.pictures if given is None else pathlib.Path(given)
    paths = sorted(place.rglob("*")) if place.is_dir() else [place]
    paths = [path for path in paths if path.suffix.lower() in FORMATS and path.is_file()]
    if not paths and given is None and "converted_from" in run.result:
        print(
            "warmed up with a grey picture: a converted run has none; --warmup_images gives others"
        )
        return [
            tf.io.encode_png(tf.fill(run.preprocessing.shape, tf.constant(128, tf.uint8))).numpy()
        ]
    if not paths:
        raise UserError(
            f"--warmup_images must be a picture or a directory with pictures ({', '.join(FORMATS)},"
            f" default: those of the run), and there are none in '{place}'"
        )
    pictures = []
    for path in paths[:MAX_PICTURES]:
        pictures.append(path.read_bytes())
        try:
            run.preprocessing.decode(tf.constant(pictures[-1]))
        except tf.errors.OpError as error:
            raise UserError(
                f"'{path}' cannot be decoded ({str(error).splitlines()[0]}); give other pictures "
                "with --warmup_images"
            ) from error
    return pictures


def write_warmup(
    version_dir: pathlib.Path, pictures: list[bytes], preprocessing: Preprocessing, model_name: str
) -> None:
    """Writes records for every signature at several batch sizes.

    Args:
      version_dir: the version's directory.
      pictures: encoded pictures, one at least; repeated to fill a batch.
      preprocessing: that of the exported model.
      model_name: goes into the records; servers ignore it.
    """
    (version_dir / FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(version_dir / FILE)) as writer:
        for size in BATCH_SIZES:
            batch = [pictures[i % len(pictures)] for i in range(size)]
            images = np.stack([preprocessing.decode(tf.constant(item)).numpy() for item in batch])
            for log in (
                _predict("serving_default", {"images": images}, model_name),
                _predict("image_bytes", {"image_bytes": batch}, model_name),
                _classify(batch, model_name),
                _predict("gates", {"images": images}, model_name),
                _predict("gates_bytes", {"image_bytes": batch}, model_name),
            ):
                writer.write(log.SerializeToString())


def read_warmup(version_dir: pathlib.Path) -> list[Request]:
    """Reads the records that `write_warmup` wrote, as requests."""
    requests = []
    for record in tf.data.TFRecordDataset(str(version_dir / FILE)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        if log.HasField("classify_log"):
            request = log.classify_log.request
            examples = request.input.example_list.examples
            texts = [example.SerializeToString() for example in examples]
            inputs = {"inputs": np.array(texts, object)}
        else:
            request = log.predict_log.request
            inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        requests.append(Request(version_dir, request.model_spec.signature_name, inputs))
    return requests


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
    request.model_spec.signature_name = "classify"
    for picture in pictures:
        example = request.input.example_list.examples.add()
        example.features.feature[IMAGE_FEATURE].bytes_list.value.append(picture)
    return prediction_log_pb2.PredictionLog(
        classify_log=prediction_log_pb2.ClassifyLog(request=request)
    )
