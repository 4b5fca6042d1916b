"""Refuses pictures that would be enormous once decoded, by their header and before decoding.

A PNG of 140 KB can stand for 400 MB of pixels. The sizes are read where TensorFlow's decoders read
them, so that nothing passes here and decodes larger there. JPEG XL and animated WebP do not pass:
their headers do not tell how many frames follow, and `tf.io.decode_image` without `channels` can
crash on the latter. What is no picture passes, and the decoder says so.
"""

import struct
from collections.abc import Iterable

from serving.errors import invalid
from serving.picture_headers import JPEG_FRAMES, JPEG_SCAN, read_gif

_PNG = b"\x89PNG\r\n\x1a\n"
_ANIMATED = 0x02  # Among the flags of an extended WebP.
_JPEG_XL = (b"\xff\n", b"\0\0\0\x0cJXL \r\n\x87\n")


def pixels(picture: bytes) -> int:
    """Pixels of an encoded PNG, JPEG, GIF, BMP or WebP by its header; 0 for anything else."""
    if picture.startswith(_PNG):
        return _area(picture, ">II", 16)
    if picture.startswith(b"\xff\xd8"):
        return _jpeg(picture)
    if picture[:4] == b"GIF8":
        return _gif(picture)
    if picture.startswith(b"BM"):
        return _area(picture, "<ii", 18)
    if _is_webp(picture):
        return _webp(picture)
    return 0


def has_unknown_size(picture: bytes) -> bool:
    """Whether it is JPEG XL or animated WebP, whose header does not tell all of its pixels."""
    if _is_webp(picture) and picture[12:16] == b"VP8X":
        return bool(int.from_bytes(picture[20:21]) & _ANIMATED)
    return picture.startswith(_JPEG_XL)


def check_pixels(pictures: Iterable[bytes], limit: int) -> None:
    """Refuses a request in which a picture has, or may have, more than `limit` pixels.

    Args:
      pictures: encoded; what is none passes.
      limit: in pixels; 0 is no limit.

    Raises:
      ServingError: INVALID_ARGUMENT, naming the picture.
    """
    if not limit:
        return
    for position, picture in enumerate(pictures):
        if not isinstance(picture, bytes):
            continue
        if has_unknown_size(picture):
            raise invalid(
                "A picture must tell its size in its header (--max_picture_pixels), and picture "
                f"{position} of the request is JPEG XL or an animated WebP; send a PNG or JPEG"
            )
        found = pixels(picture)
        if found > limit:
            raise invalid(
                f"A picture must have at most {limit} pixels (--max_picture_pixels), and picture "
                f"{position} of the request has {found}; send a smaller one"
            )


def _area(data, layout, offset):
    try:
        width, height = struct.unpack_from(layout, data, offset)
    except struct.error:
        return 0
    return abs(width) * abs(height)


def _jpeg(data):
    """The largest frame that any marker announces; entropy-coded data is stepped over."""
    largest, at = 0, 2
    while (at := data.find(b"\xff", at)) != -1 and at + 9 <= len(data):
        marker = data[at + 1]
        if marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            largest = max(largest, width * height)
        if marker == JPEG_SCAN:
            # A scan: a baseline file has its size before it. Later frames would be another picture.
            break
        if marker in (0x00, 0x01, 0xFF, *range(0xD0, 0xD9)):
            at += 1
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return largest


def _gif(data):
    """The logical screen or the largest frame, whichever is larger, times the frames.

    A truncated file counts as far as it goes, as the decoder has it.
    """
    try:
        gif = read_gif(data)
    except struct.error:
        return 0
    return gif.width * gif.height * max(gif.frames, 1)


def _is_webp(data):
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _webp(data):
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        width = int.from_bytes(data[24:27], "little") + 1
        return width * (int.from_bytes(data[27:30], "little") + 1)
    if kind == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 " and len(data) >= 30:
        width, height = struct.unpack_from("<HH", data, 26)
        return (width & 0x3FFF) * (height & 0x3FFF)
    return 0
