"""Random crops and flips: what they may do, that they differ, and that they repeat."""

import numpy as np
import tensorflow as tf

from gaternet_tf.data import Augmentation

IMAGES = np.random.default_rng(0).integers(1, 255, size=(300, 6, 5, 3)).astype(np.uint8)


def placements(image, result, pad):
    """All (row, column, flipped) at which `result` is a window of the padded image."""
    padded = np.pad(image, [(pad, pad), (pad, pad), (0, 0)])
    height, width, _ = image.shape
    return [
        (row, column, flipped)
        for row in range(2 * pad + 1)
        for column in range(2 * pad + 1)
        for flipped in (False, True)
        for window in [padded[row : row + height, column : column + width]]
        if np.array_equal(window[:, ::-1] if flipped else window, result)
    ]


def test_every_image_gets_its_own_crop_and_flip():
    pad = 2
    results = Augmentation(pad, flip=True)(tf.constant(IMAGES), [7, 1]).numpy()
    assert results.dtype == np.uint8
    matches = [placements(*pair, pad) for pair in zip(IMAGES, results, strict=True)]
    assert all(len(places) == 1 for places in matches)
    rows, columns, flips = (
        np.array(values) for values in zip(*(p[0] for p in matches), strict=True)
    )
    for offsets in (rows, columns):
        shares = np.bincount(offsets, minlength=2 * pad + 1) / len(IMAGES)
        assert np.abs(shares - 1 / (2 * pad + 1)).max() < 0.1
    assert abs(flips.mean() - 0.5) < 0.1


def test_a_cut_is_a_part_of_the_picture_within_the_recipes_bounds():
    # Every pixel holds its own place, so a cut says where it came from.
    height, width = 60, 90
    places = np.stack(np.mgrid[:height, :width], axis=-1).astype(np.uint8)
    cuts = [Augmentation(resized_crop=True).cut(places, (0, n)).numpy() for n in range(100)]
    for cut in cuts:
        top, left = cut[0, 0]
        rows, columns = cut.shape[:2]
        np.testing.assert_array_equal(cut, places[top : top + rows, left : left + columns])
        # A pixel of rounding at each side.
        assert 0.08 * height * width <= (rows + 1) * (columns + 1)
        assert (columns - 1) / (rows + 1) <= 4 / 3
        assert (columns + 1) / (rows - 1) >= 3 / 4
    areas = np.array([cut.shape[0] * cut.shape[1] for cut in cuts]) / (height * width)
    assert areas.min() < 0.15
    assert areas.max() > 0.7
    assert len({cut.tobytes() for cut in cuts}) > 90
