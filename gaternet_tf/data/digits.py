"""scikit-learn's handwritten digits as a TFDS dataset: real images that need no download."""

import numpy as np
import tensorflow_datasets as tfds

from gaternet_tf.data.dataset import builder_info

TEST_IMAGES = 360
SPLIT_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits, 8x8 grey, from scikit-learn's own copy.

    `load_digits` lists the digits writer by writer, so the split is a fixed random one: 1,437
    images for training and 360 for the test, every class in both.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return builder_info(self, (8, 8, 1), [str(digit) for digit in range(10)])

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        # 0 to 16 there, 0 to 255 in a picture.
        images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
        return {
            "train": self._generate_examples(images, labels, order[TEST_IMAGES:]),
            "test": self._generate_examples(images, labels, order[:TEST_IMAGES]),
        }

    def _generate_examples(self, images, labels, indices):
        for index in indices:
            yield int(index), {"image": images[index], "label": int(labels[index])}
