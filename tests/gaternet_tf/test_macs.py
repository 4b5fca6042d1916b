"""Multiply-accumulates against a count by hand."""

import keras
import numpy as np
import pytest

from gaternet_tf import build_gaternet, layers
from gaternet_tf.evaluation import Evaluator
from gaternet_tf.macs import gate_macs, layer_macs


def by_hand(classes=10):
    """ResNet-8 on 8x8x1: (height * width) * k * k * in * out, layer by layer."""
    return {
        "stem": 64 * 9 * 1 * 16,
        "stage1_unit1_conv1": 64 * 9 * 16 * 16,
        "stage1_unit1_conv2": 64 * 9 * 16 * 16,
        "stage2_unit1_conv1": 16 * 9 * 16 * 32,
        "stage2_unit1_conv2": 16 * 9 * 32 * 32,
        "stage2_unit1_shortcut": 16 * 16 * 32,
        "stage3_unit1_conv1": 4 * 9 * 32 * 64,
        "stage3_unit1_conv2": 4 * 9 * 64 * 64,
        "stage3_unit1_shortcut": 4 * 32 * 64,
        "logits": 64 * classes,
    }


def test_a_plain_network():
    assert layer_macs(build_gaternet("resnet8", "none", (8, 8, 1))) == by_hand()


def test_the_gater_is_counted():
    hand = {f"gater_{name}": macs for name, macs in by_hand().items() if name != "logits"}
    hand |= {"gater_fc1": 64 * 8, "gater_fc2": 8 * 112}
    assert layer_macs(build_gaternet("resnet8", "resnet8", (8, 8, 1))) == by_hand() | hand


def test_squeeze_and_excitation_is_counted():
    found = layer_macs(build_gaternet("resnet8", "none", (8, 8, 1), attention="se"))
    assert found["stage1_unit1_se"] == 16 * 1 + 1 * 16
    assert found["stage3_unit1_se"] == 64 * 4 + 4 * 64


def test_layers_of_any_kind_are_counted_by_what_they_are():
    def counted(layer, shape):
        inputs = keras.Input(shape)
        inner = keras.Model(inputs, layer(inputs), name="inner")
        outer = keras.Input(shape)
        return layer_macs(keras.Model(outer, inner(outer)))["inner"]

    kind = keras.layers
    assert counted(kind.Conv2D(6, 3), (8, 10, 4)) == 6 * 8 * 9 * 4 * 6
    assert counted(kind.Conv2D(6, 3, groups=2), (8, 10, 4)) == 6 * 8 * 9 * 2 * 6
    assert counted(kind.Conv2D(6, 3, data_format="channels_first"), (4, 8, 10)) == 6 * 8 * 9 * 4 * 6
    assert counted(kind.Conv1D(6, 3), (8, 4)) == 6 * 3 * 4 * 6
    assert counted(kind.DepthwiseConv2D(3, depth_multiplier=2), (8, 10, 4)) == 6 * 8 * 9 * 4 * 2
    assert counted(kind.SeparableConv2D(6, 3), (8, 10, 4)) == 6 * 8 * (9 * 4 + 4 * 6)
    assert counted(kind.Conv2DTranspose(6, 3, 2), (8, 10, 4)) == 8 * 10 * 9 * 4 * 6
    assert counted(kind.Dense(6), (8, 10, 4)) == 8 * 10 * 4 * 6
    assert counted(layers.GatedConv2D(6, 3, 2), (8, 10, 4)) == 4 * 5 * 9 * 4 * 6
    with pytest.raises(ValueError, match=r"images of one size, and layer 'any'"):
        counted(kind.Conv2D(6, 3, name="any"), (None, None, 4))


def gated_by(use):
    """A model with layers of other names than ours, whose gates `use` takes."""
    images = keras.Input((8, 8, 4))
    gates = layers.SemHash()(keras.layers.Dense(11)(keras.layers.Flatten()(images)))
    return keras.Model(images, use(images, gates))


def test_gates_are_followed_to_their_convolutions_whatever_these_are_called(tmp_path):
    def use(images, gates):
        place = {"stage": 1, "unit": 1}
        rows = [place | {"convolution": n, "channels": 4 + n} for n in (1, 2)]
        one, other = layers.GateSplit(rows)(gates)
        x = layers.GatedConv2D(6, 3, 2, name="second")(images, gates=other)
        return layers.GatedConv2D(5, 1, name="first")(x, gates=one)

    gated_by(use).save(tmp_path / "model.keras")
    for model in (gated_by(use), keras.models.load_model(tmp_path / "model.keras")):
        np.testing.assert_array_equal(gate_macs(model), [16 * 6] * 5 + [16 * 9 * 4] * 6)
    with pytest.raises(ValueError, match="GateSplit hands each GatedConv2D its gates, and model"):
        gate_macs(gated_by(lambda images, gates: layers.GatedConv2D(11, 3)(images, gates=gates)))


def test_an_off_filter_saves_its_own_work_and_no_more():
    model = build_gaternet("resnet8", "resnet8", (8, 8, 1))
    costs = [64 * 9 * 16] * 16 + [16 * 9 * 32] * 32 + [4 * 9 * 64] * 64
    np.testing.assert_array_equal(gate_macs(model), costs)
    everything = gate_macs(build_gaternet("resnet8", "resnet8", (8, 8, 1), gated_convs="all"))
    hand = by_hand()
    assert everything.sum() == sum(macs for name, macs in hand.items() if "_conv" in name)


def test_evaluation_leaves_off_filters_out_image_by_image():
    model = build_gaternet("resnet8", "resnet8", (8, 8, 1), seed=2)
    images = np.random.default_rng(0).normal(size=(9, 8, 8, 1)).astype(np.float32)
    result = Evaluator(model)([(images[:5], np.zeros(5, int)), (images[5:], np.zeros(4, int))])
    gates = np.asarray(model(images, training=False)["gates"])
    saved = ((1 - gates) * gate_macs(model)).sum(axis=1)
    assert saved.mean() > 0
    total = sum(layer_macs(model).values())
    assert result["macs"] == total
    np.testing.assert_allclose(result["macs_on"], total - saved.mean(), rtol=1e-6)


def test_stage_rates_are_means_over_a_stages_gates():
    model = build_gaternet("resnet8", "resnet8", (8, 8, 1), seed=2)
    images = np.random.default_rng(1).normal(size=(6, 8, 8, 1)).astype(np.float32)
    result = Evaluator(model)([(images, np.zeros(6, int))])
    gates = np.asarray(model(images, training=False)["gates"])
    np.testing.assert_allclose(result["gate_rate_stage1"], gates[:, :16].mean())
    np.testing.assert_allclose(result["gate_rate_stage3"], gates[:, 48:].mean())
    assert isinstance(model, keras.Model)
