"""Pictures on their way to a server: checked by their headers, encoded, or turned into pixels.

A picture's EXIF orientation is ignored, here as in training, evaluation and the exported graph:
TensorFlow decodes pixels as they are stored. Who wants it applied rotates the picture before
(`PIL.ImageOps.exif_transpose`), for training as for serving.
"""

import dataclasses
import io
import os
import struct
from collections.abc import Callable
from typing import Any

from serving.client_errors import PictureError, SettingsError
from serving.picture_headers import JPEG_FRAMES, JPEG_SCAN, read_gif

FORMATS = ("JPEG", "PNG", "BMP", "GIF")
MAX_PIXELS = 50_000_000
MAX_BYTES = 64 * 2**20
# Pillow's modes that PNG stores as they are, and TensorFlow reads as evaluation would.
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")

Image = Any
"""A `PIL.Image.Image`; Pillow is imported only for pictures that are not encoded already."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a picture may be: pixels before decoding, and bytes encoded."""

    pixels: int = MAX_PIXELS
    bytes: int = MAX_BYTES


DEFAULT_LIMITS = Limits()


@dataclasses.dataclass(frozen=True)
class Header:
    """What a picture's header says of it.

    Attributes:
      format: JPEG, PNG, BMP or GIF.
      width: in pixels; of a GIF that of its screen, or as far as its frames reach beyond it.
      height: likewise.
      frames: of a GIF. A server decodes them all, although only the first is used.
    """

    format: str
    width: int
    height: int
    frames: int = 1


def check_picture(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Header:
    """Reads a picture's header, and sees whether its end is there, without decoding it.

    What is damaged in between only a decoder can tell: the server will.

    Raises:
      PictureError: for anything but a whole JPEG, PNG, BMP or GIF of a sensible size.
    """
    if len(data) > limits.bytes:
        raise too_many_bytes(len(data), limits)
    if not data:
        raise _not_a_picture("it has no bytes")
    found = next((reader for reader in READERS if data.startswith(reader[0])), None)
    if found is None:
        raise _not_a_picture(f"it begins with {data[:8]!r}, as none of them does")
    _, name, read = found
    try:
        header = Header(name, *read(data))
    except (struct.error, IndexError) as error:
        raise _truncated(name) from error
    if header.width < 1 or header.height < 1:
        raise _not_a_picture(f"the {name} header says {header.width} x {header.height} pixels")
    check_size((header.width, header.height), limits, header.frames)
    return header


def check_size(size: tuple[int, int], limits: Limits, frames: int = 1, has: str = "has") -> None:
    """Refuses a picture that would take too much memory decoded, or scaled.

    Raises:
      PictureError: with the limit and the size.
    """
    width, height = size
    if width * height * frames > limits.pixels:
        raise PictureError(
            f"a picture may have {limits.pixels:,} pixels, and this one {has} {width} x {height}"
            + (f" in each of {frames} frames" if frames > 1 else "")
        )


def too_many_bytes(size: int, limits: Limits) -> PictureError:
    """The error of a file that is too large to send."""
    return PictureError(f"a picture may have {limits.bytes:,} bytes, and this one has {size:,}")


def _not_a_picture(reason):
    return PictureError(f"a picture must be a whole JPEG, PNG, BMP or GIF file ({reason})")


def _truncated(name):
    return _not_a_picture(f"the {name} is truncated")


def _png(data):
    if data[12:16] != b"IHDR":
        raise _not_a_picture("the PNG does not begin with its header")
    width, height = struct.unpack_from(">II", data, 16)
    position = 8
    while data[position + 4 : position + 8] != b"IEND":
        (length,) = struct.unpack_from(">I", data, position)
        position += 12 + length
        if position + 12 > len(data):
            raise _truncated("PNG")
    if position + 12 > len(data):
        raise _truncated("PNG")
    return width, height


def _jpeg(data):
    size = None
    position = 2
    while True:
        if position + 2 > len(data):
            raise _truncated("JPEG")
        if data[position] != 0xFF:
            raise _not_a_picture("the JPEG has no marker where one must be")
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker == JPEG_SCAN:
            break
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 5)
            size = width, height
        position += 2 + length
    if size is None:
        raise _not_a_picture("the JPEG has pixels before their size")
    # Within a scan 0xFF is followed by 0 or a restart marker, so this is the end and no pixel.
    # A thumbnail's end lies in a segment that was stepped over.
    if data.rfind(b"\xff\xd9", position) < 0:
        raise _truncated("JPEG")
    return size


def _gif(data):
    """Counts all frames, as a server does; only the first must be whole."""
    gif = read_gif(data)
    if not gif.whole:
        raise _truncated("GIF") if gif.cut else _not_a_picture("the GIF has no frame")
    return gif.width, gif.height, gif.frames


