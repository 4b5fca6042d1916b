"""Gates that never change are settled: their filters are left out, or lose their gate.

What is settled is measured on a calibration split. On other pictures a settled gate may still
change: the `exact` network notices and takes the full one for that batch, the `calibrated` one
does not.
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
    """bool [gates] each: those that were on, and off, for every image of a split."""

    always_on: np.ndarray
    always_off: np.ndarray
    images: int

    @property
    def free(self) -> np.ndarray:
        """Bool [gates]: those that depended on the image."""
        return ~(self.always_on | self.always_off)


def calibrate(model: keras.Model, batches) -> Calibration:
    """Which gates never change over batches of (normalised images, labels)."""
    on_for, images = count_gates(model, batches)
    return Calibration(on_for == images, on_for == 0, images)


def settle(model: keras.Model, calibration: Calibration) -> Settled:
    """The filters of each gated layer that are computed, and which of them keep their gate.

    Where a sum with the shortcut follows, what is left of a layer has to be spread out to all
    channels again; a layer stays whole, with filters of zeros, where that costs more than leaving
    filters out saves. A convolution that another one reads keeps one filter at least: a
    convolution of nothing would not know its size.
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
    """A network without what a calibration has settled, as constants.

    Args:
      model: what `build_gaternet` builds, trained.
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
        """float32 [batch, height, width, channels], normalised, to `logits` and `gates`."""
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
        """All gates; FC2 computes only those that are not settled."""
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
        # Every gate's place among the chosen ones, or behind them: one that is off, one that is on.
        places = np.where(self.calibration.always_on, len(free) + 1, len(free))
        places[free] = np.arange(len(free))
        ends = tf.tile(tf.constant([[0.0, 1.0]]), [batch, 1])
        return tf.gather(tf.concat([chosen, ends], axis=1), places, axis=1)

    def macs(self) -> int:
        """Multiply-accumulates of an image whose settled gates agree.

        Counted as in `gaternet_tf.macs`, and the 1x1 convolutions that spread filters out again.
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
        """What was settled and what that saves, JSON-ready."""
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
    """How a specialized network does on pictures that it was not calibrated on.

    Args:
      model: the full one.
      network: made of it.
      batches: of (normalised images, labels), the first of them as large as any.

    Returns:
      JSON-ready: `held_out_images`; on how many of them a gate is another than it was settled to be
      (`images_with_a_settled_gate_changed`), any gate of the network is another than the full
      model's (`images_with_another_gate`) and the prediction (`images_with_another_prediction`);
      and how many of the `batches` of `batch_size` hold an image of the first kind
      (`batches_in_full`), for which the exact network takes the full one.
    """
    calibration = network.calibration
    settled = np.flatnonzero(~calibration.free)
    expected = calibration.always_on[settled]

    @tf.function(reduce_retracing=True)
    def compare(images):
        full, other = model(images, training=False), network(images)
        same_gates = tf.reduce_all((full["gates"] > 0) == (other["gates"] > 0), axis=1)
        classes = [tf.argmax(each["logits"], axis=1) for each in (full, other)]
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
