"""Pictures as they are sent."""

import io
import os
import pathlib

from serving.client.channel import MAX_MESSAGE, PictureError

MAX_PICTURE = MAX_MESSAGE * 3 // 4
"""The largest picture that is sent, in bytes."""
MAX_PIXELS = 25_000_000
"""As many pixels as an exported graph decodes, `MAX_PIXELS` in export/signatures.py."""
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Pillow's modes that PNG keeps as they are."""


def encode(image) -> bytes | PictureError:
    """Returns the encoded picture that is sent for a path, bytes, a PIL image or a uint8 array.

    Files and bytes are sent as they are. PIL images and arrays become PNG, and so do BMPs, whose
    palettes servers ignore, and WebPs, which not every server reads. An image that cannot be sent
    gives the error that answers it.
    """
    if isinstance(image, str | os.PathLike):
        try:
            image = pathlib.Path(image).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", error)
            if isinstance(error, IsADirectoryError):
                reason = "a directory without pictures, or one that may not be read"
            return PictureError(f"cannot be read ({reason})")
    if not isinstance(image, bytes) or image.startswith(b"BM") or image[8:12] == b"WEBP":
        try:
            image = _as_png(image)
        # Pillow raises exceptions of many kinds for damaged files.
        except Exception as error:
            return PictureError(f"is not a picture that can be sent ({error})")
    if not 0 < len(image) <= MAX_PICTURE:
        return PictureError(f"must have 1 to {MAX_PICTURE:,} bytes, and has {len(image):,}")
    return image


def _as_png(image) -> bytes:
    import PIL.Image

    if isinstance(image, bytes):
        picture: PIL.Image.Image = PIL.Image.open(io.BytesIO(image), formats=["BMP", "WEBP"])
        if picture.mode == "1" and image[28] != 1:
            # Pillow reads 1 bit a pixel of any BMP with the two colours black and white.
            raise ValueError(f"a black-and-white BMP of {image[28]} bits a pixel")
    elif isinstance(image, PIL.Image.Image):
        picture = image
    elif getattr(image, "dtype", None) == "uint8":
        picture = PIL.Image.fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image)
    else:
        kind = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"neither a path, bytes, a PIL image nor a uint8 array, but {kind}")
    if (pixels := picture.width * picture.height) > MAX_PIXELS:
        raise ValueError(f"at most {MAX_PIXELS:,} pixels, got {pixels:,}; scale it down")
    if picture.mode not in PNG_MODES or isinstance(image, bytes):
        if picture.mode[0] in "IF":
            raise ValueError(f"Pillow's mode '{picture.mode}'; convert it to 'L' or 'RGB'")
        picture = picture.convert("RGB")
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
