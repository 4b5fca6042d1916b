"""What the client's check of a picture and the server's limit both read in its header."""

import struct
from typing import NamedTuple

# Start-of-frame markers of a JPEG: all of 0xC0 to 0xCF but for DHT, JPG and DAC.
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_SCAN = 0xDA

# What a block of a GIF begins with.
_EXTENSION, _FRAME = 0x21, 0x2C


class Gif(NamedTuple):
    """What the blocks of a GIF say.

    Attributes:
      width: in pixels, of the logical screen, or as far as the frames reach beyond it.
      height: likewise.
      frames: how many begin. A server decodes them all.
      whole: how many of them end, too.
      cut: whether the file ends within a block.
    """

    width: int
    height: int
    frames: int
    whole: int
    cut: bool


def read_gif(data: bytes) -> Gif:
    """Walks over a GIF's blocks, as far as the file goes, without decoding them.

    Raises:
      struct.error: for a file that ends before its screen's size.
    """
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position, frames, whole, cut = 13 + _color_table(flags), 0, 0, False
    try:
        while (kind := data[position]) in (_EXTENSION, _FRAME):
            if kind == _FRAME:
                left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, position + 1)
                width, height = max(width, left + wide), max(height, top + high)
                frames += 1
                position += 11 + _color_table(flags)
            else:
                position += 2
            while data[position]:
                position += 1 + data[position]
            position += 1
            whole = frames
    except (struct.error, IndexError):
        cut = True
    return Gif(width, height, frames, whole, cut)


def _color_table(flags):
    """Bytes of the table that follows a GIF's screen or frame."""
    return 3 * 2 ** (flags % 8 + 1) if flags & 0x80 else 0
