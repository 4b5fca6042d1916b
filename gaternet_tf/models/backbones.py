"""Plain networks by name: those of this package, of `keras.applications`, and Keras files."""

import dataclasses
import os
import re
import types
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from gaternet_tf.errors import UserError
from gaternet_tf.models.densenet_cifar import densenet_features
from gaternet_tf.models.graph import GraphWalk, copy_weights, is_operation, require_functional
from gaternet_tf.models.resnet_cifar import GATED_CONVS, WIDTH, resnet_features, resnet_spec
from gaternet_tf.models.resnet_imagenet import UNITS, resnet_imagenet_features
from gaternet_tf.runs import is_run

KERAS = "keras:"
IMAGENET, NO_WEIGHTS = "imagenet", "none"
"""Values of `weights` that are no file."""
IMAGENET_CLASSES = 1000
BEHIND_CLASSIFIER = (
    *(layers.Activation, layers.Softmax, layers.Dropout, layers.Flatten, layers.Reshape),
)
BEHIND_CLASSIFIER_OPERATIONS = {"Softmax", "LogSoftmax", "Sigmoid", "Reshape", "Squeeze"}
"""What may follow the layer that makes class scores."""
FORMS = (
    "resnetD (a ResNet for small images of any legal depth, such as resnet20 or resnet164), "
    "imagenet-resnet18 (or 34, 50, 101, 152), densenet-bc-100-12 (depth 6n+4 and growth), "
    "keras:NAME (a CNN of keras.applications, such as keras:MobileNetV2) or a path to a .keras file"
)


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A plain network that a name stands for.

    Attributes:
      name: its name.
      features: function of images [batch, height, width, channels], and of `prefix` (of the
        layers' names), `seed`, `synchronized` (batch normalisation over replicas) and `weights`
        (what `--weights` says, or None), that returns pooled features [batch, features].
      normalization: (mean, standard deviation) of its input in pixels from 0 to 255, each by
        channel; None where it takes the dataset's own.
      all_convs: what `gate_model` gates for "all".
    """

    name: str
    features: Callable[..., Any]
    normalization: tuple[Sequence[float], Sequence[float]] | None = None
    all_convs: str = "all"


def find_backbone(name: str, width: int = WIDTH, attention: str = "none") -> Backbone:
    """Returns the plain network of a name.

    Args:
      name: see `FORMS`.
      width: base channels, for ResNets for small images only.
      attention: "se" for squeeze-and-excitation, for the same only.

    Raises:
      UserError: for another name, or one that has neither width nor attention.
    """
    if re.fullmatch(r"resnet\d+(-basic|-bottleneck)?", name):
        spec = resnet_spec(name, width)
        return Backbone(
            name,
            _own(resnet_features, spec=spec, attention=attention),
            all_convs=GATED_CONVS["all"],
        )
    if width != WIDTH or attention != "none":
        raise UserError(
            f"width and attention are those of ResNets for small images (resnet20, ...), and "
            f"'{name}' is none; leave them out"
        )
    if match := re.fullmatch(r"imagenet-resnet(\d+)", name):
        if int(match[1]) not in UNITS:
            raise UserError(f"imagenet-resnetD must have a depth of {list(UNITS)}, got '{name}'")
        return Backbone(name, _own(resnet_imagenet_features, depth=int(match[1])))
    if match := re.fullmatch(r"densenet-bc-(\d+)-(\d+)", name):
        depth, growth = int(match[1]), int(match[2])
        if depth < 10 or (depth - 4) % 6 or growth < 1:
            raise UserError(
                "densenet-bc-D-K must have a depth of 6n+4 (10, 16, ..., 40, 100) and a growth of "
                f"1 or more, got '{name}'"
            )
        return Backbone(name, _own(densenet_features, depth=depth, growth=growth))
    if name.startswith(KERAS):
        return _keras_application(name)
    if name.endswith(".keras"):
        return Backbone(name, lambda images, **options: _from_file(name, images, **options))
    raise UserError(f"a network must be {FORMS}; got '{name}'")


def _own(function, **arguments):
    """Returns the features of a network of this package, which is published without weights."""

    def features(images, prefix="", seed=0, synchronized=False, weights=None):
        x = function(images, prefix=prefix, synchronized=synchronized, seed=seed, **arguments)
        if weights not in (None, NO_WEIGHTS):
            if not weights.endswith(".keras"):
                raise UserError(
                    "weights of this network must be a .keras file with its layers, such as a "
                    f"run's model.keras, got '{weights}'; 'imagenet' is for keras:NAME"
                )
            copy_network(load_plain(weights), keras.Model(images, x))
        return x

    return features


def _keras_application(name) -> Backbone:
    """Returns a network of keras.applications, whose own preprocessing is its normalisation."""
    everything = vars(keras.applications)
    names = sorted(key for key in everything if key[:1].isupper() and callable(everything[key]))
    kind = name.removeprefix(KERAS)
    if kind not in names:
        raise UserError(f"keras:NAME must be one of {', '.join(names)}; got '{name}'")
    build = everything[kind]
    # MobileNetV3 is in no module, and preprocesses in its graph.
    modules = [m for m in everything.values() if isinstance(m, types.ModuleType)]
    module = next((m for m in modules if hasattr(m, kind)), keras.applications.mobilenet_v3)
    # Its affine function of each channel, and whether it reverses them, from three pictures.
    pictures = np.zeros([3, 1, 1, 3], np.float32)
    pictures[1], pictures[2, ..., 0] = 255.0, 255.0
    black, white, red = module.preprocess_input(pictures, data_format="channels_last")[:, 0, 0]
    reverses = red[0] == black[0]
    deviation = 255.0 / (white - black)
    mean = -black * deviation
    order = slice(None, None, -1 if reverses else 1)

    def features(images, prefix="", seed=0, synchronized=False, weights=None):
        has_weights = weights not in (None, NO_WEIGHTS)
        is_file = has_weights and weights != IMAGENET
        settings = {"include_top": False, "input_shape": images.shape[1:], "pooling": "avg"}
        try:
            model = build(weights=None, **settings)
            if is_file:
                source = load_plain(weights) if weights.endswith(".keras") else None
                _require_same_rescaling(name, model, source)
            if is_file and source:
                copy_network(source, model)
            elif has_weights:
                model = build(weights=weights, **settings)
        except UserError:
            raise
        except Exception as error:  # Whatever Keras raises for sizes, downloads and files.
            fetch = "; without a network, give the weights' file" if weights == IMAGENET else ""
            raise UserError(
                f"'{name}' cannot be built for pictures of {tuple(images.shape[1:])} with "
                f"weights={weights} ({str(error).splitlines()[0]}){fetch}"
            ) from error
        # A run's network was trained on RGB already.
        if reverses and has_weights and not (is_file and is_run(os.path.dirname(weights))):
            first = next(layer for layer in model.layers if isinstance(layer, layers.Conv2D))
            kernel, *rest = first.get_weights()
            first.set_weights([kernel[:, :, ::-1], *rest])
        walk = GraphWalk({}, prefix, None if has_weights else seed, synchronized)
        return walk.run(model, images)

    return Backbone(name, features, (mean[order].tolist(), deviation[order].tolist()))


def _require_same_rescaling(name, model, source):
    """Refuses a file of weights for a network that Keras builds otherwise for ImageNet's weights.

    Those of EfficientNetB0 to B7 have a `Rescaling` more, which `.weights.h5` does not tell.
    """
    counts = [
        sum(isinstance(layer, layers.Rescaling) for layer in each.layers)
        for each in (model, source or model)
    ]
    if counts[0] != counts[1] or (not source and name.startswith(f"{KERAS}EfficientNetB")):
        raise UserError(
            f"'{name}' has another Rescaling with ImageNet's weights than without; give "
            "--weights=imagenet, or save the whole network and give --backbone=FILE.keras"
        )


def load_plain(path: str) -> keras.Model:
    """Returns the model in a .keras file; what it computes in half precision follows Keras' policy.

    Raises:
      UserError: when there is none.
    """
    if not os.path.isfile(path):
        raise UserError(f"a .keras file is required, and '{path}' does not exist")
    try:
        model = keras.models.load_model(path, compile=False)
    except (ValueError, TypeError, OSError) as error:
        raise UserError(
            f"'{path}' cannot be loaded as a Keras model: {str(error).splitlines()[0]}"
        ) from error
    for layer in model._flatten_layers(include_self=False):
        if layer.dtype_policy.name.startswith("mixed_"):
            layer.dtype_policy = keras.mixed_precision.dtype_policy()
    return model


def copy_network(source: keras.Model, model: keras.Model) -> None:
    """Copies the weights of layers with the same names; the source may have further ones.

    Raises:
      UserError: when a layer is missing there, or has other shapes.
    """
    theirs = {layer.name: layer for layer in source.layers}
    for layer in model.layers:
        other = getattr(theirs.get(layer.name), "weights", [])
        shapes = [[tuple(weight.shape) for weight in each] for each in (layer.weights, other)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"the weights must be those of the same network, and in '{source.name}' layer "
                f"'{layer.name}' has the shapes {shapes[1]}, here {shapes[0]}"
            )
    for layer in model.layers:
        if layer.weights:
            copy_weights(theirs[layer.name], layer)


def source_of(name: str, weights: str | None, classes: int) -> keras.Model | None:
    """Returns the network that a backbone's weights are of, with its classifier, if it may fit."""
    if weights == IMAGENET and classes == IMAGENET_CLASSES:
        return vars(keras.applications)[name.removeprefix(KERAS)](weights=IMAGENET)
    files = [weights] if weights not in (None, IMAGENET) else [name]
    return next((load_plain(file) for file in files if file.endswith(".keras")), None)


def copy_classifier(source: keras.Model, logits: keras.layers.Dense) -> None:
    """Copies the weights of a network's classifier, if its features and classes are as many."""
    classifier, _ = _split_classifier(require_functional(source))
    if classifier is not None:
        kernel, *bias = classifier.get_weights()
        kernel = kernel.reshape(kernel.shape[-2:])  # Of a 1x1 convolution, too.
        if [kernel.shape, *(b.shape for b in bias)] == [tuple(w.shape) for w in logits.weights]:
            logits.set_weights([kernel, *bias])


def _split_classifier(model):
    """Returns the layer that makes the class scores, or None, and the symbol of the features.

    It is the last dense layer, or a 1x1 convolution of one place.
    """
    named = model.output if isinstance(model.output, dict) else {}
    output = named.get("logits", model.outputs[0])
    tensor = output
    while True:
        operation, node, _ = tensor._keras_history
        before = operation._inbound_nodes[node].input_tensors
        is_dense = isinstance(operation, layers.Dense) and len(tensor.shape) == 2
        is_convolution = isinstance(operation, layers.Conv2D) and operation.kernel_size == (1, 1)
        if is_dense or (is_convolution and before[0].shape[1:3] == (1, 1)):
            return operation, before[0]
        if not is_operation(operation, BEHIND_CLASSIFIER, BEHIND_CLASSIFIER_OPERATIONS):
            return None, output
        tensor = before[0]


def _from_file(path, images, prefix="", seed=0, synchronized=False, weights=None):
    new = seed if weights == NO_WEIGHTS else None
    x = features_of(load_plain(path), images, prefix, new, synchronized)
    if weights not in (None, NO_WEIGHTS):
        copy_network(load_plain(weights), keras.Model(images, x))
    return x


def features_of(model: keras.Model, images, prefix="", seed=None, synchronized=False, pooled=False):
    """Returns the features [batch, features] of a clone of any CNN, without its classifier.

    Args:
      model: functional or sequential, of one picture.
      images: KerasTensor [batch, height, width, channels].
      prefix: put before every layer's name.
      seed: for new weights; None takes the model's.
      synchronized: whether batch normalisation uses the moments of all replicas.
      pooled: whether hidden dense layers before the classifier are left out, too.

    Raises:
      UserError: for a model that is no CNN of one picture, or of other pictures than these.
    """
    plain = require_functional(model)
    expected, got = tuple(plain.inputs[0].shape[1:]), tuple(images.shape[1:])
    if len(plain.inputs) != 1 or len(expected) != 3 or len(plain.outputs) != 1:
        raise UserError(
            "a network must be a CNN of one picture, [batch, height, width, channels], with one "
            f"output; '{model.name}' has inputs {[tuple(t.shape) for t in plain.inputs]} and "
            f"{len(plain.outputs)} outputs"
        )
    if any(ours not in (None, theirs) for ours, theirs in zip(expected, got, strict=True)):
        raise UserError(
            f"network '{model.name}' takes pictures of {expected}, and these are {got}; give "
            f"{'gater_size' if prefix else 'image_size'}"
        )
    classifier, features = _split_classifier(plain)
    while pooled and classifier is not None:
        classifier, features = _split_classifier(keras.Model(plain.inputs, features))
    while pooled and isinstance(features._keras_history.operation, layers.Flatten | layers.Dropout):
        operation, node, _ = features._keras_history
        features = operation._inbound_nodes[node].input_tensors[0]
    if len(features.shape) not in (2, 4):
        raise UserError(
            "a network's features must be [batch, features] or [batch, height, width, features], "
            f"and those of '{model.name}' are {tuple(features.shape)}"
        )
    walk = GraphWalk({}, prefix, seed, synchronized)
    x = walk.run(keras.Model(plain.inputs, features), images)
    return layers.GlobalAveragePooling2D(name=f"{prefix}pool")(x) if len(x.shape) == 4 else x
