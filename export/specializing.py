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
from gaternet_tf.evaluation import count_gates
from gaternet_tf.layers import GateSplit, SemHash
from gaternet_tf.macs import layer_macs
from gaternet_tf.models import gate_map

MODES = ("exact", "calibrated")


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


def settle(model: keras.Model, calibration: Calibration) -> Settled:
    """Returns the filters of each gated layer that are computed, and which keep their gate.

    Before a sum with the shortcut the remaining channels are scattered to their places again; a
    layer stays whole, with filters of zeros, where that costs more than it saves. A convolution
    whose output another convolution reads keeps at least one filter.
    """
    kept, on, free = {}, {}, {}
    start = 0
    segments = gate_map(model).segments
    last = {(segment.stage, segment.unit): segment.convolution for segment in segments}
    for segment in segments:
        part = slice(start, start + segment.channels)
        start += segment.channels
        channels = np.flatnonzero(~calibration.always_off[part])
        is_free = calibration.free[part]
        ever_on = ~calibration.always_off[part]
        if segment.convolution != last[segment.stage, segment.unit]:
            channels = channels if len(channels) else np.array([0])
        elif len(channels):
            *inputs, filters = model.get_layer(segment.name).convolution.kernel.shape
            if (filters - len(channels)) * math.prod(inputs) <= len(channels) * filters:
                channels = np.arange(filters)
        kept[segment.name] = channels
        on[segment.name] = ever_on[channels].astype(np.float32)
        free[segment.name] = is_free[channels]
    return Settled(kept, on, free)


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
        self.full = FrozenNetwork(model)
        self.settled = settle(model, calibration)
        self.short = FrozenNetwork(model, self.settled)
        (split,) = (layer for layer in model.layers if isinstance(layer, GateSplit))
        (semhash,) = (layer for layer in model.layers if isinstance(layer, SemHash))
        self.gates_symbol = split.input
        self.head = next(layer for layer in model.layers if layer.output is semhash.input)

    @tf.autograph.experimental.do_not_convert
    def __call__(self, images) -> dict:
        """Maps normalised images, float32 [batch, height, width, channels], to logits and gates."""
        if self.mode == "exact":
            return self._exact(images)
        gates = self._calibrated_gates(images)
        return {"logits": self._logits(self.short, images, gates), "gates": gates}

    def _logits(self, network, images, gates):
        wanted = {"logits": self.model.output["logits"]}
        given = [(self.model.input, images), (self.gates_symbol, gates)]
        return network.evaluate(wanted, given)["logits"]

    def _exact(self, images):
        wanted = {"gates": self.gates_symbol}
        gates = self.full.evaluate(wanted, [(self.model.input, images)])["gates"]
        places = np.flatnonzero(~self.calibration.free)
        expected = self.calibration.always_on[places].astype(np.float32)
        agree = tf.reduce_all(tf.gather(gates, places, axis=1) == expected)
        logits = tf.cond(
            agree,
            lambda: self._logits(self.short, images, gates),
            lambda: self._logits(self.full, images, gates),
        )
        return {"logits": logits, "gates": gates}

    def _calibrated_gates(self, images):
        """Returns all gates, of which FC2 computes only those that are not settled."""
        free = np.flatnonzero(self.calibration.free)
        batch = tf.shape(images)[0]
        if not len(free):
            constants = self.calibration.always_on[None, :].astype(np.float32)
            return tf.tile(constants, [batch, 1])
        kernel, bias = self.full.weights[self.head.name]
        wanted = {"inputs": self.head.input}
        inputs = self.full.evaluate(wanted, [(self.model.input, images)])["inputs"]
        chosen = tf.nn.bias_add(tf.matmul(inputs, kernel[:, free]), bias[free])
        chosen = tf.cast(chosen > 0, tf.float32)
        # Each gate's index in [*chosen, off, on].
        places = np.where(self.calibration.always_on, len(free) + 1, len(free))
        places[free] = np.arange(len(free))
        ends = tf.tile(tf.constant([[0.0, 1.0]]), [batch, 1])
        return tf.gather(tf.concat([chosen, ends], axis=1), places, axis=1)

    def macs(self) -> int:
        """Returns the multiply-accumulates of an image whose settled gates agree.

        Counted as in `gaternet_tf.macs`, with the 1x1 convolutions that scatter channels.
        """
        by_layer = dict(layer_macs(self.model))
        calibration, kept = self.calibration, self.settled.kept
        if self.mode == "calibrated":
            free = int(calibration.free.sum())
            by_layer[self.head.name] = by_layer[self.head.name] * free // len(calibration.free)
            if not free:
                by_layer = {k: v for k, v in by_layer.items() if not k.startswith("gater_")}
        for name, channels in kept.items():
            layer = self.model.get_layer(name)
            before = by_layer[name]
            by_layer[name] = before * len(channels) // layer.filters
            unit, _, number = name.rpartition("_conv")
            followed = f"{unit}_conv{int(number) + 1}"
            if followed in by_layer:
                by_layer[followed] = by_layer[followed] * len(channels) // layer.filters
            elif not len(channels):
                for other in [each for each in by_layer if each.startswith(f"{unit}_conv")]:
                    by_layer[other] = 0
            elif len(channels) < layer.filters:
                _, height, width, _ = layer.output.shape
                by_layer[f"{name}_spread"] = height * width * len(channels) * layer.filters
        return sum(by_layer.values())

    def report(self) -> dict:
        """Returns what was settled and what that saves, JSON-ready."""
        calibration, kept = self.calibration, self.settled.kept
        gates = len(calibration.free)
        segments = gate_map(self.model).segments
        removed_units = sum(
            1
            for segment in segments
            if f"{segment.name[:-1]}{segment.convolution + 1}" not in kept
            and not len(kept[segment.name])
        )
        return {
            "mode": self.mode,
            "calibration_images": calibration.images,
            "gates": gates,
            "gates_settled_on": int(calibration.always_on.sum()),
            "gates_settled_off": int(calibration.always_off.sum()),
            "gates_free": int(calibration.free.sum()),
            "filters_removed": sum(s.channels - len(kept[s.name]) for s in segments),
            "units_removed": removed_units,
            "macs_before": sum(layer_macs(self.model).values()),
            "macs_after": self.macs(),
        }


