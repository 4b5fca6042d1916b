"""Gates on any CNN: where they land, and that nothing else changes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import run_python
from keras import layers, ops

from gaternet_tf import UserError, gate_map, gate_model
from gaternet_tf.layers import GateFilters, SemHash
from gaternet_tf.models.gating import choose_filters
from gaternet_tf.models.graph import GraphWalk, symbols_of

ON = 100.0
"""Bias of pre-activations with which all gates are on."""

# Of keras.applications: (side of a picture, gates of "all", gates of "last").
ARCHITECTURES = {
    "VGG16": (32, 4224, 0),
    "ResNet50": (32, 26_560, 15_104),
    "ResNet50V2": (32, 26_560, 15_104),
    "DenseNet121": (32, 10_240, 1856),
    "InceptionV3": (75, 17_216, 5440),
    "MobileNetV2": (32, 9920, 792),
    "MobileNetV3Small": (32, 3600, 344),
    "EfficientNetV2B0": (32, 17_344, 2064),
    "ConvNeXtTiny": (32, 41_184, 1344),
    "Xception": (71, 27_264, 7960),
}


def randomize(model):
    """Gives all weights but kernels other values than those they start with."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "kernel" not in weight.path:
            weight.assign(weight + 0.1 * np.abs(rng.normal(size=weight.shape)))
    return model


def pictures(model, batch=2):
    """A batch for each input of a model, in its structure."""
    rng = np.random.default_rng(1)
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(
        lambda t: rng.normal(size=(batch, *t.shape[1:])).astype("float32"), inputs
    )


def by_name(outputs):
    return outputs if isinstance(outputs, dict) else {"logits": outputs}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_gates_on_answers_to_the_bit_what_the_plain_network_does(name):
    side, every, last = ARCHITECTURES[name]
    build = getattr(keras.applications, name)
    plain = randomize(
        build(weights=None, input_shape=(side, side, 3), classes=5, classifier_activation=None)
    )
    gated = gate_model(plain, "resnet8", gate_bias=ON)
    images = pictures(plain)
    outputs = gated(images, training=False)
    assert outputs["gates"].shape == (2, every)
    assert np.all(outputs["gates"] == 1)
    np.testing.assert_array_equal(outputs["logits"], plain(images, training=False))
    plan = GraphWalk()
    plan.run(plain, symbols_of(plain))
    if last:
        chosen = choose_filters(plan, "last")
        assert sum(filters.channels for filters in chosen.values()) == last
    else:
        with pytest.raises(
            UserError, match=r"'last' must choose .* 'all' would gate 13 \(block1_c"
        ):
            choose_filters(plan, "last")


def test_last_is_the_branch_and_not_its_shortcut_also_where_pooling_follows():
    plain = keras.applications.Xception(weights=None, include_top=False, input_shape=(71, 71, 3))
    plan = GraphWalk()
    plan.run(plain, symbols_of(plain))
    assert all("sepconv" in name for name in choose_filters(plan, "last"))


def conv(filters, size=3, **options):
    return layers.Conv2D(filters, size, padding="same", **options)


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            conv(4, activation="tanh"),
            layers.AveragePooling2D(2),
            conv(6),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ]
    )


def tower():
    images = keras.Input((8, 8, 3))
    x = layers.LeakyReLU()(layers.BatchNormalization()(conv(4, name="inner_conv")(images)))
    return keras.Model(images, conv(6, activation="tanh")(x), name="tower")


def nested():
    images = keras.Input((8, 8, 3))
    head = keras.Sequential([layers.GlobalAveragePooling2D(), layers.Dense(5)], name="head")
    inner = tower()
    inner.layers[2].trainable = False
    return keras.Model(images, head(conv(4, activation="tanh")(inner(images))))


def shared():
    images = keras.Input((8, 8, 3))
    again = conv(4, activation="tanh", name="again")
    x = again(again(conv(4)(images)))
    return keras.Model(images, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


def siamese():
    one, other = keras.Input((8, 8, 3), name="one"), keras.Input((8, 8, 3), name="other")
    inner = tower()
    x = layers.Subtract()([inner(one), inner(other)])
    return keras.Model([one, other], layers.Dense(5)(layers.GlobalMaxPooling2D()(x)))


def dicts():
    inputs = {"image": keras.Input((8, 8, 3), name="image"), "age": keras.Input((2,), name="age")}
    x = layers.GlobalAveragePooling2D()(conv(4, activation="tanh")(inputs["image"]))
    x = layers.Concatenate()([x, inputs["age"]])
    return keras.Model(
        inputs, {"kind": layers.Dense(5)(x), "size": layers.Dense(1, name="size")(x)}
    )


def operations():
    images = keras.Input((8, 8, 3))
    x = ops.tanh(conv(4)(images))
    x = ops.concatenate([x[:, ::2], ops.max(x, axis=1, keepdims=True) + 1.0], axis=1)
    x = conv(6)(ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]))
    return keras.Model(images, layers.Dense(5)(ops.mean(ops.silu(x), axis=(1, 2))))


