"""Specialises a network: filters that are always off are left out, others lose their gate.

A gate that is the same for every image of a calibration split is settled. On other images it may
still change: then the `exact` network evaluates the full one for that batch, and the `calibrated`
network does not.
"""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from export.program import Filters, Program
from export.settling import settle
from gaternet_tf.evaluation import count_gates
from gaternet_tf.models.gater import is_gater

CALIBRATED, EXACT = "calibrated", "exact"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """For which share of a split's images each gate is on, float [gates]."""

    rates: np.ndarray
    images: int

    @property
    def always_on(self) -> np.ndarray:
        """Bool [gates]: the gates that were on for every image."""
        return self.rates == 1

    @property
    def always_off(self) -> np.ndarray:
        """Bool [gates]: the gates that were off for every image."""
        return self.rates == 0

    @property
    def free(self) -> np.ndarray:
        """Bool [gates]: the gates that depended on the image."""
        return ~(self.always_on | self.always_off)


def calibrate(model: keras.Model, batches) -> Calibration:
    """Returns how often each gate is on over batches of (normalised images, labels)."""
    on_for, images = count_gates(model, batches)
    return Calibration(on_for / images, images)


class SpecializedNetwork:
    """A program without the filters and gates that a calibration has settled.

    Args:
      full: the folded program of a network with gates.
      calibration: of that network.
      mode: "exact" or "calibrated".

    Attributes:
      short: the program that is left; of the exact network without the gater.
    """

    def __init__(self, full: Program, calibration: Calibration, mode: str):
        self.full = full
        self.calibration = calibration
        self.mode = mode
        settled = (calibration.always_on, calibration.always_off)
        self.short = settle(full, *settled, gates_given=mode == EXACT)

    @tf.autograph.experimental.do_not_convert
    def __call__(self, images) -> dict:
        """Maps normalised images, float32 [batch, height, width, channels], to logits and gates."""
        if self.mode == CALIBRATED:
            return self.short(images)
        gates = self.full.part("gates")(images)["gates"]
        settled = np.flatnonzero(~self.calibration.free)
        expected = tf.constant(self.calibration.always_on[settled])
        given = {self.full.input: images, self.full.outputs["gates"]: gates}
        outputs = tf.cond(
            tf.reduce_all((tf.gather(gates, settled, axis=1) > 0) == expected),
            lambda: self.short.run(given),
            lambda: self.full.part(*self.short.outputs).run(given),
        )
        return {**outputs, "gates": gates}

    def report(self) -> dict:
        """Returns what was settled and what that saves, JSON-ready.

        `macs` are the multiply-accumulates of an image in all convolutions and dense layers, before
        and after for one whose settled gates agree.
        """
        calibration = self.calibration
        (filters, layers), (filters_left, layers_left) = map(_size, (self.full, self.short))
        shape = (1, *self.full.shapes[self.full.input])

        def agreed(images):
            given = {self.full.input: images}
            if self.mode == EXACT:
                gates = self.full.part("gates")(images)["gates"]
                given[self.full.outputs["gates"]] = gates
            return self.short.run(given)

        return {
            "mode": self.mode,
            "calibration_images": calibration.images,
            "gates": len(calibration.rates),
            "gates_settled_on": int(calibration.always_on.sum()),
            "gates_settled_off": int(calibration.always_off.sum()),
            "gates_free": int(calibration.free.sum()),
            "filters_removed": filters - filters_left,
            "layers_removed": layers - layers_left,
            "macs_before": count_macs(self.full, shape),
            "macs_after": count_macs(agreed, shape),
        }


def _size(program: Program) -> tuple[int, int]:
    """Returns how many filters, and how many layers of them, a program's backbone has."""
    layers = [
        step.kernel.shape[-1]
        for step in program.steps
        if isinstance(step, Filters) and step.kind != "depthwise" and not is_gater(step.name)
    ]
    return sum(layers), len(layers)


def count_macs(function: Callable, shape: tuple) -> int:
    """Returns the multiply-accumulates of one image in the convolutions and products of a graph."""
    traced = tf.function(lambda images: function(images), autograph=False)
    graph = traced.get_concrete_function(tf.TensorSpec(shape, tf.float32)).graph
    macs = 0
    for operation in graph.get_operations():
        if operation.type in ("Conv2D", "DepthwiseConv2dNative", "MatMul"):
            # [batch, height, width, channels] or [batch, channels]
            positions = operation.outputs[0].shape[1:-1]
            macs += math.prod(positions) * math.prod(operation.inputs[1].shape)
    return macs


def agreement(model: keras.Model, network: Callable, calibration: Calibration, batches) -> dict:
    """Compares a specialised network with the full model on images outside the calibration.

    Args:
      model: the full model.
      network: its specialised network.
      calibration: that of the network.
      batches: of (normalised images, labels), all but the last of one size.

    Returns:
      JSON-ready: `held_out_images`, and of these the numbers of
      `images_with_a_settled_gate_changed` and of `images_with_another_prediction`; the number of
      `batches`, their `batch_size`, and `batches_in_full`: those with a changed settled gate, for
      which the exact network evaluates the full one.
    """
    settled = np.flatnonzero(~calibration.free)
    expected = calibration.always_on[settled]

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
