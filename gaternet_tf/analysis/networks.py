"""The networks that can be analysed: those of finished runs and of exported versions."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import keras
import tensorflow as tf

from gaternet_tf.data import Preprocessing
from gaternet_tf.errors import UserError
from gaternet_tf.macs import Macs, macs_of
from gaternet_tf.manifest import read_manifest
from gaternet_tf.models import gate_map
from gaternet_tf.models.gate_map import GateMap
from gaternet_tf.runs import open_run


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network.

    Attributes:
      predict: maps uint8 images [n, height, width, channels] to probabilities, float32 [n,
        classes], and strengths, float32 [n, gates], which are above 0 where a gate is on; the
        larger, the more surely.
      strength: what `strengths` are, in words.
      gate_map, labels, preprocessing: of the network.
      config: the settings of its run.
      dataset: what the run recorded of its dataset.
      macs: multiply-accumulates of an image by its gates, see `gaternet_tf.macs`.
      training: the record of each epoch; empty for an export.
      source: JSON-ready facts about the network's origin.
    """

    predict: Callable
    strength: str
    gate_map: GateMap
    labels: list[str]
    preprocessing: Preprocessing
    config: dict
    dataset: dict
    macs: Macs
    training: list[dict]
    source: dict


def network_of_run(workdir: str | os.PathLike) -> Network:
    """Loads a finished run. A gate's strength is its pre-activation, which the gater computes.

    Raises:
      UserError: for no finished run, and for one without gates.
    """
    run = open_run(workdir)
    if run.config["gater"] == "none":
        raise UserError(
            f"an analysis needs a network with gates, and the run in '{workdir}' has none; train "
            "one with --gater=resnet20"
        )
    model = run.load_model()
    preprocessing = run.preprocessing
    outputs = (model.output["logits"], model.get_layer("gates").input)
    network = keras.Model(model.input, outputs)

    def predict(images):
        logits, strengths = network(preprocessing.normalize(images), training=False)
        return tf.nn.softmax(tf.cast(logits, tf.float32)), tf.cast(strengths, tf.float32)

    dataset = run.document["dataset"]
    return Network(
        predict=tf.function(predict, reduce_retracing=True),
        strength="the pre-activation of the gate",
        gate_map=gate_map(model),
        labels=run.labels,
        preprocessing=preprocessing,
        config=run.config,
        dataset=dataset,
        macs=macs_of(model),
        training=run.metrics(),
        source={
            "kind": "run",
            "path": str(workdir),
            **_source(dataset, run.config, run.document["git_commit"]),
        },
    )


def network_of_export(version_dir: str | os.PathLike) -> Network:
    """Loads an exported version through its `gates` signature, which gives no pre-activations.

    A gate's strength is the probability of the predicted class, negative where the gate is off.

    Raises:
      UserError: for a directory that is no exported version, and for a version without gates.
    """
    manifest = read_manifest(version_dir)
    gates = GateMap.from_rows(manifest["gates"]["segments"])
    if not len(gates):
        raise UserError(
            f"an analysis needs a network with gates, and the export in '{version_dir}' has none; "
            "export a run with --gater=resnet20"
        )
    loaded = tf.saved_model.load(os.fspath(version_dir))
    signature = loaded.signatures["gates"]

    def predict(images):
        outputs = signature(images=tf.convert_to_tensor(images))
        best = tf.reduce_max(outputs["probabilities"], axis=1, keepdims=True)
        on = tf.cast(outputs["gates"], tf.float32)
        return outputs["probabilities"], best * (2 * on - 1)

    # The signature's function does not keep the object alive that holds its variables.
    predict.loaded = loaded  # type: ignore[attr-defined]
    config = manifest["run"]["config"]
    return Network(
        predict=predict,
        strength="the probability of the predicted class",
        gate_map=gates,
        labels=manifest["labels"],
        preprocessing=Preprocessing.from_dict(manifest["preprocessing"]),
        config=config,
        dataset=manifest["dataset"],
        macs=Macs.from_rows(manifest["macs"]["products"]),
        training=[],
        source={
            "kind": "export",
            "path": str(version_dir),
            "model": manifest["model"],
            "version": pathlib.Path(version_dir).resolve().name,
            **_source(manifest["dataset"], config, manifest["run"]["git_commit"]),
        },
    )


def _source(dataset, config, git_commit):
    return {
        "dataset": {key: dataset[key] for key in ("name", "version")},
        "git_commit": git_commit,
        **{key: config[key] for key in ("backbone", "gater", "gated_convs", "sparsity")},
    }
