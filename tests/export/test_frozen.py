"""A folded, and a specialised, network computes what the Keras model does."""

import numpy as np
import pytest
import tensorflow as tf

from export.frozen import FrozenNetwork
from export.specializing import SpecializedNetwork, agreement, calibrate
from gaternet_tf import UserError, build_gaternet

IMAGES = np.random.default_rng(0).normal(size=(64, 16, 16, 3)).astype(np.float32)
LABELS = np.zeros(64, np.int64)


def network(backbone="resnet8", gater="resnet8", **options):
    """A model with weights as unequal as after training."""
    model = build_gaternet(backbone, gater, (16, 16, 3), 10, **options)
    rng = np.random.default_rng(1)
    for variable in model.weights:
        noise = rng.normal(size=variable.shape)
        positive = "variance" in variable.path or "gamma" in variable.path
        variable.assign(variable + (0.3 * np.abs(noise) if positive else 0.1 * noise))
    return model


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
    np.testing.assert_allclose(actual["logits"], expected["logits"], rtol=1e-4, atol=1e-4)
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
    ],
    ids=["basic", "bottleneck", "released head", "attention"],
)
def test_folded_it_computes_the_same(options):
    model = network(**options)
    assert_equal_outputs(FrozenNetwork(model)(IMAGES), model(IMAGES, training=False))


@pytest.fixture(
    scope="module",
    params=[{"backbone": "resnet14"}, {"backbone": "resnet11", "gated_convs": "all"}],
    ids=["basic", "bottleneck"],
)
def calibrated(request):
    """A model, its outputs, a calibration on the first half of the images, and for each image
    whether it changes a settled gate: some of the second half do."""
    model = with_unit_off(network(**request.param))
    expected = model(IMAGES, training=False)
    calibration = calibrate(model, [(IMAGES[:16], LABELS[:16]), (IMAGES[16:32], LABELS[:16])])
    settled = ~calibration.free
    gates = expected["gates"].numpy() > 0
    changed = (gates[:, settled] != calibration.always_on[settled]).any(axis=1)
    assert changed.any()
    return model, expected, calibration, changed


def test_exact_it_computes_the_same_for_every_batch(calibrated):
    model, expected, calibration, changed = calibrated
    network = SpecializedNetwork(model, calibration, "exact")
    assert_equal_outputs(network(IMAGES), expected)
    assert agreement(model, network, [(IMAGES[:32], None), (IMAGES[32:], None)]) == {
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
    network = SpecializedNetwork(model, calibration, "calibrated")
    first = {name: output[:32] for name, output in expected.items()}
    assert_equal_outputs(network(IMAGES[:32]), first)
    report = agreement(model, network, [(IMAGES[:40], None), (IMAGES[40:], None)])
    assert report["images_with_a_settled_gate_changed"] == changed.sum()


def convolutions(network):
    """Counts the convolutions of a graph."""
    function = tf.function(network)
    graph = function.get_concrete_function(tf.TensorSpec((None, 16, 16, 3))).graph
    return [operation.type for operation in graph.get_operations()].count("Conv2D")


def test_a_unit_without_filters_disappears_and_so_does_a_gater_without_gates():
    model = with_unit_off(network("resnet14"))
    full = convolutions(FrozenNetwork(model))
    calibration = calibrate(model, [(IMAGES[:32], LABELS[:32])])
    short = SpecializedNetwork(model, calibration, "calibrated")
    report = short.report()
    assert report["units_removed"] == 1
    assert 32 <= report["filters_removed"] <= report["gates_settled_off"]
    scattered = sum(
        0 < len(part.channels) < model.get_layer(name).filters
        for name, part in short.settled.items()
    )
    # Its two convolutions are gone; those of other units need one each to scatter their channels.
    assert convolutions(short) == full - 2 + scattered

    settled = calibrate(model, [(IMAGES[:1], LABELS[:1])])
    assert not settled.free.any()
    alone = SpecializedNetwork(model, settled, "calibrated")
    # A ResNet-8 gater has 9 convolutions.
    assert convolutions(alone) < full - 9 + len(alone.settled)
    assert_equal_outputs(alone(IMAGES[:1]), model(IMAGES[:1], training=False))


def test_macs_of_what_is_left_equal_a_count_by_hand():
    # 16x16 pictures; stages of 16, 32 and 64 filters on 16x16, 8x8 and 4x4; one unit each.
    model = network("resnet8")
    kernel, bias = model.get_layer("gater_fc2").weights
    kernel.assign(np.zeros(kernel.shape))
    values = np.full(112, 9.0)
    values[:4] = -9  # 4 of stage 1's 16
    values[16:48] = -9  # all of stage 2
    bias.assign(values)
    calibration = calibrate(model, [(IMAGES, LABELS)])
    assert not calibration.free.any()
    backbone = 256 * 27 * 16 + 256 * 144 * 16 * 2 + 64 * 144 * 32 + 64 * 288 * 32 + 64 * 16 * 32
    backbone += 16 * 288 * 64 + 16 * 576 * 64 + 16 * 32 * 64 + 64 * 10
    gater = backbone - 640 + 64 * 8 + 8 * 112
    left = backbone - 256 * 144 * 4 + 256 * 12 * 16 - (64 * 144 * 32 + 64 * 288 * 32)
    for mode, expected in {"calibrated": left, "exact": left + gater}.items():
        report = SpecializedNetwork(model, calibration, mode).report()
        assert report["macs_before"] == backbone + gater
        assert report["macs_after"] == expected


@pytest.mark.parametrize("gated_convs", ["shortcut", "stem"])
def test_gates_whose_filters_cannot_be_left_out_are_refused(gated_convs):
    model = network(gated_convs=gated_convs)
    with pytest.raises(UserError, match=r"specialize needs gates .* it goes into stage"):
        SpecializedNetwork(model, calibrate(model, [(IMAGES, LABELS)]), "calibrated")
