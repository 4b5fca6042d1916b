"""The warning about gates that do not depend on the image, for a model of one's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from gaternet_tf.callbacks import WarnOfConstantGates

IMAGES = np.array([[1.0], [2.0], [3.0]], np.float32)


def warning(capsys, thresholds, images=IMAGES, name="gates"):
    """What is printed after an epoch where gate `i` is on for images above `thresholds[i]`."""
    inputs = keras.Input((1,))
    gates = keras.layers.Identity(name=name)(inputs - np.array(thresholds, np.float32))
    logits = keras.layers.Dense(2, name="logits")(inputs)
    outputs = {"logits": logits, name: gates}
    printed = []
    for form in (outputs, list(outputs.values())):
        callback = WarnOfConstantGates(images)
        callback.set_model(keras.Model(inputs, form))
        callback.on_train_begin()
        callback.on_epoch_end(0)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    return printed[0]


def test_gates_that_are_the_same_for_every_image_are_warned_about(capsys):
    assert warning(capsys, [0, 0.5]) == (
        "\nwarning: all gates are on for every image (2 of 2 always on, 0 always off on 3 images); "
        "raise lambda, the weight of the sparsity loss, or give the gater a bottleneck with batch "
        "normalisation\n"
    )
    assert "all gates are off for every image (0 of 2 always on, 2" in warning(capsys, [5, 3])
    assert "the same for every image (1 of 2 always on, 1 always off" in warning(capsys, [5, 0])
    assert warning(capsys, [5, 2]) == ""
    # The first batch has no input-dependent gate.
    batches = tf.data.Dataset.from_tensor_slices((IMAGES, np.arange(3))).batch(2)
    assert warning(capsys, [5, 2.5], batches) == ""


def test_a_model_without_a_gates_output_is_refused(capsys):
    with pytest.raises(ValueError, match=r"output named 'gates'.*got outputs named .*'filters'"):
        warning(capsys, [0], name="filters")
