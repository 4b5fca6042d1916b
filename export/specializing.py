"""Specialises a network: filters that are always off are left out, others lose their gate.

A gate that is the same for every image of a calibration split is settled. On other images it may
still change: then the `exact` network evaluates the full one for that batch, and the `calibrated`
network does not.
"""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf

from export.frozen import FrozenNetwork, Settled
from gaternet_tf.errors import UserError
from gaternet_tf.evaluation import count_gates
from gaternet_tf.layers import GateFilters
from gaternet_tf.macs import layer_macs
from gaternet_tf.models import gate_map

MODES = ("exact", "calibrated")
THROUGH = (
    *(keras.layers.Conv2D, keras.layers.Add, keras.layers.BatchNormalization, GateFilters),
    *(keras.layers.ReLU, keras.layers.Activation, keras.layers.ZeroPadding2D),
)
"""What may stand between a gated convolution and its reader, and the readers."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Gates that were on for every image of a split, and gates that were off: bool [gates] each."""

    always_on: np.ndarray
    always_off: np.ndarray
    images: int

    @property
    def free(self) -> np.ndarray:
        """Bool [gates]: the gates that depended on the image."""
        return ~(self.always_on | self.always_off)


def calibrate(model: keras.Model, batches) -> Calibration:
    """Returns which gates never change over batches of (normalised images, labels)."""
    on_for, images = count_gates(model, batches)
    return Calibration(on_for == images, on_for == 0, images)


def settle(model: keras.Model, calibration: Calibration) -> dict[str, Settled]:
    """Returns what is computed of each gated convolution, by name.

    Before a sum with the shortcut the remaining channels are scattered to their places again; a
    convolution stays whole, with filters of zeros, where that costs more than it saves. One whose
    output another convolution reads keeps at least one filter.
    """
    segments = gate_map(model).segments
    ends = np.cumsum([segment.channels for segment in segments])[:-1]
    settled = {}
    for segment, off, free in zip(
        segments,
        np.split(calibration.always_off, ends),
        np.split(calibration.free, ends),
        strict=True,
    ):
        channels = np.flatnonzero(~off)
        reader = reader_of(model, segment.layer)
        if reader:
            channels = channels if len(channels) else np.array([0])
        elif len(channels):
            *inputs, filters = model.get_layer(segment.layer).kernel.shape
            if (filters - len(channels)) * math.prod(inputs) <= len(channels) * filters:
                channels = np.arange(filters)
        settled[segment.layer] = Settled(channels, ~off[channels], free[channels], reader)
    return settled


def reader_of(model: keras.Model, name: str) -> str | None:
    """Returns the convolution that alone reads a gated one's output; None if a sum does, first.

    Raises:
      UserError: where something else reads it, or several layers do.
    """
    tensor = model.get_layer(name).output
    while True:
        readers = [each for each in model.layers if tensor in keras.tree.flatten(each.input)]
        reader = readers[0]
        is_first = keras.tree.flatten(reader.input)[0] is tensor
        if len(readers) > 1 or not (isinstance(reader, THROUGH) and is_first):
            raise UserError(
                "--optimize=specialize needs gates on convolutions whose output one convolution "
                f"reads, or a sum as its first term, and from '{name}' "
                f"it goes into {', '.join(each.name for each in readers)}; give --optimize=fold"
            )
        if isinstance(reader, keras.layers.Conv2D | keras.layers.Add):
            return reader.name if isinstance(reader, keras.layers.Conv2D) else None
        tensor = reader.output


