"""The four signatures of an exported model, as functions of one Keras model."""

from collections.abc import Callable

import keras
import tensorflow as tf

from gaternet_tf.data import Preprocessing

IMAGE_FEATURE = "image/encoded"
NO_FEATURE = "no feature"
"""Stands for a feature that is not there; no picture is so."""
CLASSIFY = "classify"


def write_saved_model(
    network: Callable, preprocessing: Preprocessing, labels: list[str], directory: str
) -> None:
    """Writes a SavedModel with the signatures of the export contract to `directory`.

    `network` maps float32 [batch, height, width, channels], normalised, to a dict of `logits`
    [batch, labels] and `gates` [batch, gates] (absent without gates), as inference computes them.

    Every signature preprocesses in the graph and computes gates as `1[g' > 0]`, without noise.
    Only variables that a signature reads are saved; optimizer and random state stay behind.

    In `image_bytes` an empty string means "no picture": its row comes back with probabilities 0,
    class -1 and an empty label; in `classify` an empty `tf.Example` or an empty feature does, and
    all scores are 0. So a caller can pad a batch, and a server can be probed without a picture.
    Anything else that is not a picture fails the request.
    """
    archive = keras.export.ExportArchive()
    images = tf.TensorSpec((None, *preprocessing.shape), tf.uint8, name="images")
    label_table = tf.constant(labels)

    def predict(pictures, present=None):
        # A server does not check shapes, and the network would answer for any height and width.
        pictures = tf.ensure_shape(pictures, images.shape)
        rows = tf.shape(pictures)[0]
        # Some of TensorFlow's convolutions (oneDNN's) fail for no rows: then one is made up.
        enough = tf.pad(pictures, [[0, tf.maximum(1 - rows, 0)], [0, 0], [0, 0], [0, 0]])
        outputs = {
            name: output[:rows] for name, output in network(preprocessing.normalize(enough)).items()
        }
        probabilities = tf.nn.softmax(tf.cast(outputs["logits"], tf.float32))
        class_ids = tf.argmax(probabilities, axis=-1, output_type=tf.int64)
        names = tf.gather(label_table, class_ids)
        if present is not None:
            probabilities = tf.where(present[:, None], probabilities, 0.0)
            class_ids = tf.where(present, class_ids, -1)
            names = tf.where(present, names, "")
        answer = {"probabilities": probabilities, "class_ids": class_ids, "labels": names}
        return answer, outputs.get("gates")

    def predict_encoded(encoded):
        present = tf.strings.length(encoded) > 0
        return predict(_decode_all(encoded, preprocessing), present)[0]

    def serving_default(images):
        return predict(images)[0]

    def image_bytes(image_bytes):
        return predict_encoded(image_bytes)

    def classify(inputs):
        spec = {IMAGE_FEATURE: tf.io.FixedLenFeature([], tf.string, default_value=NO_FEATURE)}
        encoded = tf.io.parse_example(inputs, spec)[IMAGE_FEATURE]
        encoded = tf.where(tf.strings.length(inputs) > 0, encoded, "")
        found = tf.reduce_all(encoded != NO_FEATURE)
        text = f"every tf.Example must have the feature {IMAGE_FEATURE}, the encoded picture"
        with tf.control_dependencies([tf.debugging.Assert(found, [text])]):
            answer = predict_encoded(tf.identity(encoded))
        scores = answer["probabilities"]
        return {
            "classes": tf.tile(label_table[None, :], [tf.shape(scores)[0], 1]),
            "scores": scores,
        }

    def gates(images):
        answer, gates = predict(images)
        if gates is None:
            gates = tf.zeros([tf.shape(images)[0], 0])
        return {**answer, "gates": tf.cast(gates, tf.uint8)}

    archive.add_endpoint("serving_default", serving_default, input_signature=[images])
    archive.add_endpoint(
        "image_bytes",
        image_bytes,
        input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")],
    )
    archive.add_endpoint(
        CLASSIFY, classify, input_signature=[tf.TensorSpec([None], tf.string, name="inputs")]
    )
    archive.add_endpoint("gates", gates, input_signature=[images])
    archive.write_out(directory, verbose=False)
    _set_classify_method(directory)


def _decode_all(encoded, preprocessing):
    """Pictures of any size and format, string [batch], to uint8 [batch, h, w, c]."""
    blank = tf.zeros(preprocessing.shape, tf.uint8)

    def decode(item):
        return tf.cond(
            tf.strings.length(item) > 0, lambda: preprocessing.decode(item), lambda: blank
        )

    return tf.map_fn(
        decode,
        encoded,
        fn_output_signature=tf.TensorSpec(preprocessing.shape, tf.uint8),
    )


def _set_classify_method(directory):
    """TensorFlow 2 writes every signature as "predict"; the Classify RPC wants its own method."""
    constants = tf.compat.v1.saved_model.signature_constants
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(directory)
    updater.replace_method_name(CLASSIFY, constants.CLASSIFY_METHOD_NAME, tags=["serve"])
    updater.save()