def kinds():
    images = keras.Input((8, 8, 3))
    x = layers.PReLU()(conv(8, name="plain")(images))
    x = layers.ELU()(conv(8, groups=2, name="grouped")(x))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, name="rides")(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="tanh", name="multiplies")(x)
    x = layers.Conv2DTranspose(6, 3, strides=2, activation="tanh", name="transposed")(x)
    x = layers.SeparableConv2D(7, 3, activation="tanh", name="separable")(x)
    scale = layers.GlobalAveragePooling2D(keepdims=True)(x)
    scale = layers.Conv2D(7, 1, activation="sigmoid", name="squeezed")(scale)
    x = layers.Dense(6, activation="gelu", name="pointwise")(layers.Multiply()([x, scale]))
    return keras.Model(images, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))


def mixed():
    images = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(dtype="mixed_float16")(conv(4, dtype="mixed_float16")(images))
    x = conv(6, dtype="mixed_float16", activation="tanh")(x)
    x = layers.GlobalAveragePooling2D(dtype="mixed_float16")(x)
    return keras.Model(images, layers.Dense(5, dtype="float32")(x))


def picture_out():
    images = keras.Input((8, 8, 3))
    return keras.Model(images, conv(2, activation="tanh", name="logits")(conv(4)(images)))


# With the layers that "all" gates, where the names say something.
MODELS = {
    sequential: None,
    nested: ["tower_inner_conv", None, None],
    shared: [None, "again"],
    siamese: ["tower_inner_conv", None],
    dicts: None,
    operations: None,
    kinds: ["plain", "grouped", "multiplies", "transposed", "separable", "pointwise"],
    mixed: None,
    picture_out: [None, "logits_layer"],
}
each_model = pytest.mark.parametrize("build", MODELS)


@pytest.fixture(name="gated", scope="module")
def gated_fixture():
    """`gated(build)`: the model with all gates on, with soft gates in training; only read it."""
    made = {}

    def get(build):
        if build not in made:
            soft = SemHash(noise_stddev=0.0, hard_share=0.0)
            made[build] = gate_model(randomize(build()), "resnet8", gate_bias=ON, gates=soft)
        return made[build]

    return get


