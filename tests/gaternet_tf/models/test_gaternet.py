"""The networks: counts, the gate map, what a gate does, and which weights get gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import run_python

from gaternet_tf import GateMap, UserError, build_gaternet, gate_map
from gaternet_tf.models.gate_map import Gate
from gaternet_tf.models.resnet_cifar import resnet_spec

IMAGES = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)


def count(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def small(**changes):
    settings = {"backbone": "resnet8", "gater": "resnet8", "input_shape": (16, 16, 3)}
    return build_gaternet(**(settings | changes))


@pytest.mark.parametrize(
    ("backbone", "gates", "plain", "gated"),
    [
        ("resnet20", 336, 272_474, 547_842),
        ("resnet56", 1008, 855_770, 1_137_186),
        ("resnet164", 7200, 1_620_058, 1_957_202),
    ],
)
def test_gates_and_parameters_are_those_of_the_paper(backbone, gates, plain, gated):
    model = build_gaternet(backbone, "resnet20", head_batch_norm=False)
    assert len(gate_map(model)) == gates
    assert model.output["gates"].shape == (None, gates)
    assert count(model) == gated
    assert count(build_gaternet(backbone, "none")) == plain


def test_head_batch_norm_adds_a_scale_and_a_shift_for_each_bottleneck_unit():
    assert count(small()) - count(small(head_batch_norm=False)) == 2 * 8


def test_gate_map_of_resnet164():
    gates = gate_map(build_gaternet("resnet164"))
    assert gates[0] == Gate(layer="stage1_unit1_conv3", unit="stage1_unit1", channel=0)
    assert gates[18 * 16] == Gate("stage2_unit1_conv3", "stage2_unit1", 0)
    assert gates[18 * (16 + 128)] == Gate("stage3_unit1_conv3", "stage3_unit1", 0)
    assert gates[7199] == gates[-1] == Gate("stage3_unit18_conv3", "stage3_unit18", 255)
    assert len(gates.units) == 54
    assert [segment.channels for segment in gates.segments] == [16] * 18 + [128] * 18 + [256] * 18


def test_all_convolutions_gated():
    gates = gate_map(small(gated_convs="all"))
    assert len(gates) == 2 * (16 + 32 + 64)
    assert gates[16] == Gate("stage1_unit1_conv2", "stage1_unit1", 0)
    assert gate_map(build_gaternet("resnet164", gated_convs="all")).segments[0].channels == 4


def test_gate_map_survives_its_rows_and_is_empty_without_gates():
    gates = gate_map(small())
    assert GateMap.from_rows(gates.to_rows()) == gates
    assert len(gate_map(small(gater=None))) == 0
    assert set(small(gater="none")(IMAGES)) == {"logits"}


def probe(model, switched):
    """Outputs of every gated layer, unit by unit, with the gates given as a vector."""
    names = [layer.name for layer in model.layers if layer.name.startswith(("stem", "stage"))]
    inner = keras.Model(
        [model.get_layer("gates").output, model.input],
        {name: model.get_layer(name).output for name in names} | {"logits": model.output["logits"]},
    )
    gates = np.broadcast_to(switched, (len(IMAGES), len(switched))).astype(np.float32)
    return {name: np.asarray(value) for name, value in inner([gates, IMAGES]).items()}


@pytest.mark.parametrize("gated_convs", ["last", "all"])
def test_all_gates_on_equals_the_plain_network(gated_convs):
    gated, plain = small(gated_convs=gated_convs), small(gater=None)
    all_on = probe(gated, np.ones(len(gate_map(gated))))["logits"]
    np.testing.assert_allclose(all_on, plain(IMAGES)["logits"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("gated_convs", "index"), [("last", 20), ("last", 111), ("all", 5)])
def test_an_off_gate_zeroes_its_channel_of_its_units_branch_and_nothing_else(gated_convs, index):
    model = small(gated_convs=gated_convs)
    gate = gate_map(model)[index]
    gates = np.ones(len(gate_map(model)))
    all_on = probe(model, gates)
    gates[index] = 0
    one_off = probe(model, gates)
    name = f"{gate.layer}_gate"
    expected = all_on[name].copy()
    assert np.abs(expected[..., gate.channel]).max() > 0
    expected[..., gate.channel] = 0
    np.testing.assert_array_equal(one_off[name], expected)
    # Before it in the network, and on the shortcut beside it, nothing changes.
    units = ["stem", *dict.fromkeys(gate.unit for gate in gate_map(model))]
    before = tuple(units[: units.index(gate.unit)])
    unchanged = [other for other in all_on if other.startswith((*before, f"{gate.unit}_shortcut"))]
    assert len(unchanged) > 2
    for other in unchanged:
        np.testing.assert_array_equal(one_off[other], all_on[other])
    assert np.abs(one_off["logits"] - all_on["logits"]).max() > 0


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_gradients_reach_every_variable(policy):
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        model = small()
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    with tf.GradientTape() as tape:
        outputs = model(IMAGES, training=True)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits([0, 1, 2, 3], outputs["logits"])
        loss = tf.reduce_mean(loss)
    assert outputs["logits"].dtype == outputs["gates"].dtype == tf.float32
    gradients = tape.gradient(loss, model.trainable_variables)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.isfinite(gradient).all(), variable.path
        assert np.abs(gradient).max() > 0, variable.path


def test_layers_start_from_different_weights_that_repeat_with_the_seed():
    kernels = [
        variable.numpy()
        for variable in small(seed=1).trainable_variables
        if variable.name == "kernel"
    ]
    flat = [kernel.ravel()[:8].tobytes() for kernel in kernels]
    assert len(set(flat)) == len(flat)
    again = [v.numpy() for v in small(seed=1).trainable_variables if v.name == "kernel"]
    other = [v.numpy() for v in small(seed=2).trainable_variables if v.name == "kernel"]
    for kernel, same, different in zip(kernels, again, other, strict=True):
        np.testing.assert_array_equal(kernel, same)
        assert (kernel != different).any()


def test_biases_start_at_zero():
    for variable in small().trainable_variables:
        if variable.name == "bias":
            np.testing.assert_array_equal(variable, 0.0)


def test_image_size_channels_and_classes_are_arguments():
    model = build_gaternet("resnet8", "resnet8", input_shape=(9, 7, 1), num_classes=3)
    outputs = model(np.zeros([2, 9, 7, 1], np.float32))
    assert outputs["logits"].shape == (2, 3)
    assert outputs["gates"].shape == (2, 112)


@pytest.mark.parametrize(
    ("name", "bottleneck", "units"),
    [
        ("resnet8", False, 1),
        ("resnet20", False, 3),
        ("resnet56", False, 9),
        ("resnet110", False, 18),
        ("resnet164", True, 18),
        ("resnet29", True, 3),
        ("resnet1202", False, 200),
        ("resnet1001", True, 111),
        ("resnet20-bottleneck", True, 2),
        ("resnet164-basic", False, 27),
    ],
)
def test_legal_depths(name, bottleneck, units):
    spec = resnet_spec(name)
    assert (spec.bottleneck, spec.units_per_stage) == (bottleneck, units)


@pytest.mark.parametrize("name", ["resnet2", "resnet21", "resnet18", "resnet29-basic", "resnet0"])
def test_an_illegal_depth_is_refused_with_the_legal_series(name):
    with pytest.raises(UserError) as error:
        resnet_spec(name)
    assert name in str(error.value)
    if name != "resnet0":
        assert "6n+2" in str(error.value)
        assert "9n+2" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"backbone": "vgg"}, "a network must be resnetD .*got 'vgg'"),
        ({"gater": "resnet9"}, "6n\\+2"),
        ({"gated_convs": "some"}, "'some' must choose layers of .*'all' would gate 9 \\(stem, "),
        ({"num_classes": 1}, "num_classes must be 2 or more, got 1"),
        ({"bottleneck": 0}, "bottleneck must be 1 or more, got 0"),
        ({"input_shape": (32, 32)}, "height, width, channels"),
        ({"input_shape": (32, 4, 3)}, "must be 5 x 5 pixels or larger.*got .32, 4, 3"),
    ],
)
def test_arguments_are_checked(arguments, words):
    with pytest.raises(UserError, match=words):
        small(**arguments)


def test_another_backend_is_refused_with_what_to_do(tmp_path):
    code = "import os; os.environ['KERAS_BACKEND'] = 'jax'; import gaternet_tf"
    last_line = run_python("-c", code, cwd=tmp_path).err.splitlines()[-1]
    assert "ImportError: gaternet_tf needs Keras on TensorFlow" in last_line
    assert "backend is jax; set KERAS_BACKEND=tensorflow" in last_line


def test_a_missing_tensorflow_is_named_with_the_extra_that_brings_it(tmp_path):
    code = "import sys; sys.modules['tensorflow'] = None; import gaternet_tf"
    last_line = run_python("-c", code, cwd=tmp_path).err.splitlines()[-1]
    assert "gaternet_tf needs Keras on TensorFlow, and tensorflow is not installed" in last_line
    assert "pip install '.[train]'" in last_line
