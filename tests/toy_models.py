"""Small SavedModels made in a second, for tests of the server that need no trained network."""

import functools
import pathlib
import tempfile

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2


class Toy(tf.Module):
    """`serving_default` answers x + version, so that an answer says which version gave it."""

    def __init__(self, version: int):
        super().__init__()
        self.version = tf.Variable(float(version))

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
    def add(self, x):
        return {"y": x + self.version, "rows": tf.shape(x)[:1]}

    @tf.function(input_signature=[tf.TensorSpec([], tf.string, name="path")])
    def wait(self, path):
        """Writes the file PATH.begun, and answers when the file PATH exists."""

        def absent(count):
            # Depends on the count, or the graph's optimizer would take it out of the loop.
            pattern = path + tf.strings.substr(tf.as_string(count), 0, 0)
            return tf.equal(tf.size(tf.io.matching_files(pattern)), 0)

        with tf.control_dependencies([tf.io.write_file(path + ".begun", "")]):
            begun = tf.constant(0)
        (count,) = tf.while_loop(absent, lambda count: (count + 1,), (begun,))
        return {"rounds": count}


@functools.cache
def _files(version: int) -> dict[str, bytes]:
    """Returns the files of a version by relative path; made once, since that is the slow part."""
    toy = Toy(version)
    with tempfile.TemporaryDirectory() as scratch:
        signatures = {"serving_default": toy.add, "wait": toy.wait}
        tf.saved_model.save(toy, scratch, signatures=signatures)
        root = pathlib.Path(scratch)
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }


def write_toy(base_path: pathlib.Path, version: int = 1) -> pathlib.Path:
    """Publishes a version as an export does, written beside and renamed; returns its directory."""
    scratch = base_path / f"tmp-{version}"
    for name, content in _files(version).items():
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).write_bytes(content)
    return scratch.rename(base_path / str(version))


def write_warm_up(version_dir: pathlib.Path, requests) -> None:
    """Writes PredictRequests as the warm-up file of a version."""
    (version_dir / "assets.extra").mkdir()
    path = version_dir / "assets.extra" / "tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(request)
            writer.write(log.SerializeToString())


def predict_request(inputs, model="toy", signature="", version=None, label=None):
    """Returns a PredictRequest of arrays."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request
