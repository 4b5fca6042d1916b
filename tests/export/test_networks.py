"""A folded, specialised or conditional network computes what the Keras model does."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from export.conditional import GATHER, KERNEL, MULTIPLY, ConditionalNetwork, gate_places
from export.costs import Costs, choose
from export.folding import fold
from export.program import Affine, Call, Filters, read_program
from export.session import Request, run_requests
from export.settling import settle
from export.signatures import write_saved_model
from export.specializing import SpecializedNetwork, agreement, calibrate
from gaternet_tf import build_gaternet, gate_model
from gaternet_tf.data import Preprocessing

IMAGES = np.random.default_rng(0).normal(size=(64, 16, 16, 3)).astype(np.float32)
LABELS = np.zeros(64, np.int64)


def jolted(model):
    """A model with weights as unequal as after training."""
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if "seed" not in variable.path:
            noise = rng.normal(size=variable.shape)
            positive = "variance" in variable.path or "gamma" in variable.path
            variable.assign(variable + (0.3 * np.abs(noise) if positive else 0.1 * noise))
    return model


def network(backbone="resnet8", gater="resnet8", **options):
    return jolted(build_gaternet(backbone, gater, (16, 16, 3), 10, **options))


def menagerie():
    """A network with every kind of step, and kinds that are called as they are."""
    normalize = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])
    shared = layers.Conv2D(8, 1, name="shared")
    images = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(normalize(images))
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    y = layers.SeparableConv2D(8, 3, padding="same", name="separable")(x)
    y = layers.Activation("gelu")(layers.BatchNormalization(center=False)(y))
    y = layers.Conv2D(8, 3, padding="same", name="last")(y)
    x = layers.Add()([x, y, shared(x)])
    x = keras.ops.relu(layers.BatchNormalization(scale=False)(x))
    y = layers.Conv2D(16, 1, activation="silu", name="expand")(x)
    y = layers.DepthwiseConv2D(3, strides=2, padding="same", name="depthwise")(y)
    y = layers.BatchNormalization()(y)
    s = layers.Dense(4, "relu", name="squeeze")(layers.GlobalAveragePooling2D()(y))
    s = layers.Dense(16, "softmax", name="excite")(s)
    y = layers.Multiply()([y, layers.Reshape((1, 1, 16))(s)])
    z = layers.Conv2D(8, 3, strides=2, groups=2, padding="same", name="grouped")(x)
    x = layers.Concatenate()([y, z, layers.MaxPooling2D()(shared(x))])
    x = layers.Conv2D(12, 3, dilation_rate=2, padding="same", name="dilated")(x)
    x = layers.Dense(8, "relu", name="dense")(layers.LayerNormalization()(x))
    x = layers.AveragePooling2D(2, padding="same")(layers.ZeroPadding2D()(x))
    x = layers.Conv2D(6, 1, name="after")(layers.Activation("sigmoid")(x))
    x = layers.Conv2D(6, 2, name="narrow")(layers.Conv2DTranspose(6, 2, name="transposed")(x))
    x = layers.Dropout(0.5)(layers.Flatten()(x))
    inner = keras.Sequential([keras.Input((150,)), layers.Dense(8, "tanh"), layers.Dense(10)])
    return jolted(gate_model(keras.Model(images, inner(x)), "resnet8", gater_size=8))


def with_unit_off(model):
    """The second convolution's gates of the second unit are off for every image, some others on."""
    bias = model.get_layer("gater_fc2").bias
    segments = model.get_layer("gate_split").segments
    values = np.asarray(bias) + np.random.default_rng(2).normal(size=bias.shape)
    start = 0
    for segment in segments:
        stop = start + segment["channels"]
        values[start : start + 2] = 9
        if segment["layer"].startswith("stage2_unit1_"):
            values[start:stop] = -9
        start = stop
    bias.assign(values)
    return model


def assert_equal_outputs(actual, expected):
    assert actual.keys() == expected.keys()
    scale = np.abs(expected["logits"]).max()
    np.testing.assert_allclose(actual["logits"], expected["logits"], rtol=1e-4, atol=1e-4 * scale)
    probabilities = [tf.nn.softmax(outputs["logits"]) for outputs in (actual, expected)]
    np.testing.assert_allclose(*probabilities, atol=1e-5)
    if "gates" in expected:
        np.testing.assert_array_equal(actual["gates"], expected["gates"])
        assert 0.05 < np.mean(expected["gates"]) < 0.95


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "resnet14"},
        {"backbone": "resnet11", "gated_convs": "all"},
        {"head_batch_norm": False},
        {"gater": "none", "attention": "se"},
        {"backbone": "densenet-bc-16-4", "gated_convs": "all"},
    ],
    ids=["basic", "bottleneck", "released head", "attention", "dense"],
)
def test_folded_it_computes_the_same(options):
    model = network(**options)
    assert_equal_outputs(fold(read_program(model))(IMAGES), model(IMAGES, training=False))