class SpecializedNetwork:
    """A frozen network without the filters and gates that a calibration has settled.

    Args:
      model: a trained model of `build_gaternet`.
      calibration: of that model.
      mode: "exact" or "calibrated".
    """

    def __init__(self, model: keras.Model, calibration: Calibration, mode: str):
        self.model = model
        self.calibration = calibration
        self.mode = mode
        self.settled = settle(model, calibration)
        self.full = FrozenNetwork(model)
        self.short = FrozenNetwork(model, self.settled)

    @tf.autograph.experimental.do_not_convert
    def __call__(self, images) -> dict:
        """Maps normalised images, float32 [batch, height, width, channels], to logits and gates."""
        gates = self._gates(images)
        if self.mode == "calibrated":
            return {"logits": self._logits(images, gates), "gates": gates}
        settled = np.flatnonzero(~self.calibration.free)
        expected = self.calibration.always_on[settled].astype(np.float32)
        logits = tf.cond(
            tf.reduce_all(tf.gather(gates, settled, axis=1) == expected),
            lambda: self._logits(images, gates),
            lambda: self.full.evaluate(self.model.output["logits"], images, gates),
        )
        return {"logits": logits, "gates": gates}

    def _logits(self, images, gates):
        """Returns the logits of images whose settled gates agree, or are taken to."""
        return self.short.evaluate(self.model.output["logits"], images, gates)

    def _gates(self, images):
        """Returns all gates; in calibrated mode FC2 computes only those that are not settled."""
        if self.mode == "exact":
            return self.full.evaluate(self.model.output["gates"], images)
        free = np.flatnonzero(self.calibration.free)
        batch = tf.shape(images)[0]
        chosen = tf.zeros([batch, 0])
        if len(free):
            head = self.model.get_layer("gater_fc2")
            kernel, bias = self.full.weights[head.name]
            inputs = self.full.evaluate(head.input, images)
            outputs = tf.nn.bias_add(tf.matmul(inputs, kernel[:, free]), bias[free])
            chosen = tf.cast(outputs > 0, tf.float32)
        # Each gate's index in [*chosen, off, on].
        places = np.where(self.calibration.always_on, len(free) + 1, len(free))
        places[free] = np.arange(len(free))
        ends = tf.tile(tf.constant([[0.0, 1.0]]), [batch, 1])
        return tf.gather(tf.concat([chosen, ends], axis=1), places, axis=1)

    def report(self) -> dict:
        """Returns what was settled and what that saves, JSON-ready.

        `macs_after` are the multiply-accumulates of an image whose settled gates agree, with the
        1x1 convolutions that scatter channels.
        """
        calibration, settled = self.calibration, self.settled
        filters = sum(len(part.channels) for part in settled.values())
        removed = [name for name, part in settled.items() if not len(part.channels)]
        return {
            "mode": self.mode,
            "calibration_images": calibration.images,
            "gates": len(calibration.free),
            "gates_settled_on": int(calibration.always_on.sum()),
            "gates_settled_off": int(calibration.always_off.sum()),
            "gates_free": int(calibration.free.sum()),
            "filters_removed": len(calibration.free) - filters,
            "units_removed": len(removed),
            "macs_before": sum(layer_macs(self.model).values()),
            "macs_after": count_macs(
                lambda images: self._logits(images, self._gates(images)), self.model.input.shape
            ),
        }


def count_macs(function, shape) -> int:
    """Returns the multiply-accumulates of one image in the convolutions and products of a graph."""
    traced = tf.function(function, autograph=False)
    graph = traced.get_concrete_function(tf.TensorSpec(shape, tf.float32)).graph
    macs = 0
    for operation in graph.get_operations():
        if operation.type in ("Conv2D", "MatMul"):
            # [batch, height, width, channels] or [batch, channels]
            positions = operation.outputs[0].shape[1:-1]
            macs += math.prod(positions) * math.prod(operation.inputs[1].shape)
    return macs


def agreement(model: keras.Model, network: SpecializedNetwork, batches) -> dict:
    """Compares a specialised network with the full model on images outside the calibration.

    Args:
      model: the full model.
      network: its specialised network.
      batches: of (normalised images, labels), all but the last of one size.

    Returns:
      JSON-ready: `held_out_images`, and of these the numbers of
      `images_with_a_settled_gate_changed` and of `images_with_another_prediction`; the number of
      `batches`, their `batch_size`, and `batches_in_full`: those with a changed settled gate, for
      which the exact network evaluates the full one.
    """
    settled = np.flatnonzero(~network.calibration.free)
    expected = network.calibration.always_on[settled]

    @tf.function(reduce_retracing=True)
    def compare(images):
        full, short = model(images, training=False), network(images)
        changed = (tf.gather(full["gates"], settled, axis=1) > 0) != expected
        classes = [tf.argmax(each["logits"], axis=1) for each in (full, short)]
        return tf.stack([tf.reduce_any(changed, axis=1), classes[0] != classes[1]])

    # bool [2, images] each
    parts = [compare(images).numpy() for images, _ in batches]
    changed, predictions = np.concatenate(parts, axis=1).sum(axis=1).tolist()
    return {
        "held_out_images": sum(part.shape[1] for part in parts),
        "images_with_a_settled_gate_changed": changed,
        "images_with_another_prediction": predictions,
        "batch_size": max(part.shape[1] for part in parts),
        "batches": len(parts),
        "batches_in_full": sum(bool(part[0].any()) for part in parts),
    }
