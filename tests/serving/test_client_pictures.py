"""What is sent for a picture: TensorFlow decodes the pixels that the caller has."""

import io

import numpy as np
import pytest
import tensorflow as tf
from helpers import palette_bmp
from PIL import Image

from export.signatures import MAX_PIXELS
from serving.client import PictureError, pictures
from serving.client.pictures import encode

RANDOM = np.random.default_rng(0)


def decoded(image):
    """Returns the RGB pixels that an exported graph has of it."""
    return tf.io.decode_image(encode(image), channels=3, expand_animations=False).numpy()


def saved(image, suffix):
    """Returns the bytes of a file."""
    file = io.BytesIO()
    image.save(file, suffix)
    return file.getvalue()


def test_files_and_bytes_are_sent_as_they_are(tmp_path):
    data = saved(Image.fromarray(RANDOM.integers(0, 255, [5, 4, 3], np.uint8)), "JPEG")
    (tmp_path / "picture").write_bytes(data)
    assert encode(tmp_path / "picture") == encode(data) == data


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_pil_images_keep_their_pixels(mode):
    image = Image.fromarray(RANDOM.integers(0, 255, [5, 4, 3], np.uint8)).convert(mode)
    np.testing.assert_array_equal(decoded(image), np.asarray(image.convert("RGB")))


def test_a_16_bit_picture_is_the_same_as_a_file_and_as_an_image():
    data = saved(Image.fromarray(RANDOM.integers(0, 2**16, [5, 4], np.uint16)), "PNG")
    np.testing.assert_array_equal(decoded(Image.open(io.BytesIO(data))), decoded(data))


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
def test_arrays_keep_their_pixels(shape):
    array = RANDOM.integers(0, 255, shape, np.uint8)
    colors = array if array.ndim == 3 else array[..., None]
    expected = np.broadcast_to(colors[..., :3], [5, 4, 3])
    np.testing.assert_array_equal(decoded(array), expected)


def test_a_bmp_is_sent_with_the_colours_of_its_palette():
    numbers = RANDOM.integers(0, 8, [5, 7], np.uint8)
    palette = RANDOM.integers(0, 255, [8, 3], np.uint8)
    np.testing.assert_array_equal(decoded(palette_bmp(numbers, palette)), palette[numbers])
    image = Image.fromarray(palette[numbers])
    np.testing.assert_array_equal(decoded(saved(image, "BMP")), palette[numbers])


def test_a_webp_is_sent_as_png():
    image = Image.fromarray(RANDOM.integers(0, 255, [5, 7, 3], np.uint8))
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True)
    assert encode(file.getvalue()).startswith(b"\x89PNG")
    np.testing.assert_array_equal(decoded(file.getvalue()), np.asarray(image))


def test_exif_orientation_is_ignored():
    image = Image.fromarray(RANDOM.integers(0, 255, [5, 4, 3], np.uint8))
    image.getexif()[0x0112] = 6
    np.testing.assert_array_equal(decoded(image), np.asarray(image))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "has 0"),
        ("missing.png", "No such file"),
        ("nul\0.png", "null byte"),
        (42, "but int"),
        (np.zeros([2, 2], np.float32), "but float32"),
        (Image.new("I", (2, 2)), "mode 'I'"),
        (b"BM not a bitmap", "not a picture"),
        (np.zeros([5001, 5000], np.uint8), "got 25,005,000; scale it down"),
        # Pillow would read other pixels.
        (palette_bmp(np.zeros([2, 9], np.uint8), np.array([[0] * 3, [255] * 3])), "8 bits a pixel"),
    ],
)
def test_what_cannot_be_sent_is_an_error_of_the_picture(image, words):
    answer = encode(image)
    assert isinstance(answer, PictureError)
    assert words in str(answer)


def test_exports_decode_as_many_pixels_as_are_sent():
    assert pictures.MAX_PIXELS == MAX_PIXELS