def agreement(model: keras.Model, network: SpecializedNetwork, batches) -> dict:
    """Compares a specialised network with the full model on images outside the calibration.

    Args:
      model: the full model.
      network: its specialised network.
      batches: of (normalised images, labels), all but the last of one size.

    Returns:
      JSON-ready: `held_out_images`, and of these the numbers of
      `images_with_a_settled_gate_changed`, of `images_with_another_gate` than the full model and
      of `images_with_another_prediction`; the number of `batches`, their `batch_size`, and
      `batches_in_full`: those with a changed settled gate, for which the exact network evaluates
      the full one.
    """
    calibration = network.calibration
    settled = np.flatnonzero(~calibration.free)
    expected = calibration.always_on[settled]

    @tf.function(reduce_retracing=True)
    def compare(images):
        full, short = model(images, training=False), network(images)
        same_gates = tf.reduce_all((full["gates"] > 0) == (short["gates"] > 0), axis=1)
        classes = [tf.argmax(each["logits"], axis=1) for each in (full, short)]
        changed = (tf.gather(full["gates"], settled, axis=1) > 0) != expected
        return same_gates, classes[0] == classes[1], tf.reduce_any(changed, axis=1)

    sizes, gates, predictions, changes, in_full = [], 0, 0, 0, 0
    for batch, _ in batches:
        same_gates, same_class, changed = (part.numpy() for part in compare(batch))
        sizes.append(len(same_gates))
        gates += int(np.sum(~same_gates))
        predictions += int(np.sum(~same_class))
        changes += int(changed.sum())
        in_full += bool(changed.any())
    return {
        "held_out_images": sum(sizes),
        "images_with_a_settled_gate_changed": changes,
        "images_with_another_gate": gates,
        "images_with_another_prediction": predictions,
        "batch_size": max(sizes),
        "batches": len(sizes),
        "batches_in_full": in_full,
    }