def test_what_is_not_known_is_called_and_what_cannot_be_folded_stays():
    model = menagerie()
    program = fold(read_program(model))
    assert_equal_outputs(program(IMAGES), model(IMAGES, training=False))
    called = {type(step.operation).__name__ for step in program.steps if isinstance(step, Call)}
    assert called == {"LayerNormalization", "Conv2DTranspose", "Resizing", "Dense"}
    # The pictures' own, and those behind the sum: the next layer pads, or others read it, too.
    assert [type(step) for step in program.steps].count(Affine) == 3
    plain = keras.Model(model.input, model.output["logits"])
    weights = model.get_layer("gater_fc2")
    weights.set_weights([0 * weights.kernel, np.ones(weights.bias.shape)])
    np.testing.assert_allclose(
        program.without_gates()(IMAGES)["logits"],
        plain(IMAGES, training=False),
        rtol=1e-3,
        atol=1e-4,
    )


def menagerie_with_some_off():
    model = menagerie()
    kernel, bias = model.get_layer("gater_fc2").weights
    kernel.assign(4 * kernel)
    values = np.asarray(bias) + np.random.default_rng(3).normal(size=bias.shape)
    values[::3], values[1::5] = -99, 99
    bias.assign(values)
    return model


@pytest.fixture(
    scope="module",
    params=[
        lambda: with_unit_off(network("resnet14")),
        lambda: with_unit_off(network("resnet11", gated_convs="all")),
        menagerie_with_some_off,
    ],
    ids=["basic", "bottleneck", "menagerie"],
)
def calibrated(request):
    """A model, its outputs, a calibration on the first half of the images, and for each image
    whether it changes a settled gate: some of the second half do."""
    model = request.param()
    expected = model(IMAGES, training=False)
    calibration = calibrate(model, [(IMAGES[:16], LABELS[:16]), (IMAGES[16:32], LABELS[:16])])
    settled = ~calibration.free
    gates = expected["gates"].numpy() > 0
    changed = (gates[:, settled] != calibration.always_on[settled]).any(axis=1)
    assert changed.any()
    return model, expected, calibration, changed


def test_exact_it_computes_the_same_for_every_batch(calibrated):
    model, expected, calibration, changed = calibrated
    network = SpecializedNetwork(fold(read_program(model)), calibration, "exact")
    assert_equal_outputs(network(IMAGES), expected)
    assert agreement(model, network, calibration, [(IMAGES[:32], None), (IMAGES[32:], None)]) == {
        "held_out_images": 64,
        "images_with_a_settled_gate_changed": changed.sum(),
        "images_with_another_prediction": 0,
        "batch_size": 32,
        "batches": 2,
        # It was calibrated on the first one.
        "batches_in_full": 1,
    }


def test_calibrated_it_computes_the_same_where_settled_gates_agree_and_reports_where_not(
    calibrated,
):
    model, expected, calibration, changed = calibrated
    network = SpecializedNetwork(fold(read_program(model)), calibration, "calibrated")
    first = {name: output[:32] for name, output in expected.items()}
    assert_equal_outputs(network(IMAGES[:32]), first)
    report = agreement(model, network, calibration, [(IMAGES[:40], None), (IMAGES[40:], None)])
    assert report["images_with_a_settled_gate_changed"] == changed.sum()


def convolutions(program):
    """Counts the layers of convolutions of a program."""
    return sum(isinstance(step, Filters) and step.kind == "conv" for step in program.steps)


def test_a_unit_without_filters_disappears_and_so_does_a_gater_without_gates():
    model = with_unit_off(network("resnet14"))
    full = fold(read_program(model))
    calibration = calibrate(model, [(IMAGES[:32], LABELS[:32])])
    short = SpecializedNetwork(full, calibration, "calibrated")
    report = short.report()
    assert report["layers_removed"] == 2
    assert report["filters_removed"] >= 64
    assert convolutions(short.short) == convolutions(full) - 2

    settled = calibrate(model, [(IMAGES[:1], LABELS[:1])])
    assert not settled.free.any()
    alone = SpecializedNetwork(full, settled, "calibrated")
    # A ResNet-8 gater has 9 convolutions.
    assert convolutions(alone.short) == convolutions(short.short) - 9
    assert_equal_outputs(alone(IMAGES[:1]), model(IMAGES[:1], training=False))