@each_model
def test_a_model_of_any_form_keeps_its_answers_weights_and_flags(build, tmp_path):
    plain = randomize(build())
    images = pictures(plain)
    wanted = keras.tree.map_structure(np.array, by_name(plain(images, training=False)))
    weights, trainable = plain.get_weights(), len(plain.trainable_variables)
    gated = gate_model(plain, "resnet8", gate_bias=ON)
    segments = gate_map(gated).segments
    for segment, name in zip(segments, MODELS[build] or [None] * len(segments), strict=True):
        assert name in (None, segment.layer)
    outputs = gated(images, training=False)
    assert set(outputs) == {*wanted, "gates"}
    for name, value in wanted.items():
        np.testing.assert_array_equal(outputs[name], value)
    ours = [each for each in gated.trainable_variables if not each.path.startswith("gater_")]
    assert len(ours) == trainable
    # The caller's own has not changed, shares no variable, and can still be saved.
    for weight in gated.weights:
        weight.assign(weight + 1)
    for after, before in zip(plain.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(after, before)
    plain.save(tmp_path / "plain.keras")


@each_model
def test_every_gate_and_every_gater_variable_gets_a_gradient(build, gated):
    model = gated(build)
    model.get_layer("gater_fc2").bias.assign(np.zeros(len(gate_map(model))))
    with tf.GradientTape() as tape:
        outputs = dict(model(pictures(model, batch=4), training=True))
        assert 0 < np.min(outputs["gates"]) < np.max(outputs["gates"]) < 1
        del outputs["gates"]
        loss = sum(
            tf.reduce_sum(tf.sin(tf.range(float(tf.size(value)))) * tf.reshape(value, [-1]))
            for value in outputs.values()
        )
    gater = [each for each in model.trainable_variables if each.path.startswith("gater_")]
    gradients = {
        variable.path: np.array(gradient)
        for variable, gradient in zip(gater, tape.gradient(loss, gater), strict=True)
    }
    assert all(gradient.any() for gradient in gradients.values())
    assert gradients["gater_fc2/bias"].all()
    model.get_layer("gater_fc2").bias.assign(np.full(len(gate_map(model)), ON))


def test_keras_files_load_where_only_the_library_is_imported(tmp_path, gated):
    for build in MODELS:
        model = gated(build)
        images = pictures(model)
        for form in (keras.models.clone_model(model), type(model).from_config(model.get_config())):
            assert gate_map(form) == gate_map(model)
            form.set_weights(model.get_weights())
            for name, value in model(images, training=False).items():
                np.testing.assert_array_equal(form(images, training=False)[name], value)
        model.save(tmp_path / f"{build.__name__}.keras")
        outputs = model(images, training=False)
        np.savez(tmp_path / f"{build.__name__}-in.npz", *keras.tree.flatten(images))
        np.savez(tmp_path / f"{build.__name__}-out.npz", **outputs)
    code = """
import gaternet_tf, keras, pathlib, numpy as np
for path in pathlib.Path().glob("*.keras"):
    model = keras.models.load_model(path)
    images = list(np.load(f"{path.stem}-in.npz").values())
    wanted = np.load(f"{path.stem}-out.npz")
    outputs = model(keras.tree.pack_sequence_as(model.input, images), training=False)
    assert len(gaternet_tf.gate_map(model)) == wanted["gates"].shape[1]
    for name in wanted:
        np.testing.assert_array_equal(outputs[name], wanted[name], err_msg=f"{path} {name}")
    print(path.stem)
"""
    done = run_python("-c", code, cwd=tmp_path)
    assert done.status == 0, done.err
    assert set(done.out.split()) == {build.__name__ for build in MODELS}


def until_the_gate(model, layer):
    """The layers whose weights belong to a layer's filters: it, and what its gate rides behind."""
    while not isinstance(layer, GateFilters):
        yield layer
        layer = next(
            reader
            for reader in model.layers
            if any(tensor is layer.output for tensor in keras.tree.flatten(reader.input))
        )


def test_what_off_filters_hold_changes_no_bit():
    plain = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), alpha=0.35, classes=5
    )
    model = gate_model(randomize(plain), "resnet8")
    gates = gate_map(model)
    rng = np.random.default_rng(2)
    on = rng.uniform(size=len(gates)) < 0.6
    model.get_layer("gater_fc2").bias.assign(np.where(on, ON, -ON))
    images = pictures(model)
    before = model(images, training=False)
    np.testing.assert_array_equal(before["gates"], [on, on])
    start, ridden = 0, 0
    for segment in gates.segments:
        off = ~on[start : start + segment.channels]
        start += segment.channels
        for layer in until_the_gate(model, model.get_layer(segment.layer)):
            ridden += isinstance(layer, layers.DepthwiseConv2D)
            axis = 2 if isinstance(layer, layers.DepthwiseConv2D) else -1
            for weight in layer.weights:
                value = np.array(weight)
                filters = np.moveaxis(value, axis if value.ndim > 1 else 0, 0)
                filters[off] = rng.uniform(1, 9, size=filters[off].shape)
                weight.assign(value)
    after = model(images, training=False)
    assert ridden == 17
    np.testing.assert_array_equal(after["logits"], before["logits"])
    model.get_layer("gater_fc2").bias.assign(np.full(len(gates), ON))
    assert np.any(model(images, training=False)["logits"] != plain(images, training=False))


@keras.saving.register_keras_serializable("test_gating")
class StraightThrough(keras.layers.Layer):
    """Gates `1[z > 0]` that pass the gradient of the sigmoid back."""

    def call(self, inputs):
        soft = ops.sigmoid(inputs)
        return soft + ops.stop_gradient(ops.cast(inputs > 0, soft.dtype) - soft)


def test_another_gate_layer_trains():
    gated = gate_model(sequential(), tower(), gates=StraightThrough(name="mine"))
    assert isinstance(gated.get_layer("gates"), StraightThrough)
    gated.compile(keras.optimizers.SGD(0.1), {"logits": "mse"}, run_eagerly=True)
    before = np.array(gated.get_layer("gater_fc2").kernel)
    images = pictures(gated, batch=8)
    losses = gated.fit(images, {"logits": np.ones([8, 5])}, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert np.any(np.array(gated.get_layer("gater_fc2").kernel) != before)
    assert set(np.unique(gated(images)["gates"])) <= {0.0, 1.0}


def test_a_gater_loses_its_classifier_and_may_see_a_smaller_picture():
    gater = sequential()
    gated = gate_model(siamese(), gater)
    assert "gater_dense" not in " ".join(layer.name for layer in gated.layers)
    assert gated.get_layer("gater_fc1").input.shape == (None, 6)
    np.testing.assert_array_equal(
        gated.get_layer(f"gater_{gater.layers[0].name}").kernel, gater.layers[0].kernel
    )
    # A dense classifier that flattens gives way to the pooled picture before it.
    vgg = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=2)
    big = keras.Input((64, 48, 3))
    plain = keras.Model(big, layers.GlobalAveragePooling2D()(conv(4)(big)))
    gated = gate_model(plain, vgg, gater_size=32)
    assert gated.get_layer("gater_fc1").input.shape == (None, 512)
    assert gated.get_layer("gater_resize").output.shape == (None, 32, 32, 3)


