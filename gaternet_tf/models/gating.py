"""Gates on any Keras CNN: `gate_model` joins it with a gater (paper section 3)."""

import re
from collections.abc import Callable

import keras
from keras import layers

from gaternet_tf.errors import UserError
from gaternet_tf.layers import GateSplit, SemHash
from gaternet_tf.models.gate_map import GateMap, GateSegment, gate_map
from gaternet_tf.models.gater import GATER_PREFIX, gate_preactivations, is_gater
from gaternet_tf.models.graph import (
    Filters,
    GraphWalk,
    copy_weights,
    require_functional,
    symbols_of,
)
from gaternet_tf.seeds import derive_seed

LISTED = 5
"""Names that an error lists."""


def gate_model(
    model: keras.Model,
    gater: str | keras.Model = "resnet20",
    gated_convs: str | Callable[[keras.Layer], bool] = "all",
    bottleneck: int = 8,
    head_batch_norm: bool = True,
    gate_bias: float = 0.0,
    gater_size: int | None = None,
    gates: keras.Layer | None = None,
    seed: int = 0,
    synchronized_batch_norm: bool = False,
) -> keras.Model:
    """Returns the GaterNet of any Keras CNN (paper section 3).

    The model is cloned with its weights and `trainable` flags, and not changed. While all gates
    are on the GaterNet answers to the bit what it answers; a gate that is off makes the output of
    its filter 0, behind batch normalisation and activation: `O_i = phi(F_i * I) . g_i`.

    Args:
      model: functional or sequential, of [batch, height, width, channels]; models in it, shared
        layers, several inputs, `keras.ops` and mixed precision are all right.
      gater: `E`, which sees the first image input: a name that `find_backbone` knows, or a CNN,
        whose pooled features are taken and whose classifier is not.
      gated_convs: "all"; "last" for the last convolution of each branch that a sum or a
        concatenation ends; a regular expression that is searched for in the names of layers; or a
        function of a layer. Layers that see pooled pictures only, as in squeeze-and-excitation,
        are never gated.
      bottleneck: units between the gater's features and its gates, the paper's `b`.
      head_batch_norm: whether the bottleneck is batch-normalised, as in the paper.
      gate_bias: bias of the gates' pre-activations at the start; with 2 most gates start on.
      gater_size: side in pixels to which the gater's picture is scaled; None leaves its size.
      gates: layer that turns pre-activations [batch, gates] into gates; None for `SemHash()`.
      seed: of the gater's initial weights and of the gates' noise.
      synchronized_batch_norm: batch normalisation of the gater over all replicas of a strategy.

    Returns:
      A functional model of the same inputs, whose outputs are a dict: those of the model, a single
      one as `logits`, and `gates`, float32 [batch, gates].

    Raises:
      UserError: for a model that cannot be gated, a choice without filters, and a gater that does
        not fit.
    """
    if gates is not None and not isinstance(gates, keras.Layer):
        raise UserError(f"gates must be a Keras layer, such as SemHash(), got {gates!r}")
    if gater_size is not None and gater_size < 1:
        raise UserError(f"gater_size must be 1 or more pixels, or None, got {gater_size}")
    if not isinstance(gater, str | keras.Model):
        raise UserError(f"gater must be a name, such as 'resnet20', or a Keras CNN, got {gater!r}")
    plain = require_functional(model)
    if len(gate_map(plain)):
        raise UserError(f"model '{model.name}' has gates already; give the plain network")
    if taken := [each.name for each in plain.operations if is_gater(each.name)]:
        raise UserError(
            f"layers called {GATER_PREFIX}..., gates or gate_split are the gater's, and model "
            f"'{model.name}' has {', '.join(taken[:LISTED])}; rename them"
        )
    plain_outputs = _by_name(plain, plain.output)
    if "gates" in plain_outputs:
        raise UserError(f"an output of model '{model.name}' is called 'gates'; rename it")
    for tensor in plain_outputs.values():
        activation = getattr(tensor._keras_history.operation, "activation", None)
        if activation in (keras.activations.softmax, keras.activations.sigmoid):
            print(
                f"warning: an output of '{model.name}' is a {activation.__name__}, and losses here "
                "take logits; build it with a linear output (classifier_activation=None)",
                flush=True,
            )
    # The last layer of a picture that goes out is followed by its gate, which has the name then.
    reserved = {
        name
        for name, tensor in plain_outputs.items()
        if tensor._keras_history.operation.name != name or len(tensor.shape) == 4
    }
    plan = GraphWalk(reserved=reserved)
    plan.run(plain, symbols_of(plain))
    chosen = choose_filters(plan, gated_convs)
    segments = GateMap(
        [GateSegment(name, filters.unit, filters.channels) for name, filters in chosen.items()]
    )

    inputs = keras.tree.map_structure(
        lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name), plain.input
    )
    images = next((t for t in keras.tree.flatten(inputs) if len(t.shape) == 4), None)
    if images is None:
        raise UserError(
            "the gater needs an input of pictures, [batch, height, width, channels], and those of "
            f"'{model.name}' are {[tuple(t.shape) for t in plain.inputs]}"
        )
    for layer in plan.scaling:  # The gater, too, sees what the model's own preprocessing makes.
        name = f"{GATER_PREFIX}{layer.name}"
        scale = type(layer).from_config({**layer.get_config(), "name": name})
        images = scale(images)
        copy_weights(layer, scale)
    preactivations = gate_preactivations(
        images,
        gater,
        len(segments),
        bottleneck,
        head_batch_norm,
        synchronized_batch_norm,
        seed,
        gate_bias,
        gater_size,
    )
    if gates is None:
        gates = SemHash(seed=derive_seed(seed, "gates"))
    gates = type(gates).from_config({**gates.get_config(), "name": "gates"})(preactivations)
    pieces = GateSplit(segments.to_rows(), name="gate_split")(gates)
    names = [segment.layer for segment in segments.segments]
    walk = GraphWalk(dict(zip(names, pieces, strict=True)), reserved=reserved)
    outputs = walk.run(plain, inputs)
    outputs = {name: _named(tensor, name) for name, tensor in _by_name(plain, outputs).items()}
    return keras.Model(inputs, {**outputs, "gates": gates}, name=f"gated_{model.name}")