def _bmp(data):
    offset, header, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
    if header < 40:
        raise _not_a_picture("the BMP is of a kind from before Windows 3")
    # Pillow reads the others too, and TensorFlow does not.
    if bits not in (8, 24, 32) or compression in (1, 2):
        raise _not_a_picture(
            f"a BMP must have 8, 24 or 32 bits a pixel, uncompressed, and this one has {bits}"
            + (", run-length encoded" if compression in (1, 2) else "")
        )
    width, height = abs(width), abs(height)
    row = (width * bits + 31) // 32 * 4
    if offset + row * height > len(data):
        raise _truncated("BMP")
    return width, height


READERS: tuple[tuple[bytes, str, Callable], ...] = (
    (b"\xff\xd8\xff", "JPEG", _jpeg),
    (b"\x89PNG\r\n\x1a\n", "PNG", _png),
    (b"BM", "BMP", _bmp),
    (b"GIF8", "GIF", _gif),
)


def read_file(path: str | os.PathLike, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """A file's bytes, and not more of them than a picture may have.

    Raises:
      PictureError: when it cannot be read, or is larger.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(limits.bytes + 1)
            if len(data) > limits.bytes:
                raise too_many_bytes(os.fstat(file.fileno()).st_size, limits)
            return data
    except IsADirectoryError as error:
        raise PictureError(
            "cannot be read (a directory without pictures in it, or one that is not searched)"
        ) from error
    except OSError as error:
        raise PictureError(f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise PictureError(f"cannot be read ({error})") from error


def encoded(image, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """What the `image_bytes` signature takes, of a path, bytes, a PIL image or a uint8 array.

    Files and bytes are checked and left as they are, but for a BMP with a palette of colours, which
    no server looks at. That, PIL images and arrays become PNG, which loses nothing, so that the
    server preprocesses them as evaluation does, whatever their size.

    Raises:
      PictureError: for what is not a picture, or too large.
    """
    data = _encoded_already(image, limits)
    if data is not None:
        check_picture(data, limits)
        if _palette(data) is None:
            return data
    buffer = io.BytesIO()
    _opened(image if data is None else data, limits).save(buffer, "PNG", compress_level=1)
    data = buffer.getvalue()
    if len(data) > limits.bytes:
        raise too_many_bytes(len(data), limits)
    return data


def pixels(image, shape, resize: int | None, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """What the `gates` signature takes: uint8 [height, width, channels] in row-major order.

    Args:
      image: a path, bytes, a PIL image or a uint8 array.
      shape: (height, width, channels) of the network's pictures.
      resize: the model's `preprocessing.resize`, which a server does not tell; 0 scales the whole
        picture, otherwise its shorter side gets that length and the centre is taken. None for
        unknown: only pictures of the network's size are taken, and as they are.
      limits: what a picture may be.

    Raises:
      PictureError: for what is not a picture or too large, also when it is scaled, and for another
        size while `resize` is unknown.
      SettingsError: for a `resize` that leaves fewer pixels than the network takes.
    """
    height, width, _ = shape
    if resize and resize < max(height, width):
        raise SettingsError(
            "resize must be 0 or at least the larger side of the network's pictures, "
            f"{width} x {height}, which are cut out afterwards, got {resize}"
        )
    data = _encoded_already(image, limits)
    if data is not None:
        check_picture(data, limits)
    picture = _opened(image if data is None else data, limits)
    if resize is None and picture.size != (width, height):
        raise PictureError(
            f"gates need a picture of the network's size, {width} x {height}, and this one has "
            f"{picture.width} x {picture.height}; say how the model scales pictures with resize "
            "(--resize), which is preprocessing.resize in the version's assets.extra/gaternet.json"
        )
    return _fitted(picture, shape, resize or 0, limits)


def decode(picture: bytes, shape: tuple[int, int, int], resize: int = 0) -> bytes:
    """Pixels of an encoded picture, uint8 [height, width, channels], as the exported graph sees it.

    Raises:
      PictureError, SettingsError: as `pixels`.
    """
    return pixels(picture, shape, resize)


def can_be_decoded(picture: bytes, limits: Limits = DEFAULT_LIMITS) -> bool:
    """Whether a picture that `check_picture` takes is whole to its end."""
    try:
        _opened(picture, limits)
    except PictureError:
        return False
    return True


def _encoded_already(image, limits):
    """The bytes of a file or of a bytes object; None for what must be encoded first."""
    if isinstance(image, str | os.PathLike):
        return read_file(image, limits)
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    return None


def _opened(image, limits):
    """Encoded bytes, an array or a PIL image as a PIL image in a mode that PNG keeps."""
    import PIL.Image

    try:
        if isinstance(image, bytes):
            palette = _palette(image)
            image = (
                PIL.Image.open(io.BytesIO(image), formats=FORMATS)
                if palette is None
                else _with_palette(image, palette)
            )
        elif not isinstance(image, PIL.Image.Image):
            image = PIL.Image.fromarray(_checked_array(image))
        check_size(image.size, limits)
        if not image.width * image.height:
            raise _not_a_picture(f"it has {image.width} x {image.height} pixels")
        image.load()
        return _as_rgb_or_grey(image)
    # Pillow's plugins raise these too on damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
        raise _not_a_picture(str(error).partition("<")[0].strip()) from error
    # Beside our limit Pillow has its own, PIL.Image.MAX_IMAGE_PIXELS, above the default of ours.
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise _not_a_picture(str(error)) from error


def _palette(data):
    """The palette of a checked BMP, 4 bytes BGRX a colour, or None.

    None also where each colour is the grey of its number, for which TensorFlow takes them all.
    """
    if not data.startswith(b"BM"):
        return None
    start, header, _, _, _, bits = struct.unpack_from("<IIiiHH", data, 10)
    if bits != 8:
        return None
    (colors,) = struct.unpack_from("<I", data, 46)
    palette = data[14 + header : min(14 + header + 4 * min(colors or 256, 256), start)]
    palette = palette[: len(palette) // 4 * 4]
    greys = b"".join(bytes((grey,)) * 3 for grey in range(len(palette) // 4))
    bgr = b"".join(palette[at : at + 3] for at in range(0, len(palette), 4))
    return None if bgr == greys else palette


def _with_palette(data, palette):
    """A checked BMP that has one, as a PIL image.

    Pillow takes one whose palette is black and white for a picture of 1 bit a pixel.
    """
    import PIL.Image

    start, _, width, height = struct.unpack_from("<IIii", data, 10)
    size, row = (width, abs(height)), (width + 3) // 4 * 4
    pixels = data[start : start + row * abs(height)]
    image = PIL.Image.frombytes("P", size, pixels, "raw", "P", row, -1 if height > 0 else 1)
    # A colour that the palette lacks is black.
    image.putpalette(palette.ljust(4 * 256, b"\0"), "BGRX")
    return image


def _checked_array(array):
    interface = getattr(array, "__array_interface__", None)
    if interface is None:
        raise PictureError(
            "a picture must be a path, bytes, a PIL image or a uint8 array, got "
            f"{type(array).__name__}"
        )
    shape, dtype = interface["shape"], interface["typestr"]
    if dtype != "|u1" or len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,), (4,)):
        raise PictureError(
            "an array must be uint8 [height, width] or [height, width, 1, 3 or 4], got "
            f"{getattr(array, 'dtype', dtype)} {list(shape)}"
        )
    return array[:, :, 0] if shape[2:] == (1,) else array


def _as_rgb_or_grey(image):
    """The image in a mode that PNG keeps."""
    import PIL.Image

    if image.mode in PNG_MODES:
        return image
    if image.mode.startswith("I;16"):
        # Pillow would cut 16 bits off at 255; TensorFlow takes the upper eight.
        upper = 0 if image.mode.endswith("B") else 1
        return PIL.Image.frombytes("L", image.size, image.tobytes()[upper::2])
    if image.mode == "CMYK":
        return _rgb_of_cmyk(image)
    if image.mode in ("I", "F"):
        raise PictureError(
            f"a PIL image must have 8 or 16 bits a channel, and this one has mode '{image.mode}'; "
            "convert it with image.convert('L')"
        )
    return image.convert("RGB")


def _rgb_of_cmyk(image):
    """TensorFlow's conversion, which rounds otherwise than Pillow's."""
    import numpy as np
    import PIL.Image

    ink = 255 - np.asarray(image).astype(np.int32)
    return PIL.Image.fromarray((ink[..., :3] * ink[..., 3:] // 255).astype(np.uint8))


def _fitted(image, shape, resize, limits):
    """`Preprocessing.fit` of gaternet_tf, without TensorFlow."""
    height, width, channels = shape
    # The graph decodes all to RGB, which drops an alpha channel, and then makes it grey.
    image = image.convert("RGB")
    if channels == 1:
        image = _grey(image)
    scaled = width, height
    if resize:
        shorter = min(image.size)
        scaled = round(image.width * resize / shorter), round(image.height * resize / shorter)
        # A long and narrow picture may become enormous.
        check_size(scaled, limits, has="is scaled to")
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return _scaled(image, scaled, (left, top, left + width, top + height)).tobytes()


def _grey(image):
    """`tf.image.rgb_to_grayscale`: other weights than Pillow's, and cut off instead of rounded."""
    import numpy as np
    import PIL.Image

    bands = np.asarray(image, np.float32) * np.float32(1 / 255)
    weights = np.array([0.2989, 0.5870, 0.1140], np.float32)
    return PIL.Image.fromarray((bands @ weights * np.float32(255.5)).astype(np.uint8))


def _scaled(image, size, box):
    """`tf.image.resize(antialias=True)`, of which a box is cut out.

    Pillow's filter, but rounded once, at the end.
    """
    if image.size == size:
        return image.crop(box)
    import numpy as np
    import PIL.Image

    bilinear = PIL.Image.Resampling.BILINEAR
    bands = [
        np.rint(np.asarray(band.convert("F").resize(size, bilinear).crop(box)))
        for band in image.split()
    ]
    array = np.stack(bands, axis=-1).clip(0, 255).astype(np.uint8)
    return PIL.Image.fromarray(array[:, :, 0] if len(bands) == 1 else array)