def test_pictures_of_bytes_reach_the_gater_as_numbers():
    images = keras.Input((8, 8, 3), dtype="uint8")
    x = conv(4)(layers.Rescaling(1 / 255, name="scale")(images))
    gated = gate_model(keras.Model(images, layers.GlobalAveragePooling2D()(x)), "resnet8")
    assert gated(np.full([1, 8, 8, 3], 9, np.uint8))["gates"].shape == (1, 4)
    # And on the scale that the network's own preprocessing gives them.
    assert gated.get_layer("gater_stem").input is gated.get_layer("gater_scale").output
    assert gated.get_layer("gater_scale").scale == 1 / 255


class Hidden(keras.layers.Layer):
    """A convolution that no walk through the graph can see, in a class that Keras cannot load."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Conv2D(4, 3)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, inputs):
        return self.inner(inputs)


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def after(*stack, shape=(8, 8, 3)):
    x = inputs = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, layers.Flatten()(x))


# What is given -> (a function that makes the model, its options, words of the refusal).
REFUSALS = {
    "subclassed": (Subclassed, {}, "a functional or sequential Keras model with known input sh"),
    "unbuilt": (lambda: keras.Sequential([conv(4)]), {}, "with known input shapes is required"),
    "choice": (sequential, {"gated_convs": "other"}, r"'other' must .* 'all' would gate 2 \(conv"),
    "regex": (sequential, {"gated_convs": "("}, "a regular expression or a function of a layer, g"),
    "predicate": (sequential, {"gated_convs": lambda layer: False}, "must choose layers of filte"),
    "no_filters": (lambda: after(layers.Flatten()), {}, "filters of the model; it has none"),
    "hidden": (lambda: after(Hidden(name="mine")), {}, "none; convolutions inside mine are not se"),
    "steps": (
        lambda: after(layers.TimeDistributed(conv(4), name="steps"), shape=(2, 8, 8, 3)),
        {},
        "it has none; convolutions inside steps are not seen",
    ),
    "no_picture": (
        lambda: after(layers.Reshape((4, 4, 3)), conv(4), shape=(48,)),
        {},
        r"the gater needs an input of pictures.*are \[\(None, 48\)\]",
    ),
    "channels_first": (
        lambda: after(conv(4, data_format="channels_first", name="odd"), shape=(3, 8, 8)),
        {},
        "layer 'odd' has data_format='channels_first'; build the model with channels_last",
    ),
    "unregistered": (lambda: after(conv(4), Hidden(name="mine")), {}, "'mine' is a Hidden; make i"),
    "lambda": (lambda: after(conv(4), layers.Lambda(lambda x: x)), {}, "is a Lambda; make it a cl"),
    "size": (
        sequential,
        {"gater": lambda: after(conv(4), shape=(9, 9, 3))},
        r"takes pictures of \(9, 9, 3\), and these are \(8, 8, 3\); give gater_size",
    ),
    "two_pictures": (sequential, {"gater": siamese}, "must be a CNN of one picture"),
    "gater": (sequential, {"gater": "vgg"}, "a network must be resnetD"),
    "bottleneck": (sequential, {"bottleneck": 0}, "bottleneck must be 1 or more, got 0"),
    "gated": (lambda: gate_model(sequential(), "resnet8"), {}, "has gates already; give the plain"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case):
    make, options, words = REFUSALS[case]
    options = {"gater": "resnet8"} | options
    if callable(options["gater"]):
        options["gater"] = options["gater"]()
    with pytest.raises(UserError, match=words) as error:
        gate_model(make(), **options)
    assert "\n" not in str(error.value)


def test_keras_way_through_a_graph():
    inner = tower()
    images = keras.Input((8, 8, 3))
    again = layers.ReLU(name="again")
    x = again(again(inner(images)))
    model = keras.Model([images], {"sum": ops.add(x, 1.0)})
    calls = []

    def call(operation, *args, **kwargs):
        calls.append((operation, args, kwargs))
        return operation.compute_output_spec(*args, **kwargs)

    given = keras.KerasTensor((None, 8, 8, 3))
    outputs = model._run_through_graph([given], call_fn=call)
    operations = [operation for operation, *_ in calls]
    add = operations.pop()
    seen = operations, type(add).__name__, calls[0][1], calls[3][1][1], outputs["sum"].shape
    assert seen == ([inner, again, again], "Add", (given,), 1.0, (None, 8, 8, 6)), (
        f"Keras {keras.__version__} changed Function._run_through_graph, which GraphWalk._run of "
        "gaternet_tf/models/graph.py goes through graphs with: it must call `call_fn(operation, "
        "*args, **kwargs)` node by node, a nested model being one node, and return the outputs in "
        "the model's structure; mend GraphWalk._run, or require an older Keras in setup.cfg"
    )