def test_a_server_loads_a_program_that_calls_layers(tmp_path):
    model = menagerie()
    network = fold(read_program(model))
    preprocessing = Preprocessing(16, 16, 3, (0.5,) * 3, (0.2,) * 3)
    write_saved_model(network, preprocessing, [str(n) for n in range(10)], str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    (answer,) = run_requests([Request(tmp_path, "gates", {"images": pixels})])
    assert not answer.error
    expected = model(preprocessing.normalize(pixels), training=False)
    np.testing.assert_array_equal(answer.outputs["gates"], expected["gates"])
    np.testing.assert_allclose(
        answer.outputs["probabilities"], tf.nn.softmax(expected["logits"]), atol=1e-5
    )


def test_a_network_that_is_all_off_is_a_constant():
    model = menagerie()
    off = np.ones(model.output["gates"].shape[1], bool)
    program = settle(fold(read_program(model)), ~off, off)
    head = model.get_layer("gater_fc2")
    head.set_weights([0 * head.kernel, np.full(head.bias.shape, -1.0)])
    np.testing.assert_allclose(
        program(IMAGES)["logits"], model(IMAGES, training=False)["logits"], rtol=1e-4, atol=1e-5
    )
    assert not program(IMAGES)["gates"].numpy().any()


def test_macs_of_what_is_left_equal_a_count_by_hand():
    # 16x16 pictures; stages of 16, 32 and 64 filters on 16x16, 8x8 and 4x4; one unit each.
    model = network("resnet8")
    kernel, bias = model.get_layer("gater_fc2").weights
    kernel.assign(np.zeros(kernel.shape))
    values = np.full(112, 9.0)
    values[:12] = -9  # 12 of stage 1's 16
    values[16:48] = -9  # all of stage 2
    bias.assign(values)
    calibration = calibrate(model, [(IMAGES, LABELS)])
    assert not calibration.free.any()
    backbone = 256 * 27 * 16 + 256 * 144 * 16 * 2 + 64 * 144 * 32 + 64 * 288 * 32 + 64 * 16 * 32
    backbone += 16 * 288 * 64 + 16 * 576 * 64 + 16 * 32 * 64 + 64 * 10
    gater = backbone - 640 + 64 * 8 + 8 * 112
    # The 4 filters left are put to their places by a 1x1 convolution.
    left = backbone - 256 * 144 * 12 + 256 * 4 * 16 - (64 * 144 * 32 + 64 * 288 * 32)
    for mode, expected in {"calibrated": left, "exact": left + gater}.items():
        report = SpecializedNetwork(fold(read_program(model)), calibration, mode).report()
        assert report["macs_before"] == backbone + gater
        assert report["macs_after"] == expected


@pytest.mark.parametrize(
    ("make", "choice", "least"),
    [
        (lambda: with_unit_off(network("resnet11", gated_convs="all")), GATHER, 6),
        (menagerie_with_some_off, GATHER, 1),
        (menagerie_with_some_off, KERNEL, 4),
    ],
    ids=["bottleneck", "menagerie", "kernel"],
)
@pytest.mark.parametrize("batch", [8, 64], ids=["together", "one by one"])
def test_conditional_it_computes_the_same(make, choice, least, batch):
    model = make()
    settled = np.zeros(model.output["gates"].shape[1], bool)
    program = settle(fold(read_program(model)), settled, settled)
    chosen = {
        place: choice if choice in place.options else place.options[-1]
        for place in gate_places(program)
    }
    assert collections.Counter(chosen.values())[choice] >= least
    network = ConditionalNetwork(program, chosen, batch)
    assert network.batch == batch
    expected = model(IMAGES, training=False)
    assert_equal_outputs(tf.function(lambda images: network(images))(IMAGES), expected)
    assert len(np.unique(expected["gates"], axis=0)) > 10


def test_a_picture_whose_gates_are_all_off_is_computed_too():
    model = network("resnet11", gated_convs="all")
    head = model.get_layer("gater_fc2")
    head.set_weights([0 * head.kernel, np.full(head.bias.shape, -1.0)])
    settled = np.zeros(head.units, bool)
    program = settle(fold(read_program(model)), settled, settled)
    chosen = {place: place.options[-1] for place in gate_places(program)}
    outputs = ConditionalNetwork(program, chosen, 4)(tf.constant(IMAGES[:2]))
    expected = model(IMAGES[:2], training=False)["logits"]
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-5)


class Table(Costs):
    """Costs that say that one way is cheap."""

    def __init__(self, cheap):
        super().__init__()
        self.cheap = cheap

    def of(self, step, place, inputs, how, outputs):
        return 1.0 if how == self.cheap else 2.0


def test_what_costs_least_is_chosen():
    model = network("resnet11", gated_convs="all")
    program = fold(read_program(model))
    places = gate_places(program)
    rates = np.full(model.output["gates"].shape[1], 0.5)
    for way in (MULTIPLY, KERNEL, GATHER):
        chosen = choose(program, places, rates, Table(way))
        assert all(chosen[place] == way for place in places if way in place.options)
    assert sum(GATHER in place.options for place in places) == 6


def test_costs_are_measured_once_and_kept_in_a_file(tmp_path):
    program = fold(read_program(network("resnet8")))
    file = str(tmp_path / "cost.json")
    for expected in (6, 0):  # Three layers, two ways each.
        costs = Costs(file)
        choose(program, gate_places(program), np.full(112, 0.5), costs)
        costs.save()
        assert costs.measured == expected
