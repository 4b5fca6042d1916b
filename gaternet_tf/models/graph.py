"""A walk through the graph of any functional Keras CNN that finds the place of each gate.

The output of a layer of filters has a gate pending. Operations that treat channels apart carry it
on: it *rides* behind batch normalisation and activations, since before them a zero would become a
constant. Whatever else reads the tensor makes it *land*: there the gate is put, once for a tensor.
"""

import collections
import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import keras
from keras import layers

from gaternet_tf.errors import UserError
from gaternet_tf.layers import GateFilters
from gaternet_tf.seeds import derive_seed

FILTERS = (
    *(layers.Conv2D, layers.SeparableConv2D, layers.Conv2DTranspose, layers.DepthwiseConv2D),
    layers.Dense,
)
"""Layers of filters, where their output is [batch, height, width, channels]."""
RIDES = (
    *(layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU, layers.Dropout),
    *(layers.SpatialDropout2D, layers.ZeroPadding2D, layers.MaxPooling2D),
)
"""Layers that treat each channel by itself and leave zeros zeros, or are activations."""
ZERO_KEEPING_OPERATIONS = {
    *("Relu", "Relu6", "Silu", "Gelu", "HardSilu", "LeakyRelu", "Elu", "Tanh"),
}
RIDING_OPERATIONS = {*ZERO_KEEPING_OPERATIONS, "Sigmoid"}
ZERO_KEEPING = {
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "silu", "gelu", "mish"),
    *("tanh", "hard_silu", "hard_tanh", "softsign"),
}
"""Names of the activations that treat each channel by itself and leave 0 as it is."""
CHANNELWISE = {
    *ZERO_KEEPING,
    *("sigmoid", "hard_sigmoid", "softplus", "exponential", "log_sigmoid", "squareplus"),
    "sparse_plus",
}
"""Names of the activations that treat each channel by itself; of others this is not known."""
GLOBAL_POOLING = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
SCALING = (layers.Rescaling, layers.Normalization)
"""Layers of a network's own preprocessing, in front of everything else."""
MERGES = (layers.Add, layers.Concatenate, layers.Average, layers.Maximum)
MERGING_OPERATIONS = {"Add", "Concatenate"}


def as_functional(model) -> keras.Model | None:
    """Returns a functional or sequential model as a functional one, and None for anything else."""
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs[0], model.outputs[0]) if model.built else None
    is_functional = isinstance(model, keras.Model) and hasattr(model, "_run_through_graph")
    return model if is_functional else None


def require_functional(model) -> keras.Model:
    """Returns a model as a functional one.

    Raises:
      UserError: for a model that has no graph to walk through.
    """
    functional = as_functional(model)
    if functional is None:
        raise UserError(
            "a functional or sequential Keras model with known input shapes is required, got "
            f"{model!r}; build it with keras.Model(inputs, outputs)"
        )
    return functional


def symbols_of(model: keras.Model):
    """Returns new symbolic inputs of a model's shapes."""
    return keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype), model.input)


def walk(model: keras.Model, inputs, visit, path=(), training=None):
    """Runs through a model's graph, models inside it included; returns its outputs.

    Args:
      model: functional.
      inputs: in the structure of the model's.
      visit: called for each call of an operation with (operation, path, args, kwargs), where the
        path is the names of the models that it is in and its own; returns the outputs.
      path: names of the models around this one.
      training: what the models around this one pass on.
    """

    def call(operation, *args, **kwargs):
        names = (*path, operation.name)
        if (nested := as_functional(operation)) is not None:
            mode = kwargs.pop("training", training)
            return walk(nested, args[0] if len(args) == 1 else args, visit, names, mode)
        if training is not None and getattr(operation, "_call_has_training_arg", False):
            kwargs.setdefault("training", training)
        return visit(operation, names, args, kwargs)

    # Keras' own way through a graph, also through raw operations and shared layers.
    return model._run_through_graph(inputs, call_fn=call)


def rides(operation) -> bool:
    """Returns whether a gate may be put behind an operation instead of before it."""
    if not _is_channelwise(operation):
        return False
    if isinstance(operation, layers.DepthwiseConv2D):
        return operation.depth_multiplier == 1
    if isinstance(operation, layers.BatchNormalization):
        axis = operation.axis[0] if isinstance(operation.axis, list | tuple) else operation.axis
        return axis in (-1, 3)
    return is_operation(operation, (layers.Activation, *RIDES), RIDING_OPERATIONS)


