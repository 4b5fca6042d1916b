"""Plain networks by name: their counts, names and preprocessing."""

import keras
import numpy as np
import pytest

from gaternet_tf import UserError, build_gaternet
from gaternet_tf.models import find_backbone
from gaternet_tf.models.gating import choose_filters
from gaternet_tf.models.graph import GraphWalk, symbols_of


@pytest.mark.parametrize(
    ("depth", "convolutions", "every", "last"),
    [
        (18, 20, 4800, 1920),
        (34, 36, 8512, 3776),
        (50, 53, 26_560, 15_104),
        (101, 104, 52_672, 32_512),
    ],
)
def test_gates_of_imagenet_resnets(depth, convolutions, every, last):
    images = keras.Input((32, 32, 3))
    plain = keras.Model(images, find_backbone(f"imagenet-resnet{depth}").features(images))
    plan = GraphWalk()
    plan.run(plain, symbols_of(plain))
    assert len(plan.filters) == convolutions
    assert sum(filters.channels for filters in plan.filters.values()) == every
    assert sum(filters.channels for filters in choose_filters(plan, "last").values()) == last


def test_parameters_of_published_networks():
    def count(name, shape, classes):
        model = build_gaternet(name, "none", shape, classes)
        return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)

    assert count("densenet-bc-100-12", (32, 32, 3), 10) == 769_162
    # He et al. 2016 give 11.7 and 25.6 million.
    assert count("imagenet-resnet18", (64, 64, 3), 1000) == 11_689_512
    assert count("imagenet-resnet50", (64, 64, 3), 1000) == 25_557_032


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vgg", "a network must be resnetD .*got 'vgg'"),
        ("imagenet-resnet20", r"must have a depth of \[18, 34, 50, 101, 152\], got"),
        ("densenet-bc-41-12", "depth of 6n\\+4 .*got 'densenet-bc-41-12'"),
        ("keras:ResNet5", "keras:NAME must be one of .*ResNet50, .*; got 'keras:ResNet5'"),
    ],
)
def test_names_of_networks_are_checked(name, words):
    with pytest.raises(UserError, match=words):
        find_backbone(name)
    assert find_backbone("resnet20").name == "resnet20"


def test_a_network_of_another_package_brings_its_preprocessing():
    assert find_backbone("resnet20").normalization is None
    for name, mean, deviation in [
        ("MobileNetV2", [127.5] * 3, [127.5] * 3),
        ("ResNet50", [123.68, 116.779, 103.939], [1.0] * 3),
        ("DenseNet121", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        ("EfficientNetV2B0", [0.0] * 3, [1.0] * 3),
    ]:
        found = find_backbone(f"keras:{name}").normalization
        np.testing.assert_allclose(found, (mean, deviation), rtol=1e-4, atol=1e-4)
