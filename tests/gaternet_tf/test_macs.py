"""Multiply-accumulates against a count by hand."""

import keras
import numpy as np
import pytest

from gaternet_tf import build_gaternet, gate_map, gate_model
from gaternet_tf.evaluation import Evaluator
from gaternet_tf.macs import Macs, layer_macs, macs_of


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
    twice = kind.Conv2D(4, 3, padding="same")
    assert counted(lambda x: twice(twice(x)), (8, 10, 4)) == 2 * 80 * 9 * 4 * 4
    with pytest.raises(ValueError, match=r"images of one size, and layer 'any'"):
        counted(kind.Conv2D(6, 3, name="any"), (None, None, 4))


def gates_with(model, **off):
    """[1, gates], all on but the first `off[layer]` of each layer."""
    return np.array([[gate.channel >= off.get(gate.layer, 0) for gate in gate_map(model)]])


def saved(build, **off):
    """What is saved where so many filters of each layer are off; `build(images)` is the network."""
    images = keras.Input((8, 8, 4))
    macs = macs_of(model := gate_model(keras.Model(images, build(images)), "resnet8"))
    np.testing.assert_array_equal(macs(gates_with(model)), macs.total)
    assert Macs.from_rows(macs.to_rows()).products == macs.products
    (left,) = macs(gates_with(model, **off))
    return macs.total - left


def conv(filters, size=3, name=None, kind=keras.layers.Conv2D, **options):
    return kind(filters, size, padding="same", name=name, **options)


def test_an_off_filter_saves_its_own_work_and_its_place_in_the_next_layers_input():
    kind = keras.layers

    def chain(x):
        x = conv(6, name="a")(x)
        x = kind.ReLU()(kind.BatchNormalization()(x))
        x = conv(5, name="b", strides=2, activation="relu")(kind.AveragePooling2D(2)(x))
        return kind.Dense(3)(kind.Flatten()(x))

    assert saved(chain, a=2) == 64 * 9 * 4 * 2 + 4 * 9 * 2 * 5
    assert saved(chain, b=2) == 4 * 9 * 6 * 2 + 4 * 2 * 3
    # Two of b's filters would read two of a's, which is saved once.
    both = saved(chain, a=2) + saved(chain, b=2) - 4 * 9 * 2 * 2
    assert saved(chain, a=2, b=2) == both


def test_a_depthwise_convolution_before_the_gate_saves_its_channel():
    kind = keras.layers

    def inverted(x):
        y = kind.ReLU()(kind.BatchNormalization()(conv(12, 1, "expand")(x)))
        y = kind.ReLU()(kind.DepthwiseConv2D(3, padding="same", name="depthwise")(y))
        scale = kind.Reshape((1, 1, 12))(kind.GlobalAveragePooling2D()(y))
        scale = kind.Dense(12, activation="sigmoid")(kind.Dense(3, activation="relu")(scale))
        y = conv(4, 1, "project")(kind.Multiply()([y, scale]))
        return kind.GlobalAveragePooling2D()(kind.Add()([x, y]))

    assert saved(inverted, expand=5) == 64 * (5 * 4 + 5 * 9 + 5 * 4) + 5 * 3
    # Behind the sum all channels are read.
    assert saved(inverted, project=3) == 64 * 12 * 3


def test_groups_and_layers_of_two_parts():
    kind = keras.layers

    def grouped(x):
        x = conv(8, name="a", activation="relu")(x)
        x = conv(6, name="b", groups=2, activation="relu")(x)
        x = conv(5, name="c", kind=kind.SeparableConv2D, depth_multiplier=2)(x)
        x = kind.LayerNormalization()(x)
        return conv(2, name="d", kind=kind.Conv2DTranspose, strides=2)(x)

    # The first 5 filters of a are a whole group of b's and one of the other's.
    assert saved(grouped, a=5) == 64 * 9 * (4 * 5 + 4 * 3 + 1 * 3)
    assert saved(grouped, a=5, b=1) == 64 * (9 * (4 * 5 + 4 * 3 + 1 * 3) + 2 * (9 + 5))
    assert saved(grouped, c=2) == 64 * 6 * 2 * 2
    assert saved(grouped, d=1) == 64 * 9 * 5


def test_gates_of_a_residual_network():
    hand, shape = by_hand(), (8, 8, 1)
    last = build_gaternet("resnet8", "resnet8", shape)
    macs = macs_of(last)
    # They land before a sum, so that each saves its own work alone.
    off = dict.fromkeys(hand, 1)
    own = 64 * 9 * 16 + 16 * 9 * 32 + 4 * 9 * 64
    assert macs.total - macs(gates_with(last, **off)) == own
    nothing = macs(np.zeros([1, 112], bool))
    assert macs.total - nothing == sum(each for name, each in hand.items() if "_conv2" in name)
    every = build_gaternet("resnet8", "resnet8", shape, gated_convs="all")
    macs = macs_of(every)
    assert macs.total - macs(np.zeros([1, 224], bool)) == sum(
        each for name, each in hand.items() if "_conv" in name
    )
    (left,) = macs(gates_with(every, stage2_unit1_conv1=3))
    assert macs.total - left == 16 * 9 * (16 * 3 + 3 * 32)


@pytest.mark.parametrize(("name", "millions"), [("ResNet50", 3858), ("MobileNetV2", 301)])
def test_published_networks(name, millions):
    model = getattr(keras.applications, name)(weights=None)
    assert round(macs_of(model).total / 1e6) == millions


def test_evaluation_takes_the_mean_over_images():
    model = build_gaternet("resnet8", "resnet8", (8, 8, 1), seed=2, gated_convs="all")
    images = np.random.default_rng(0).normal(size=(9, 8, 8, 1)).astype(np.float32)
    result = Evaluator(model)([(images[:5], np.zeros(5, int)), (images[5:], np.zeros(4, int))])
    macs = macs_of(model)
    left = macs(np.asarray(model(images, training=False)["gates"]) > 0)
    assert len(set(left)) > 1
    assert (result["macs"], result["macs_on"]) == (macs.total, left.mean())
