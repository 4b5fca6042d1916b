"""A backbone that brings its weights: their files, preprocessing, and training around them."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import small_config

from gaternet_tf import UserError, build_gaternet, gate_model
from gaternet_tf.models import find_backbone
from gaternet_tf.runs import open_run
from train.inputs import choose_preprocessing
from train.loop import train

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    "name",
    ["VGG16", "MobileNetV2", "EfficientNetV2B0"],
    ids=["BGR", "-1 to 1", "in the graph"],
)
def test_pictures_are_preprocessed_as_the_weights_require(tmp_path, digits, name):
    application = getattr(keras.applications, name)
    source = application(weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3))
    rng = np.random.default_rng(1)
    for weight in source.weights:
        if "normalization" not in weight.path:
            weight.assign(weight + 0.01 * rng.normal(size=weight.shape))
    file = str(tmp_path / "own.weights.h5")
    source.save_weights(file)
    module = next(
        module
        for module in vars(keras.applications).values()
        if hasattr(module, name) and hasattr(module, "preprocess_input")
    )
    wanted = source(module.preprocess_input(PIXELS.astype(np.float32)), training=False)

    config = small_config(None, backbone=f"keras:{name}", gater="none", image_size=32, weights=file)
    preprocessing = choose_preprocessing(config, digits)
    # Grey pictures become those of three channels that the weights are for.
    assert preprocessing.shape == (32, 32, 3)
    model = build_gaternet(f"keras:{name}", "none", (32, 32, 3), 10, weights=file)
    features = keras.Model(model.input, model.get_layer("logits").input)
    got = features(preprocessing.normalize(PIXELS), training=False)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_normalisation_by_channel_is_that_of_keras():
    mean, deviation = find_backbone("keras:DenseNet121").normalization
    wanted = keras.applications.densenet.preprocess_input(PIXELS.astype(np.float32))
    np.testing.assert_allclose((PIXELS - mean) / deviation, wanted, atol=1e-5)


def plain_file(path, classes, width=16):
    model = build_gaternet("resnet8", "none", (8, 8, 1), classes, seed=5, width=width)
    model.save(path)
    return model


def test_other_classes_get_a_new_classifier_and_other_layers_are_refused(tmp_path):
    source = plain_file(tmp_path / "plain.keras", classes=7)
    gated = build_gaternet(
        "resnet8", "resnet8", (8, 8, 1), 3, weights=str(tmp_path / "plain.keras"), seed=1
    )
    for layer in source.layers:
        if layer.weights and layer.name != "logits":
            for ours, theirs in zip(
                layer.weights, gated.get_layer(layer.name).weights, strict=True
            ):
                np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)
    assert gated.output["logits"].shape == (None, 3)
    alike = build_gaternet("resnet8", "none", (8, 8, 1), 7, weights=str(tmp_path / "plain.keras"))
    picture = np.ones([2, 8, 8, 1], np.float32)
    np.testing.assert_array_equal(alike(picture)["logits"], source(picture)["logits"])
    plain_file(tmp_path / "wide.keras", classes=3, width=20)
    for file, words in (
        ("wide.keras", r"in 'resnet8' layer 'stem' has the shapes .*20\)\], here .*16\)\]"),
        ("none.keras", r"'.*none.keras' does not exist"),
        ("imagenet", r"must be a \.keras file .*got 'imagenet'"),
    ):
        weights = file if file == "imagenet" else str(tmp_path / file)
        with pytest.raises(UserError, match=words):
            build_gaternet("resnet8", "none", (8, 8, 1), 3, weights=weights)


def test_a_gater_from_a_file_computes_in_the_precision_of_the_run(tmp_path):
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        plain_file(tmp_path / "half.keras", classes=3)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    model = build_gaternet("resnet8", str(tmp_path / "half.keras"), (8, 8, 1), 3)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}


def test_weights_that_cannot_be_fetched_are_one_sentence(monkeypatch):
    def refuse(**settings):
        if settings["weights"] == "imagenet":
            raise Exception("URL fetch failure: no route to host")  # As Keras does.

    monkeypatch.setattr(keras.applications, "MobileNetV2", refuse)
    with pytest.raises(UserError, match=r"keras:MobileNetV2.*no route to host.*give the weights'"):
        build_gaternet("keras:MobileNetV2", "none", (32, 32, 3), 3, weights="imagenet")


def test_an_adapted_normalization_is_kept(tmp_path):
    normalize = keras.layers.Normalization()
    normalize.adapt(PIXELS.astype(np.float32))
    images = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3)(normalize(images))
    outputs = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))
    plain = keras.Model(images, outputs)
    plain.save(tmp_path / "plain.keras")
    gated = gate_model(plain, "resnet8", gate_bias=100.0)
    by_name = build_gaternet(str(tmp_path / "plain.keras"), "none", (32, 32, 3), 3)
    for model in (gated, by_name):
        np.testing.assert_array_equal(model(PIXELS * 1.0)["logits"], plain(PIXELS * 1.0))


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore:Even though:UserWarning")
def test_a_run_starts_from_a_plain_run_and_first_leaves_its_backbone_alone(
    data_dir, digits, tmp_path
):
    common = {"steps_per_epoch": 1, "batch_size": 32, "select": "last"}
    train(small_config(data_dir, gater="none", **common), tmp_path / "plain")
    plain = open_run(tmp_path / "plain")
    weights = str(plain.model_file)
    frozen = small_config(data_dir, weights=weights, freeze_backbone_epochs=1, **common)
    train(frozen, tmp_path / "frozen")
    free = small_config(
        data_dir, weights=weights, freeze_backbone_epochs=1, **common | {"epochs": 2}
    )
    train(free, tmp_path / "free")
    models = {name: open_run(tmp_path / name).load_model() for name in ("frozen", "free")}
    for weight in plain.load_model().weights:
        layer, _, name = weight.path.rpartition("/")
        if layer == "logits":
            continue
        after = {
            kind: next(w for w in model.get_layer(layer).weights if w.name == name)
            for kind, model in models.items()
        }
        np.testing.assert_array_equal(after["frozen"], weight, err_msg=weight.path)
        assert (np.asarray(after["free"]) != np.asarray(weight)).any(), weight.path
    start = build_gaternet("resnet8", "resnet8", (8, 8, 1))
    trained = models["frozen"].get_layer("gater_fc2").kernel
    assert (np.asarray(trained) != np.asarray(start.get_layer("gater_fc2").kernel)).any()
    assert all(layer.trainable for layer in models["free"].layers)

    # The plain run as a gater: a classifier, whose weights and normalisation are kept.
    gated = small_config(data_dir, gater=weights, validation=0.0, **common)
    assert choose_preprocessing(gated, digits) == plain.preprocessing
    of_seed = dataclasses.replace(gated, gater="plain-{seed}/model.keras", seed=3)
    assert of_seed.gater_network == "plain-3/model.keras"
    with pytest.raises(UserError, match=r"--gater must .* 'plain-3/model.keras' does not"):
        of_seed.check()
    model = build_gaternet("resnet8", weights, (8, 8, 1))
    ours = {weight.path: weight for weight in model.weights}
    for weight in plain.load_model().weights:
        if not weight.path.startswith("logits"):
            np.testing.assert_array_equal(ours[f"gater_{weight.path}"], weight, err_msg=weight.path)
    other = dataclasses.replace(gated, normalize=False)
    with pytest.raises(UserError, match=r"the run of --gater=.* normalised them otherwise"):
        choose_preprocessing(other, digits)
    assert open_run(tmp_path / "frozen").preprocessing == plain.preprocessing


def test_imagenet_s_classifier_is_kept_and_a_further_rescaling_is_not_lost(monkeypatch, tmp_path):
    real = keras.applications.MobileNetV2
    settings = {"alpha": 0.35, "weights": None}
    published = real(**settings)

    def fetch(weights=None, **rest):
        model = real(**{**rest, **settings})
        if weights == "imagenet":
            for layer in filter(lambda layer: layer.weights, model.layers):
                layer.set_weights(published.get_layer(layer.name).get_weights())
        return model

    monkeypatch.setattr(keras.applications, "MobileNetV2", fetch)
    kept, new = (
        build_gaternet("keras:MobileNetV2", "none", (32, 32, 3), classes, weights="imagenet")
        for classes in (1000, 999)
    )
    wanted = published.get_layer("predictions").get_weights()
    for ours, theirs in zip(kept.get_layer("logits").get_weights(), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert new.output["logits"].shape == (None, 999)

    for name in ("own.weights.h5", "own.keras"):
        with pytest.raises(UserError, match="another Rescaling with ImageNet's weights"):
            images = keras.Input((32, 32, 3))
            scaled = keras.layers.Rescaling(0.5)(keras.layers.Rescaling(1 / 255)(images))
            keras.Model(images, scaled).save(tmp_path / "own.keras")
            file = str(tmp_path / name)
            build_gaternet("keras:EfficientNetB0", "none", (32, 32, 3), 3, weights=file)


@pytest.mark.parametrize("scores", ["convolution", "hidden dense"])
def test_a_classifier_is_the_last_layer_that_makes_scores(tmp_path, scores):
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, activation="relu")(images)
    if scores == "convolution":
        x = keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
        outputs = keras.ops.softmax(keras.layers.Flatten()(keras.layers.Conv2D(3, 1)(x)))
    else:
        x = keras.layers.Dense(5, activation="relu", name="hidden")(keras.layers.Flatten()(x))
        outputs = keras.layers.Dense(3, activation="softmax")(x)
    plain = keras.Model(images, outputs)
    file = str(tmp_path / "plain.keras")
    plain.save(file)
    picture = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    alike = build_gaternet(file, "none", (8, 8, 3), 3)
    probabilities = keras.ops.softmax(alike(picture)["logits"])
    np.testing.assert_allclose(probabilities, plain(picture), atol=1e-6)
    gated = gate_model(alike, gater=plain)
    assert gated.get_layer("gater_fc1").input.shape == (None, 4)
