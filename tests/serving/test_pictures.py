"""Pictures before they are sent: header checks, arrays, scaling as evaluation does it, EXIF."""

import io
import struct

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from gaternet_tf.data.bmp import with_its_colors
from helpers import palette_bmp
from PIL import Image, ImageFile, ImageOps

from gaternet_tf.data import Preprocessing
from gaternet_tf.data.preprocessing import decode_rgb
from serving.client import PictureError, SettingsError
from serving.picture_limit import pixels as pixels_on_the_server
from serving.pictures import Header, Limits, check_picture, decode, encoded, pixels

SAVED = {
    "PNG": ("L", "RGB", "RGBA", "P", "LA", "1", "I;16"),
    "BMP": ("L", "RGB", "RGBA", "P"),
    "GIF": ("L", "RGB", "P", "1"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
}
KINDS = [(name, mode) for name, modes in SAVED.items() for mode in modes]


def random_image(size=(40, 31), mode="RGB", seed=0):
    array = np.random.default_rng(seed).integers(0, 256, [size[1], size[0], 3]).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(array).convert(mode)


def saved(image, name, **options):
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def bmp(mode="L"):
    return saved(Image.new(mode, (9, 9)), "BMP")


@pytest.mark.parametrize(("name", "mode"), KINDS)
def test_headers_are_read(name, mode):
    assert check_picture(saved(random_image(mode=mode), name)) == Header(name, 40, 31)


@pytest.mark.parametrize(
    "data",
    [
        saved(random_image(), "JPEG", progressive=True),
        saved(random_image(), "JPEG", comment=b"\xff\xd9 is no end"),
        saved(random_image(), "JPEG") + b"what some cameras append",
        saved(random_image(), "GIF", save_all=True, append_images=[random_image(seed=1)]),
        saved(random_image(), "GIF", comment=b"x" * 600),
        saved(random_image(), "PNG") + b"trailing",
    ],
)
def test_unusual_but_whole_pictures_pass_as_they_do_in_the_graph(data):
    assert (check_picture(data).width, check_picture(data).height) == (40, 31)
    assert decode_rgb(tf.constant(data)).shape == (31, 40, 3)


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.98])
def test_truncated_pictures_are_refused(name, share):
    data = saved(random_image(), name, **({"comment": b"\xff\xd9"} if name == "JPEG" else {}))
    with pytest.raises(PictureError, match=r"whole JPEG, PNG, BMP or GIF file \(the .* truncated"):
        check_picture(data[: int(len(data) * share)])


def test_a_thumbnail_does_not_hide_that_a_jpeg_is_truncated():
    thumbnail = saved(random_image((8, 8)), "JPEG")
    data = saved(random_image(), "JPEG", exif=b"Exif\x00\x00" + thumbnail)
    check_picture(data)
    with pytest.raises(PictureError, match="truncated"):
        check_picture(data[:-40])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no bytes"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "begins with b'RIFF"),
        (b"GIF89a" + struct.pack("<HH", 5, 5) + b"\x00\x00\x00;", "no frame"),
        (b"\xff\xd8\xff\xda\x00\x02\xff\xd9", "pixels before their size"),
        (b"\xff\xd8\xff\xe0\x00\x04xx000000", "no marker"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dJUNK" + bytes(20), "does not begin with its header"),
        (b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 5, 5, 1, 24) + bytes(9), "before Windows"),
        (bmp()[:18] + bytes(8) + bmp()[26:], "0 x 0"),
        (bmp("1"), r"8, 24 or 32 bits a pixel.* 1\)"),
        (bmp()[:30] + b"\x01" + bmp()[31:], "run-length encoded"),
    ],
)
def test_what_is_no_picture_is_refused(data, words):
    with pytest.raises(PictureError, match=words):
        check_picture(data)


def test_pillows_own_limit_is_an_error_of_the_picture(monkeypatch):
    data = saved(Image.new("L", (40, 40)), "PNG")
    # Warnings are errors in these tests, as in some programs.
    for limit in (1000, 100):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(PictureError, match=r"1600 pixels.*could be decompression bomb"):
            pixels(data, (8, 8, 1), 0)


def test_a_bomb_is_refused_by_its_header(monkeypatch):
    bomb = saved(Image.new("1", (10_000, 10_000)), "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(PictureError, match=r"50,000,000 pixels.*10000 x 10000"):
        check_picture(bomb)
    with pytest.raises(PictureError, match="50,000,000 pixels"):
        pixels(bomb, (8, 8, 1), 0)
    with pytest.raises(PictureError, match="50,000,000 pixels"):
        encoded(Image.new("1", (10_000, 10_000)))
    # A small screen with a large frame.
    frame = b"GIF89a" + struct.pack("<HH", 5, 5) + b"\0\0\0,\0\0\0\0"
    with pytest.raises(PictureError, match="60000 x 60000"):
        check_picture(frame + struct.pack("<HH", 60_000, 60_000) + b"\0\x02\x01\0\0;")


def gif(size=(5, 5), frames=(), ends=True):
    """A GIF of frames (left, top, width, height) that each have no pixels but a whole end."""
    screen = b"GIF89a" + struct.pack("<HH", *size) + bytes(3)
    blocks = [b"," + struct.pack("<HHHH", *frame) + b"\0\x02\x01\0\0" for frame in frames]
    return screen + b"".join(blocks) + (b";" if ends else b"")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gif(frames=[(60_000, 60_000, 9, 9)]), "60009 x 60009"),
        (gif(frames=[(0, 0, 4_000, 4_000)] * 41), "4000 x 4000 in each of 41 frames"),
        (gif(frames=[(0, 0, 4_000, 4_000)] * 41)[:-3], "4000 x 4000 in each of 41"),
    ],
)
def test_a_gif_is_as_large_as_all_its_frames(data, words):
    with pytest.raises(PictureError, match=f"50,000,000 pixels, and this one has {words}"):
        check_picture(data)


