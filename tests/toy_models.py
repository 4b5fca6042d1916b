"""Small SavedModels made in a second, for tests of the server that need no trained network.

`serving_default` answers x * 2 + version, so that an answer tells which version gave it. `wait`
answers when a file exists, so that a test decides how long a request takes.
"""

import functools
import pathlib
import tempfile

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

CLASSIFY = "tensorflow/serving/classify"


class Toy(tf.Module):
    """The signatures; all but `scalar` keep the rows of their input."""

    def __init__(self, version: int):
        super().__init__()
        self.version = version

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name="x")])
    def double(self, x):
        return {"y": x * 2 + tf.cast(self.version, tf.float32)}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.float32, name="x"),
            tf.TensorSpec([None], tf.string, name="tag"),
        ]
    )
    def tagged(self, x, tag):
        return {"tag": tag, "tag_bytes": tag, "total": tf.reduce_sum(x, -1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="path")])
    def wait(self, path):
        def nothing(count):
            return tf.strings.substr(tf.as_string(count), 0, 0)

        # All hangs on the count, or the graph's optimiser would take the loop away.
        def absent(count):
            return tf.equal(tf.size(tf.io.matching_files(path + nothing(count))), 0)

        (count,) = tf.while_loop(absent, lambda count: (count + 1,), (tf.constant(0),))
        return {"path": path + nothing(count)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def scalar(self, x):
        return {"s": tf.reduce_sum(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def half(self, x):
        return {"h": tf.cast(x, tf.float16)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def image_bytes(self, image_bytes):
        def pixels(picture):
            return tf.size(tf.io.decode_image(picture, channels=3, expand_animations=False))

        return {"size": tf.map_fn(pixels, image_bytes, fn_output_signature=tf.int32)}

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.uint8, name="gates")])
    def gates(self, gates):
        return {"gates": gates}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="n")])
    def whole(self, n):
        return {"n": n, "even": tf.equal(n % 2, 0)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs):
        spec = {"v": tf.io.FixedLenFeature([2], tf.float32)}
        scores = tf.io.parse_example(inputs, spec)["v"]
        classes = tf.tile([["left", "right"]], [tf.shape(inputs)[0], 1])
        return {"classes": classes, "scores": scores}


@functools.cache
def _files(version: int) -> dict[str, bytes]:
    """What a version consists of, by path; made once, as that is the slow part."""
    toy = Toy(version)
    names = ("tagged", "wait", "scalar", "half", "image_bytes", "gates", "whole", "classify")
    signatures = {"serving_default": toy.double} | {name: getattr(toy, name) for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        tf.saved_model.save(toy, scratch, signatures=signatures)
        root = pathlib.Path(scratch)
        path = root / "saved_model.pb"
        saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
        saved.meta_graphs[0].signature_def["classify"].method_name = CLASSIFY
        path.write_bytes(saved.SerializeToString())
        return {
            str(file.relative_to(root)): file.read_bytes()
            for file in root.rglob("*")
            if file.is_file()
        }


def write_toy(directory: pathlib.Path, version: int = 1, warm_up=(), broken=False) -> pathlib.Path:
    """Writes a version beside and renames it into place; returns its directory.

    Args:
      directory: the model's, made if need be.
      version: its number.
      warm_up: PredictionLogs, for the version's warm-up file.
      broken: whether its graph is no graph, so that it cannot be loaded.
    """
    scratch = directory / f"tmp-{version}"
    for name, content in _files(version).items():
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).write_bytes(content)
    (scratch / "variables").mkdir(exist_ok=True)
    if broken:
        (scratch / "saved_model.pb").write_bytes(b"broken")
    if warm_up:
        write_warm_up(scratch, warm_up)
    return scratch.rename(directory / str(version))


def write_warm_up(version_dir: pathlib.Path, logs) -> None:
    """Writes PredictionLogs as the warm-up file of a version."""
    (version_dir / "assets.extra").mkdir(exist_ok=True)
    path = version_dir / "assets.extra" / "tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())


def predict_request(inputs, output_filter=(), model="toy", version=None, label="", signature=""):
    """A PredictRequest of arrays or TensorProtos."""
    request = predict_pb2.PredictRequest(output_filter=output_filter)
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    if label:
        request.model_spec.version_label = label
    for name, value in inputs.items():
        proto = value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value)
        request.inputs[name].CopyFrom(proto)
    return request


def warm_up_log(inputs, signature=""):
    """A PredictionLog of a PredictRequest."""
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(predict_request(inputs, signature=signature))
    return log
