"""BMPs whose colours TensorFlow gets wrong."""

import struct

import numpy as np
import tensorflow as tf

HEAD = 14 + 124 + 4 * 256
"""Bytes of a file's, the longest picture's header and a whole palette."""
SHORTEST_HEADER = 40
"""TensorFlow reads none from before Windows 3."""
RUN_LENGTH = (1, 2)


def palette_of(head: bytes) -> np.ndarray | None:
    """The colours of a BMP with 8 bits a pixel, uint8 [up to 256, 3] RGB.

    None where TensorFlow, which takes the number of a colour for a grey, is right: for other
    pictures, and where each colour is the grey of its number.
    """
    if not head.startswith(b"BM") or len(head) < 14 + SHORTEST_HEADER:
        return None
    start, header, _, _, _, bits = struct.unpack_from("<IIiiHH", head, 10)
    if header < SHORTEST_HEADER or bits != 8:
        return None
    (colors,) = struct.unpack_from("<I", head, 46)
    end = min(14 + header + 4 * min(colors or 256, 256), start)
    table = np.frombuffer(head[14 + header : end], np.uint8)
    palette = table[: len(table) // 4 * 4].reshape(-1, 4)[:, 2::-1]
    is_grey = (palette == np.arange(len(palette))[:, None]).all()
    return None if is_grey else palette


def with_its_colors(data: bytes) -> bytes:
    """A picture's file as it is, or as a PNG where it is a BMP with a palette of colours.

    Raises:
      ValueError: for such a BMP that is run-length encoded.
      tf.errors.OpError: for one that cannot be decoded.
    """
    palette = palette_of(data)
    if palette is None:
        return data
    if struct.unpack_from("<I", data, 30)[0] in RUN_LENGTH:
        # TensorFlow would take the runs for pixels.
        raise ValueError("a BMP must not be run-length encoded")
    # A colour that the palette lacks is black, as for Pillow.
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    return tf.io.encode_png(colors[tf.io.decode_bmp(data)[:, :, 0].numpy()]).numpy()