@pytest.mark.parametrize(
    "data",
    [
        *(saved(random_image(mode=mode), name) for name, mode in KINDS),
        saved(random_image(), "GIF", save_all=True, append_images=[random_image(seed=1)]),
        *(gif(frames=[(9, 0, 3, 20), (0, 0, 7, 7)], ends=ends) for ends in (True, False)),
    ],
)
def test_the_client_refuses_what_a_server_with_the_same_limit_refuses(data):
    size = pixels_on_the_server(data)
    check_picture(data, Limits(pixels=size))
    with pytest.raises(PictureError, match="pixels, and this one has"):
        check_picture(data, Limits(pixels=size - 1))


def test_limits_can_be_set():
    data = saved(random_image(), "PNG")
    check_picture(data, Limits(pixels=40 * 31, bytes=len(data)))
    with pytest.raises(PictureError, match="1,239 pixels, and this one has 40 x 31"):
        check_picture(data, Limits(pixels=40 * 31 - 1))
    with pytest.raises(PictureError, match="bytes, and this one has"):
        check_picture(data, Limits(bytes=len(data) - 1))


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path):
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(PictureError, match=r"bytes, and this one has 1,099,511,627,776"):
        encoded(tmp_path / "large.png")


@hypothesis.given(
    kind=st.sampled_from(KINDS),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    cut=st.floats(0, 1),
)
@hypothesis.settings(deadline=None, max_examples=300, derandomize=True)
def test_damage_is_told_and_never_more_than_that(kind, changes, cut):
    data = bytearray(saved(random_image((9, 7), kind[1]), kind[0]))
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    data = bytes(data[: int(len(data) * (1 - cut / 4))])
    for check in (check_picture, encoded, lambda data: decode(data, (8, 8, 3))):
        try:
            check(data)
        except PictureError as error:
            assert str(error)  # noqa: PT017 - either may come


@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_of_pillow_is_sent_or_is_an_error_of_the_picture(mode):
    image = Image.new(mode, (8, 8))
    for prepare in (encoded, lambda image: pixels(image, (8, 8, 3), None)):
        try:
            assert len(prepare(image)) > 60
        except PictureError:
            assert mode in ("F", "I", "LAB", "La")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "HSV", "RGBX"])
def test_pil_images_become_png_that_the_graph_reads_as_pillow_does(mode):
    image = random_image(mode=mode)
    got = decode_rgb(tf.constant(encoded(image))).numpy()
    if mode == "I;16":
        image = random_image(mode="RGB").getchannel("R")
    np.testing.assert_array_equal(got, np.asarray(image.convert("RGB")))


def test_an_image_that_was_opened_but_not_loaded(tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved(random_image(), "JPEG"))
    with Image.open(tmp_path / "a.jpg") as image:
        got = decode_rgb(tf.constant(encoded(image))).numpy()
    assert got.shape == (31, 40, 3)
    (tmp_path / "a.jpg").write_bytes(saved(random_image((400, 400)), "JPEG")[:9000])
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(PictureError, match="truncated"):
        encoded(image)


@pytest.mark.parametrize("shape", [(31, 40), (31, 40, 1), (31, 40, 3), (31, 40, 4)])
def test_arrays_become_png_of_the_same_pixels(shape):
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for given_array in (array, np.asfortranarray(array), array[::-1][::-1]):
        got = decode_rgb(tf.constant(encoded(given_array))).numpy()
        expected = array[..., None] if array.ndim == 2 else array
        expected = expected[..., :3] if shape[2:] == (4,) else np.broadcast_to(expected, got.shape)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros([4, 4], np.float32), r"uint8 .*got float32 \[4, 4\]"),
        (np.zeros([4, 4, 2], np.uint8), r"got uint8 \[4, 4, 2\]"),
        (np.zeros([4], np.uint8), r"got uint8 \[4\]"),
        (np.zeros([0, 4], np.uint8), "whole|0 pixels"),
        (Image.new("F", (4, 4)), "mode 'F'"),
        (Image.new("I", (4, 4)), "mode 'I'"),
        (Image.new("La", (4, 4)), "La"),
        (io.BytesIO(b""), "got BytesIO"),
        (None, "got NoneType"),
        ("a\0b", "cannot be read"),
    ],
)
def test_what_cannot_be_sent_is_told(image, words):
    with pytest.raises(PictureError, match=words):
        encoded(image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "resize"), [((32, 28), 0), ((32, 28), 40), ((8, 8), 8)])