def _is_channelwise(operation) -> bool:
    """Returns whether an operation's activation, if any, treats each channel by itself."""
    activation = getattr(operation, "activation", None)
    return activation is None or getattr(activation, "__name__", "") in CHANNELWISE


def copy_weights(old: keras.Layer, new: keras.Layer) -> None:
    """Gives a layer the weights of another one of its kind."""
    new.set_weights(old.get_weights())
    if isinstance(new, layers.Normalization):
        new.finalize_state()  # It computes with constants made of its weights.


@dataclasses.dataclass
class Filters:
    """A layer of filters that can be gated.

    Attributes:
      layer: in the model that was walked through.
      channels: number of its filters.
      unit: name of the branch that it is in; its own name without one.
      ends_branch: whether it is the last of the longest branch that a sum or concatenation reads.
    """

    layer: keras.Layer
    channels: int
    unit: str
    ends_branch: bool = False


class GraphWalk:
    """Runs through a model's graph, nested models included, from a copy of its inputs.

    Args:
      gates: gates by the name of their layer, KerasTensor [batch, channels] each; None clones no
        layer and only finds what can be gated.
      prefix: put before the names of all layers.
      seed: initialises the cloned layers anew, each from its own seed; None copies their weights.
      synchronized: whether cloned batch normalisation uses the moments of all replicas.
      reserved: names of the outputs to come, which no layer in the graph may have.

    Attributes:
      filters: what can be gated, by name, in the order of the graph.
      opaque: names of layers that may have convolutions inside, where they are not seen.
      scaling: the layers that scale the first picture before anything else reads it.
    """

    def __init__(
        self,
        gates: Mapping[str, Any] | None = None,
        prefix: str = "",
        seed: int | None = None,
        synchronized: bool = False,
        reserved: Collection[str] = (),
    ):
        self.gates = gates
        self.prefix = prefix
        self.seed = seed
        self.synchronized = synchronized
        self.reserved = reserved
        self.filters: dict[str, Filters] = {}
        self.opaque: list[str] = []
        self.scaling: list[keras.Layer] = []
        self._picture: int | None = None
        self._names: dict[int, str] = {}
        self._clones: dict[int, tuple] = {}
        self._tensors: list = []  # Kept alive, since the rest is by their ids.
        self._pending: dict[int, str] = {}
        self._landed: dict[int, Any] = {}
        self._landings: collections.Counter[str] = collections.Counter()
        self._branch: dict[int, tuple[str, ...]] = {}
        self._pooled: set[int] = set()

    def run(self, model: keras.Model, inputs):
        """Returns the outputs of the model, or of its clone, on other inputs."""
        self._picture = next((id(t) for t in tensors_in(inputs) if len(t.shape) == 4), None)

        def visit(operation, path, args, kwargs):
            return self._visit(operation, self.prefix + "_".join(path), args, kwargs)

        outputs = keras.tree.map_structure(self._land, walk(model, inputs, visit))
        for old, new in self._clones.values():
            if self.seed is None or isinstance(old, layers.Normalization):
                copy_weights(old, new)
            new.trainable = old.trainable
        return outputs

    def _visit(self, operation, name, args, kwargs):
        # What is called again, also through another model, keeps its first name and its gates.
        name = self._names.setdefault(
            id(operation), f"{name}_layer" if name in self.reserved else name
        )
        tensors = tensors_in((args, kwargs))
        carried = None
        if len(tensors) == 1 and rides(operation):
            carried = self._pending.get(id(tensors[0]))
        if carried is None:
            args, kwargs = keras.tree.map_structure(self._land, (args, kwargs))
        # Vectors, such as gates, are no part of a branch.
        branches = (self._branch.get(id(tensor), ()) for tensor in tensors if len(tensor.shape) > 2)
        branch = max(branches, key=len, default=())
        if is_operation(operation, MERGES, MERGING_OPERATIONS) and len(tensors) > 1:
            self._end_branches(name, tensors)
            branch = ()
        call = operation.compute_output_spec if self.gates is None else self._clone(operation, name)
        outputs = call(*args, **kwargs)
        results = tensors_in(outputs)
        self._tensors += results
        if isinstance(operation, SCALING) and id(tensors[0]) == self._picture:
            self._picture = id(results[0])
            self.scaling.append(operation)
        is_filters = isinstance(operation, FILTERS) and len(results[0].shape) == 4
        if is_filters:
            _require_channels_last(operation)
            branch = (*branch, name)
        elif isinstance(operation, layers.Wrapper) or (_is_custom(operation) and operation.weights):
            self.opaque.append(name)
        pooled = bool(tensors) and all(id(tensor) in self._pooled for tensor in tensors)
        if is_filters and not pooled and not carried and _is_channelwise(operation):
            self.filters.setdefault(name, Filters(operation, results[0].shape[-1], name))
            if self.gates is None or name in self.gates:
                carried = name
        for result in results:
            self._branch[id(result)] = branch
            if pooled or isinstance(operation, GLOBAL_POOLING):
                self._pooled.add(id(result))
            if carried:
                self._pending[id(result)] = carried
        return outputs

    def _land(self, tensor):
        """Returns a tensor behind its gate, if one is pending."""
        key = id(tensor)
        if key in self._pending and self.gates is not None and key not in self._landed:
            name = self._pending[key]
            self._landings[name] += 1
            number = self._landings[name]
            layer_name = f"{name}_gate" + (f"_{number}" if number > 1 else "")
            layer = GateFilters(name=layer_name, dtype=tensor.dtype)
            self._landed[key] = layer(tensor, self.gates[name])
        return self._landed.get(key, tensor)

    def _end_branches(self, merge, tensors):
        """Names the unit of the branches that a sum or concatenation reads, and their last layer.

        What all of them have in common lies before the unit.
        """
        branches = [self._branch.get(id(tensor), ()) for tensor in tensors]
        common = set.intersection(*map(set, branches))
        members = [name for branch in branches for name in branch if name not in common]
        stem = merge.rpartition("_")[0]
        named_alike = stem and all(name.startswith(f"{stem}_") for name in members)
        for name in members:
            if name in self.filters and self.filters[name].unit == name:
                self.filters[name].unit = stem if named_alike else merge
        ends = {
            self._pending[id(tensor)]: len(branch)
            for tensor, branch in zip(tensors, branches, strict=True)
            if id(tensor) in self._pending
        }
        for name, depth in ends.items():
            self.filters[name].ends_branch |= depth == max(ends.values())

    def _clone(self, operation, name):
        if not isinstance(operation, keras.Layer):
            return operation
        if id(operation) not in self._clones:
            _require_loadable(operation)
            config = {**operation.get_config(), "name": name}
            if self.seed is not None:
                for key, value in config.items():
                    if key.endswith("_initializer") and "seed" in value.get("config", {}):
                        own = derive_seed(self.seed, f"{name}/{key}")
                        config[key] = {**value, "config": {**value["config"], "seed": own}}
            if self.synchronized and isinstance(operation, layers.BatchNormalization):
                config["synchronized"] = True
            self._clones[id(operation)] = operation, type(operation).from_config(config)
        return self._clones[id(operation)][1]


