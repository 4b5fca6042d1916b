"""The five signatures of an exported model, as functions of one network."""

from collections.abc import Callable

import keras
import tensorflow as tf

from gaternet_tf.data import Preprocessing
from gaternet_tf.data.preprocessing import pixels_in_header

IMAGE_FEATURE = "image/encoded"
NO_FEATURE = "no feature"
"""Stands for a missing feature; no picture is encoded like this."""
MAX_PIXELS = 25_000_000
"""Limit of an encoded picture, whose decoding takes up to 20 bytes of memory for each."""


def write_saved_model(
    network: Callable, preprocessing: Preprocessing, labels: list[str], directory: str
) -> None:
    """Writes a SavedModel with the signatures of the export contract to `directory`.

    `network` maps float32 [batch, height, width, channels], normalised, to a dict of `logits`
    [batch, labels] and `gates` [batch, gates] (absent without gates), as inference computes them.

    Every signature preprocesses in the graph and computes gates as `1[g' > 0]`, without noise.
    Only variables that a signature reads are saved; optimizer and random state stay behind.

    In `image_bytes` and `gates_bytes` an empty string means "no picture": its row comes back with
    probabilities 0, class -1, an empty label and gates that are off. In `classify` an empty
    `tf.Example` or an empty feature means the same, and all its scores are 0. So a caller can pad a
    batch, and a server can be probed without a picture. Anything else that is not a picture of
    1 to `MAX_PIXELS` pixels fails the request.
    """
    archive = keras.export.ExportArchive()
    images = tf.TensorSpec((None, *preprocessing.shape), tf.uint8, name="images")
    # One function for all signatures, so that its constants are stored once.
    network = tf.function(network, input_signature=[tf.TensorSpec(images.shape, tf.float32)])
    label_table = tf.constant(labels)

    def predict(pictures, present=None):
        # A server does not check shapes, and the network would answer for any height and width.
        pictures = tf.ensure_shape(pictures, images.shape)
        rows = tf.shape(pictures)[0]
        # Some of TensorFlow's convolutions (oneDNN's) fail for no rows, so there is always one.
        padded = tf.pad(pictures, [[0, tf.maximum(1 - rows, 0)], [0, 0], [0, 0], [0, 0]])
        outputs = {
            name: output[:rows] for name, output in network(preprocessing.normalize(padded)).items()
        }
        probabilities = tf.nn.softmax(tf.cast(outputs["logits"], tf.float32))
        class_ids = tf.argmax(probabilities, axis=-1, output_type=tf.int64)
        names = tf.gather(label_table, class_ids)
        gates = tf.cast(outputs.get("gates", tf.zeros([rows, 0])), tf.uint8)
        if present is not None:
            probabilities = tf.where(present[:, None], probabilities, 0.0)
            class_ids = tf.where(present, class_ids, -1)
            names = tf.where(present, names, "")
            gates = tf.where(present[:, None], gates, 0)
        answer = {"probabilities": probabilities, "class_ids": class_ids, "labels": names}
        return answer, {**answer, "gates": gates}

    def decode(encoded):
        # Few bytes may hold many pixels: a PNG of 140 kB took 3 GB.
        pixels = pixels_in_header(encoded)
        text = (
            f"a picture must be a JPEG, PNG, BMP or GIF of 1 to {MAX_PIXELS:,} pixels; scale it "
            "down, or convert it. Its pixels are"
        )
        fits = (pixels > 0) & (pixels <= MAX_PIXELS)
        with tf.control_dependencies([tf.debugging.Assert(fits, [text, pixels])]):
            return preprocessing.decode(tf.identity(encoded))

    def predict_encoded(encoded):
        present = tf.strings.length(encoded) > 0
        blank = tf.zeros(preprocessing.shape, tf.uint8)
        pictures = tf.map_fn(
            lambda each: tf.cond(each[1], lambda: decode(each[0]), lambda: blank),
            (encoded, present),
            fn_output_signature=tf.TensorSpec(preprocessing.shape, tf.uint8),
        )
        return predict(pictures, present)

    def classify(inputs):
        spec = {IMAGE_FEATURE: tf.io.FixedLenFeature([], tf.string, default_value=NO_FEATURE)}
        encoded = tf.io.parse_example(inputs, spec)[IMAGE_FEATURE]
        encoded = tf.where(tf.strings.length(inputs) > 0, encoded, "")
        complete = tf.reduce_all(encoded != NO_FEATURE)
        text = f"every tf.Example must have the feature {IMAGE_FEATURE}, the encoded picture"
        with tf.control_dependencies([tf.debugging.Assert(complete, [text])]):
            answer, _ = predict_encoded(tf.identity(encoded))
        scores = answer["probabilities"]
        return {
            "classes": tf.tile(label_table[None, :], [tf.shape(scores)[0], 1]),
            "scores": scores,
        }

    encoded = tf.TensorSpec([None], tf.string, name="image_bytes")
    examples = tf.TensorSpec([None], tf.string, name="inputs")
    archive.add_endpoint("serving_default", lambda images: predict(images)[0], [images])
    archive.add_endpoint(
        "image_bytes", lambda image_bytes: predict_encoded(image_bytes)[0], [encoded]
    )
    archive.add_endpoint("classify", classify, [examples])
    archive.add_endpoint("gates", lambda images: predict(images)[1], [images])
    archive.add_endpoint(
        "gates_bytes", lambda image_bytes: predict_encoded(image_bytes)[1], [encoded]
    )
    archive.write_out(directory, verbose=False)
    # The Classify RPC requires its own method name, and TensorFlow 2 writes only "predict".
    constants = tf.compat.v1.saved_model.signature_constants
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(directory)
    updater.replace_method_name("classify", constants.CLASSIFY_METHOD_NAME, tags=["serve"])
    updater.save()
