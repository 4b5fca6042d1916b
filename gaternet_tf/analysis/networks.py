"""The networks that can be analysed: a finished run's, and an exported version's."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from gaternet_tf.data import Preprocessing
from gaternet_tf.documents import sha256
from gaternet_tf.errors import UserError
from gaternet_tf.macs import gate_macs, layer_macs
from gaternet_tf.manifest import PLACE, read_manifest
from gaternet_tf.models import gate_map
from gaternet_tf.models.gate_map import GateMap
from gaternet_tf.runs import open_run

LOAD_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    tf.errors.OpError,
)
"""What TensorFlow raises for files that are no SavedModel with our signatures."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network, however it is stored.

    Attributes:
      answer: maps uint8 images [n, height, width, channels] to `probabilities` float32 [n, classes]
        and `strengths` float32 [n, gates], which are above 0 where a gate is on; the more, the
        more surely so.
      gate_map, labels, preprocessing: of the network.
      config: the settings of its run.
      dataset: what that recorded of its dataset.
      macs, gate_macs: see `gaternet_tf.macs`; None if not known.
      source: JSON-ready; where it came from, and the dataset that it was trained on.
      strength: what `strengths` are, in words.
      test_split: the split that it was tested on; None if not known.
    """

    answer: Callable
    gate_map: GateMap
    labels: list[str]
    preprocessing: Preprocessing
    config: dict
    dataset: dict
    macs: int | None
    gate_macs: np.ndarray | None
    source: dict
    strength: str
    test_split: str | None = None


def network_of_run(workdir: str | os.PathLike) -> Network:
    """A finished run's network. A gate's strength is what the gater's last layer says of it.

    Raises:
      UserError: for no finished run, and for one without gates.
    """
    run = open_run(workdir)
    document = run.document
    if run.config["gater"] == "none":
        raise _without_gates(f"the run in '{workdir}'", "train one with --gater=resnet20")
    model = run.load_model()
    preprocessing = run.preprocessing
    logits, gates = model.output["logits"], model.get_layer("gates")
    network = keras.Model(model.input, {"logits": logits, "strengths": gates.input})

    def answer(images):
        outputs = network(preprocessing.normalize(images), training=False)
        logits = tf.cast(outputs["logits"], tf.float32)
        return {
            "probabilities": tf.nn.softmax(logits),
            "strengths": tf.cast(outputs["strengths"], tf.float32),
        }

    return Network(
        answer=tf.function(answer, reduce_retracing=True),
        gate_map=gate_map(model),
        labels=run.labels,
        preprocessing=preprocessing,
        config=run.config,
        dataset=document["dataset"],
        macs=sum(layer_macs(model).values()),
        gate_macs=gate_macs(model),
        source={
            "kind": "run",
            "path": str(workdir),
            "dataset": {key: document["dataset"][key] for key in ("name", "version")},
            "git_commit": document["git_commit"],
            "backbone": run.config["backbone"],
            "gater": run.config["gater"],
            "gated_convs": run.config["gated_convs"],
            "sparsity": run.config["sparsity"],
        },
        strength="the pre-activation of the gate",
        test_split=document["dataset"]["test_split"],
    )


def network_of_export(version_dir: str | os.PathLike) -> Network:
    """An exported version's network, through its `gates` signature.

    That tells no pre-activations: a gate's strength is the probability of the predicted class,
    with a minus where the gate is off.

    Raises:
      UserError: for no version of ours, a damaged one, and one without gates.
    """
    manifest = read_manifest(version_dir)
    gates = GateMap.from_rows(manifest["gates"]["segments"])
    if not len(gates):
        raise _without_gates(f"the export in '{version_dir}'", "export a run with --gater=resnet20")
    _require_whole(pathlib.Path(version_dir), manifest["sha256"])
    try:
        loaded = tf.saved_model.load(os.fspath(version_dir))
        signature = loaded.signatures["gates"]
    except LOAD_ERRORS as error:
        raise _damaged(
            version_dir, (str(error).splitlines() or [type(error).__name__])[0]
        ) from error

    def answer(images):
        outputs = signature(images=tf.convert_to_tensor(images))
        best = tf.reduce_max(outputs["probabilities"], axis=1, keepdims=True)
        on = tf.cast(outputs["gates"], tf.float32)
        return {"probabilities": outputs["probabilities"], "strengths": best * (2 * on - 1)}

    # The signature's function does not keep the object alive that holds its variables.
    answer.loaded = loaded  # type: ignore[attr-defined]
    config = manifest["run"]["config"]
    macs = manifest.get("macs")
    return Network(
        answer=answer,
        gate_map=gates,
        labels=manifest["labels"],
        preprocessing=Preprocessing.from_dict(manifest["preprocessing"]),
        config=config,
        dataset=manifest["dataset"],
        macs=macs and macs["total"],
        gate_macs=macs and np.array(macs["gates"], np.int64),
        source={
            "kind": "export",
            "path": str(version_dir),
            "model": manifest["model"],
            "version": pathlib.Path(version_dir).resolve().name,
            "dataset": manifest["dataset"],
            "git_commit": manifest["run"]["git_commit"],
            "backbone": config["backbone"],
            "gater": config["gater"],
            "gated_convs": config["gated_convs"],
            "sparsity": config["sparsity"],
        },
        strength="the probability of the predicted class",
    )


def _require_whole(directory, checksums):
    """Refuses a version whose graph or weights are not those that were exported.

    What else is in there, such as the warm-up file, does not change its answers.
    """
    if "saved_model.pb" not in checksums:
        raise _damaged(directory, "the manifest has no checksum of saved_model.pb")
    for name, checksum in checksums.items():
        if name.startswith(f"{PLACE.parent}/"):
            continue
        try:
            found = sha256(directory / name)
        except OSError as error:
            raise _damaged(directory, f"{name}: {error.strerror}") from error
        if found != checksum:
            raise _damaged(directory, f"{name} was changed: its checksum is not the manifest's")


def _damaged(version_dir, reason):
    return UserError(
        f"'{version_dir}' must be a version as export.main wrote it, and is not ({reason}); bring "
        "it back from a copy, or export the run again"
    )


def _without_gates(what, remedy):
    return UserError(f"an analysis needs a network with gates, and {what} has none; {remedy}")