def choose_filters(plan: GraphWalk, gated_convs) -> dict[str, Filters]:
    """Returns the filters that `gated_convs` chooses, by the name of their layer.

    Raises:
      UserError: when there are none.
    """
    if gated_convs == "all":
        chosen = plan.filters
    elif gated_convs == "last":
        chosen = {name: each for name, each in plan.filters.items() if each.ends_branch}
    elif callable(gated_convs):
        chosen = {name: each for name, each in plan.filters.items() if gated_convs(each.layer)}
    else:
        try:
            pattern = re.compile(gated_convs)
        except (re.error, TypeError) as error:
            raise UserError(
                "gated_convs must be 'all', 'last', a regular expression or a function of a layer, "
                f"got {gated_convs!r} ({error})"
            ) from error
        chosen = {name: each for name, each in plan.filters.items() if pattern.search(name)}
    if not chosen:
        names = list(plan.filters)
        listed = ", ".join(names[:LISTED]) + (", ..." if names[LISTED:] else "")
        could = f"'all' would gate {len(names)} ({listed})" if names else "it has none"
        if plan.opaque:
            could += f"; convolutions inside {', '.join(plan.opaque[:LISTED])} are not seen"
        raise UserError(
            f"gated_convs={gated_convs!r} must choose layers of filters of the model; {could}"
        )
    return chosen


def _by_name(model, outputs) -> dict:
    """Returns a model's outputs by name; a single one is `logits`."""
    if isinstance(outputs, dict):
        return outputs
    flat = keras.tree.flatten(outputs)
    return (
        {"logits": flat[0]} if len(flat) == 1 else dict(zip(model.output_names, flat, strict=True))
    )


def _named(tensor, name):
    """Returns an output from a layer of its name, which is how Keras calls outputs."""
    if tensor._keras_history.operation.name == name:
        return tensor
    return layers.Activation("linear", dtype="float32", name=name)(tensor)
