"""Warm-up requests, which TensorFlow Serving runs before a version becomes available."""

import pathlib

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from export.session import Request
from export.signatures import IMAGE_FEATURE
from gaternet_tf.data.folder import EXTENSIONS, read_picture, why_unreadable
from gaternet_tf.errors import UserError
from gaternet_tf.runs import RunDirectory

FILE = pathlib.PurePath("assets.extra") / "tf_serving_warmup_requests"
"""Where a version holds its warm-up requests."""
BATCH_SIZES = (1, 8, 32)
MAX_PICTURES = 250


def warmup_pictures(run: RunDirectory, given: str | None = None) -> tuple[list[bytes], np.ndarray]:
    """Returns pictures to warm up with, those given or the run's own, encoded and decoded.

    A converted run has no pictures; without given ones it is warmed up with a grey one.

    Args:
      run: a finished run, which holds a few test pictures.
      given: a directory of pictures, or one picture.

    Raises:
      UserError: where there is no picture, or one that cannot be decoded.
    """
    place = run.pictures if given is None else pathlib.Path(given)
    paths = sorted(place.rglob("*")) if place.is_dir() else [place]
    paths = [path for path in paths if path.suffix.lower() in EXTENSIONS and path.is_file()]
    paths = paths[:MAX_PICTURES]
    for path in paths:
        if reason := why_unreadable(path):
            raise UserError(
                f"'{path}' cannot be decoded ({reason}); give other pictures with --warmup_images"
            )
    pictures = [read_picture(path) for path in paths]
    if not paths and given is None and "converted_from" in run.result:
        print(
            "warmed up with a grey picture: a converted run has none; --warmup_images gives others"
        )
        grey = tf.fill(run.preprocessing.shape, tf.constant(128, tf.uint8))
        pictures = [tf.io.encode_png(grey).numpy()]
    elif not paths:
        raise UserError(
            "--warmup_images must be a picture or a directory with pictures "
            f"({', '.join(EXTENSIONS)}, default: those of the run), and there are none in '{place}'"
        )
    images = [run.preprocessing.decode(tf.constant(picture)).numpy() for picture in pictures]
    return pictures, np.stack(images)


def write_warmup(
    version_dir: pathlib.Path, pictures: list[bytes], images: np.ndarray, model_name: str
) -> None:
    """Writes records for every signature at several batch sizes.

    Args:
      version_dir: the version's directory.
      pictures: encoded pictures, one at least; repeated to fill a batch.
      images: the same, decoded.
      model_name: goes into the records; servers ignore it.
    """
    (version_dir / FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(version_dir / FILE)) as writer:
        for size in BATCH_SIZES:
            pixels = np.resize(images, (size, *images.shape[1:]))
            encoded = [pictures[i % len(pictures)] for i in range(size)]
            for signature, key, batch in (
                ("serving_default", "images", pixels),
                ("image_bytes", "image_bytes", encoded),
                ("gates", "images", pixels),
                ("gates_bytes", "image_bytes", encoded),
            ):
                log = prediction_log_pb2.PredictionLog()
                request = log.predict_log.request
                request.model_spec.name = model_name
                request.model_spec.signature_name = signature
                request.inputs[key].CopyFrom(tf.make_tensor_proto(batch))
                writer.write(log.SerializeToString())
            log = prediction_log_pb2.PredictionLog()
            request = log.classify_log.request
            request.model_spec.name = model_name
            request.model_spec.signature_name = "classify"
            for picture in encoded:
                example = request.input.example_list.examples.add()
                example.features.feature[IMAGE_FEATURE].bytes_list.value.append(picture)
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
