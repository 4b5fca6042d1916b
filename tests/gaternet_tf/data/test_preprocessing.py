"""One way from a picture to the network's input, compared with NumPy and Pillow."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from gaternet_tf.data import Preprocessing
from gaternet_tf.data.preprocessing import pixels_in_header

RGB = Preprocessing(20, 24, 3, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
GREY = Preprocessing(20, 24, 1, (0.4,), (0.2,))
# Smooth, so that JPEG and palettes keep it.
ROWS, COLUMNS = np.mgrid[0:20, 0:24]
PIXELS = np.stack([ROWS * 12, COLUMNS * 10, 255 - ROWS * 6 - COLUMNS * 3], axis=-1).astype(np.uint8)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_normalisation_equals_numpy():
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 24, 3)).astype(np.uint8)
    wanted = (images / 255.0 - RGB.mean) / RGB.std
    np.testing.assert_allclose(RGB.normalize(images), wanted, rtol=1e-5, atol=1e-6)
    assert RGB.normalize(images).dtype == tf.float32


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF"])
def test_lossless_pictures_of_the_right_size_come_through_to_the_bit(kind):
    grey = np.arange(480).reshape(20, 24).clip(0, 255).astype(np.uint8)
    picture = encode(Image.fromarray(grey), kind)
    np.testing.assert_array_equal(GREY.decode(picture)[..., 0], grey)
    np.testing.assert_array_equal(RGB.decode(picture), np.stack([grey] * 3, axis=-1))
    if kind != "GIF":
        np.testing.assert_array_equal(RGB.decode(encode(Image.fromarray(PIXELS), kind)), PIXELS)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_equals_pillows_decoding(mode):
    picture = encode(Image.fromarray(PIXELS).convert(mode), "JPEG", quality=95)
    wanted = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    limit = 1 if mode != "CMYK" else 40
    assert np.abs(RGB.decode(picture).numpy().astype(int) - wanted).max() <= limit


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_pixels_are_read_from_the_header(kind):
    picture = encode(Image.new("RGB", (300, 521)), kind)
    assert pixels_in_header(picture) == 300 * 521
    if kind == "BMP":
        top_down = picture[:22] + (-521).to_bytes(4, "little", signed=True) + picture[26:]
        assert pixels_in_header(top_down) == 300 * 521


def test_what_no_export_must_decode_has_no_pixels():
    for other in (b"", b"\x89", b"no picture", encode(Image.new("RGB", (3, 5)), "WEBP")):
        assert pixels_in_header(other) == 0


def test_pictures_of_16_bits_are_scaled_to_8():
    decoded = GREY.decode(encode(Image.fromarray(ROWS.astype(np.uint16) * 3000), "PNG"))
    np.testing.assert_allclose(decoded[-1, 0, 0], 19 * 3000 / 257, atol=1)


@pytest.mark.parametrize("size", [(48, 40), (13, 9)])
def test_resizing_is_pillows_within_a_grey_level(size):
    image = Image.fromarray(PIXELS).resize(size, Image.Resampling.BICUBIC)
    ours = RGB.decode(encode(image, "PNG")).numpy().astype(int)
    wanted = np.asarray(image.resize((24, 20), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(ours - wanted).max() <= 1