@pytest.mark.parametrize("source", [(40, 31), (7, 90), (300, 211), (32, 28)])
def test_pictures_are_scaled_as_evaluation_does(channels, size, resize, source):
    preprocessing = Preprocessing(*size, channels, (0.0,) * channels, (1.0,) * channels, resize)
    data = saved(random_image(source), "PNG")
    graph = preprocessing.decode(tf.constant(data)).numpy().astype(int)
    ours = np.frombuffer(decode(data, preprocessing.shape, resize), np.uint8)
    difference = np.abs(ours.reshape(preprocessing.shape).astype(int) - graph)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_a_long_picture_that_would_be_enormous_when_it_is_scaled_is_refused():
    for size in ((500_000, 1), (1, 500_000)):
        data = saved(Image.new("L", size), "PNG")
        check_picture(data)
        with pytest.raises(PictureError, match=r"50,000,000 pixels.*scaled to .*16000000"):
            pixels(data, (32, 32, 1), 32)
    assert pixels(random_image((90, 1)), (8, 8, 3), 8, Limits(pixels=8 * 8 * 90))


def test_a_resize_that_leaves_less_than_the_network_takes_is_refused():
    for image in (random_image(), random_image((8, 8))):
        with pytest.raises(SettingsError, match=r"at least the larger side .* 8 x 6, .* got 7"):
            pixels(image, (6, 8, 3), 7)
        assert len(pixels(image, (6, 8, 3), 8)) == 6 * 8 * 3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "mode"), KINDS)
def test_pictures_of_the_networks_size_are_the_graphs_to_the_last_bit(name, mode, channels):
    preprocessing = Preprocessing(31, 40, channels, (0.0,) * channels, (1.0,) * channels)
    data = saved(random_image(mode=mode), name)
    graph = preprocessing.decode(tf.constant(encoded(data))).numpy()
    assert pixels(data, preprocessing.shape, None) == graph.tobytes()


RAMP = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("palette", [RAMP[::-1], RAMP[[0, 255]], RAMP[:7, ::-1] * [1, 2, 3]])
def test_a_bmp_with_a_palette_is_sent_as_png_with_the_colours_that_training_sees(
    palette, top_down, tmp_path
):
    palette = palette.astype(np.uint8)
    numbers = np.random.default_rng(0).integers(0, len(palette), (5, 6)).astype(np.uint8)
    data = palette_bmp(numbers, palette, top_down)
    (tmp_path / "picture.bmp").write_bytes(data)
    for picture in (data, str(tmp_path / "picture.bmp")):
        sent = encoded(picture)
        assert check_picture(sent).format == "PNG"
        np.testing.assert_array_equal(decode_rgb(tf.constant(sent)), palette[numbers])
        assert pixels(picture, (5, 6, 3), None) == palette[numbers].tobytes()
    trained = decode_rgb(tf.constant(with_its_colors(data)))
    np.testing.assert_array_equal(trained, palette[numbers])
    with pytest.raises(PictureError, match="a picture may have 10"):
        encoded(data, Limits(pixels=10))


@pytest.mark.parametrize("colors", [256, 7])
def test_a_grey_bmp_is_sent_as_it_is(colors):
    numbers = np.random.default_rng(0).integers(0, colors, (5, 6)).astype(np.uint8)
    data = palette_bmp(numbers, RAMP[:colors])
    assert encoded(data) == with_its_colors(data) == data
    assert pixels(data, (5, 6, 3), None) == RAMP[numbers].tobytes()


def test_other_sizes_need_to_know_how_the_model_scales():
    data = saved(random_image(), "PNG")
    for image in (data, random_image(), np.asarray(random_image())):
        with pytest.raises(PictureError, match=r"28 x 32, and this one has 40 x 31.*--resize"):
            pixels(image, (32, 28, 3), None)
        assert len(pixels(image, (32, 28, 3), 0)) == 32 * 28 * 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored_as_it_is_in_evaluation(orientation):
    image = random_image()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(image, "JPEG", exif=exif, quality=95)
    plain = saved(image, "JPEG", quality=95)
    assert encoded(data) == data
    graph = Preprocessing(31, 40, 3, (0.0,) * 3, (1.0,) * 3).decode
    stored = graph(tf.constant(plain)).numpy()
    np.testing.assert_array_equal(graph(tf.constant(data)).numpy(), stored)
    assert decode(data, (31, 40, 3)) == stored.tobytes()
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_array_equal(decode_rgb(tf.constant(encoded(opened))).numpy(), stored)
        turned = ImageOps.exif_transpose(opened)
    if orientation > 1:
        # What would be sent if it were applied.
        assert encoded(turned) != encoded(Image.open(io.BytesIO(plain)))