def tensors_in(structure) -> list:
    """Returns the symbolic tensors in a structure, such as the arguments of an operation."""
    return [t for t in keras.tree.flatten(structure) if isinstance(t, keras.KerasTensor)]


def is_operation(operation, kinds, names) -> bool:
    """Returns whether an operation is a layer of these kinds, or one of `keras.ops` so named."""
    if isinstance(operation, keras.Layer):
        return isinstance(operation, kinds)
    return type(operation).__name__ in names


def _is_custom(operation) -> bool:
    """Returns whether an operation is a layer of another package than Keras."""
    return (
        isinstance(operation, keras.Layer)
        and type(operation).__module__.partition(".")[0] != "keras"
    )


def _require_loadable(layer):
    kind = type(layer)
    registered = keras.saving.get_registered_name(kind) != kind.__name__
    if isinstance(layer, layers.Lambda) or (_is_custom(layer) and not registered):
        raise UserError(
            f"every layer must be one that a .keras file can hold, and layer '{layer.name}' is a "
            f"{kind.__name__}; make it a class with @keras.saving.register_keras_serializable() "
            "and get_config, or use keras.ops"
        )


def _require_channels_last(layer):
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise UserError(
            "gates need pictures of [batch, height, width, channels], and layer "
            f"'{layer.name}' has data_format='channels_first'; build the model with channels_last"
        )
