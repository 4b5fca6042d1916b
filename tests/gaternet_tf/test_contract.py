"""What every public layer, loss and metric promises, checked by one harness."""

import contextlib
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from gaternet_tf import layers, losses

SEGMENTS = [{"layer": "conv", "unit": "block", "channels": 3}]

# Class -> (arguments that differ from the defaults, shape of a sample's input).
LAYERS = {
    layers.SemHash: ({"seed": 3, "noise_stddev": 0.5, "hard_share": 0.25}, (3,)),
    layers.GateFilters: ({}, (6, 6, 2)),
    layers.BatchNormalization: ({"momentum": 0.8, "epsilon": 1e-4}, (4, 6, 3)),
    layers.GateSplit: ({"segments": SEGMENTS}, (3,)),
    layers.SqueezeExcite: ({"ratio": 2, "seed": 4}, (6, 6, 4)),
}
LOSSES = {
    losses.SparsityLoss: {"weight": 0.3},
    losses.SmoothedCrossentropy: {"smoothing": 0.1},
    losses.GateRate: {"name": "rate"},
}
POLICIES = ["float32", "mixed_bfloat16", "mixed_float16", "float64", "bfloat16", "float16"]

each_layer = pytest.mark.parametrize("cls", LAYERS)


def make(cls, **changes):
    return cls(**(LAYERS[cls][0] | changes))


def sample(cls):
    shape = (8, *LAYERS[cls][1])
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def call(layer, inputs):
    """The first output; gates are an image's first pixel."""
    gates = [inputs[:, 0, 0]] if isinstance(layer, layers.GateFilters) else []
    outputs = layer(inputs, *gates)
    return outputs[0] if isinstance(outputs, list) else outputs


def test_every_public_class_has_an_entry_and_no_entry_is_stale():
    public = {
        item
        for module in (layers, losses)
        for item in vars(module).values()
        if inspect.isclass(item) and item.__module__.startswith("gaternet_tf.")
    }
    assert public == set(LAYERS) | set(LOSSES), (
        "every public class of gaternet_tf.layers and .losses needs an entry in LAYERS or LOSSES"
    )


@pytest.mark.parametrize(("cls", "arguments"), LOSSES.items())
def test_losses_and_metrics_survive_a_config_round_trip(cls, arguments):
    config = cls(**arguments).get_config()
    assert cls.from_config(config).get_config() == config
    assert {key: config[key] for key in arguments} == arguments


@each_layer
def test_config_round_trip(cls):
    layer = make(cls, name="mine")
    config = layer.get_config()
    assert config["name"] == "mine"
    for key, value in LAYERS[cls][0].items():
        assert config[key] == value
    assert cls.from_config(config).get_config() == config
    registered = keras.saving.get_registered_name(cls)
    assert registered == f"gaternet_tf>{cls.__name__}"


@each_layer
def test_symbolic_call_has_the_shape_and_dtype_of_the_eager_one(cls):
    symbolic = call(make(cls), keras.Input(LAYERS[cls][1]))
    eager = call(make(cls), sample(cls))
    assert symbolic.shape == (None, *eager.shape[1:])
    assert symbolic.dtype == eager.dtype.name


@each_layer
def test_the_output_shape_is_known_without_a_call(cls):
    shape = (None, *LAYERS[cls][1])
    gates = [(None, shape[-1])] if cls is layers.GateFilters else []
    known = make(cls).compute_output_shape(shape, *gates)
    known = known[0] if isinstance(known, list) else known
    assert tuple(known[1:]) == call(make(cls), sample(cls)).shape[1:]


@each_layer
def test_time_steps_are_computed_one_by_one_or_refused(cls):
    steps = np.stack([sample(cls), sample(cls)[::-1] - 1], axis=1)
    layer = make(cls)
    wanted = np.stack([call(layer, steps[:, step]) for step in range(2)], axis=1)
    # TimeDistributed takes a single input and output.
    if cls not in (layers.GateSplit, layers.GateFilters):
        distributed = keras.layers.TimeDistributed(layer)(steps)
        np.testing.assert_allclose(distributed, wanted, rtol=1e-5, atol=1e-6)
    with contextlib.suppress(ValueError):
        np.testing.assert_allclose(call(make(cls), steps), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", LOSSES)
def test_losses_and_metrics_are_float32_whatever_the_default_is(cls):
    keras.config.set_floatx("float16")
    try:
        assert cls(**LOSSES[cls]).dtype == "float32"
    finally:
        keras.config.set_floatx("float32")


@each_layer
@pytest.mark.parametrize("policy", POLICIES)
def test_one_fit_step_under_each_dtype_policy(cls, policy):
    inputs = keras.Input(LAYERS[cls][1])
    x = keras.layers.Dense(LAYERS[cls][1][-1], dtype=policy)(inputs)
    x = call(make(cls, dtype=policy), x)
    outputs = keras.layers.Dense(1, dtype="float32")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    loss = model.fit(sample(cls), np.ones([8, 1]), verbose=0).history["loss"][0]
    assert np.isfinite(loss)


@each_layer
def test_saved_model_gives_the_same_numbers(cls, tmp_path):
    inputs = keras.Input(LAYERS[cls][1])
    model = keras.Model(inputs, call(make(cls), inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model(sample(cls)), loaded(sample(cls)))


def test_docstring_examples_run():
    import doctest

    for cls in LAYERS:
        module = inspect.getmodule(cls)
        result = doctest.testmod(module, extraglobs={"tf": tf})
        assert result.attempted > 0
        assert result.failed == 0
