"""From a picture to the network's input: one implementation for training, evaluation and export."""

import dataclasses

import numpy as np
import tensorflow as tf

FIRST_BYTES = (0x89, ord("G"), ord("B"))
"""Of a PNG, a GIF and a BMP."""
SIDES = np.zeros([26, 6], np.int64)
"""Multiplied with the first bytes of a picture, width and height as each of the three has them."""
SIDES[[19, 18, 17, 16], 0] = SIDES[[23, 22, 21, 20], 1] = 256 ** np.arange(4)
SIDES[[6, 7], 2] = SIDES[[8, 9], 3] = 256 ** np.arange(2)
SIDES[[18, 19, 20, 21], 4] = SIDES[[22, 23, 24, 25], 5] = 256 ** np.arange(4)


def decode_rgb(encoded):
    """Decodes a JPEG, PNG, BMP or a GIF's first frame (string scalar) to uint8 [h, w, 3]."""
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image, (None, None, 3))


def pixels_in_header(encoded):
    """Returns how many pixels a picture (string scalar) has by its header, int64 scalar.

    It decodes nothing. What is no JPEG, PNG, BMP or GIF has 0 pixels.
    """

    def of_jpeg():
        return tf.reduce_prod(tf.image.extract_jpeg_shape(encoded, tf.int64)[:2])

    def of_others():
        header = tf.cast(tf.io.decode_raw([encoded], tf.uint8, fixed_length=26), tf.int64)
        sides = tf.matmul(header, SIDES)
        # A BMP whose first row is the top has a negative height.
        sides = tf.minimum(sides, 2**32 - sides)
        pixels = tf.reduce_prod(tf.reshape(sides, [3, 2]), axis=1)
        return tf.reduce_sum(tf.where(header[0, 0] == FIRST_BYTES, pixels, 0))

    return tf.cond(tf.io.is_jpeg(encoded), of_jpeg, of_others)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Size of a network's input pictures, and the normalisation of their values.

    `mean` and `std` have one entry a channel, on the scale on which a pixel runs from 0 to 1.
    `resize` is the length in pixels that a picture's shorter side is scaled to before the central
    `height` x `width` are cut out; 0 scales the whole picture to that size.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return (self.height, self.width, self.channels)

    def normalize(self, images):
        """Normalises uint8 [batch, height, width, channels] to float32 of mean 0, deviation 1."""
        scaled = tf.cast(images, tf.float32) / 255.0
        return (scaled - tf.constant(self.mean)) / tf.constant(self.std)

    def fit(self, image):
        """Scales and crops uint8 [h, w, 1 or 3] of any size to uint8 [height, width, channels]."""
        if not self.resize:
            return self.scale(image)
        sides = tf.shape(image)[:2]
        sides = tf.cast(sides, tf.float64) * self.resize / tf.cast(tf.reduce_min(sides), tf.float64)
        sides = tf.cast(tf.round(sides), tf.int32)
        top, left = tf.unstack((sides - [self.height, self.width]) // 2)
        scaled = self._scaled(image, sides)
        return tf.ensure_shape(
            scaled[top : top + self.height, left : left + self.width], self.shape
        )

    def scale(self, image):
        """Scales a whole picture, uint8 [h, w, 1 or 3], to uint8 [height, width, channels]."""
        return tf.ensure_shape(self._scaled(image, (self.height, self.width)), self.shape)

    def _scaled(self, image, sides):
        """Scales bilinearly with antialiasing, as Pillow does.

        A picture of the right size keeps its values.
        """
        if self.channels == 1 and image.shape[-1] == 3:
            image = tf.image.rgb_to_grayscale(image)
        elif self.channels == 3 and image.shape[-1] == 1:
            image = tf.image.grayscale_to_rgb(image)
        resized = tf.image.resize(image, sides, antialias=True)
        return tf.saturate_cast(tf.round(resized), tf.uint8)

    def decode(self, encoded):
        """Decodes a JPEG, PNG, BMP or a GIF's first frame (string scalar), and fits it."""
        # BMP knows no grey and "channels=1" means another formula in each format, so every
        # picture is decoded to RGB, and `fit` makes it grey for a network of grey pictures.
        return self.fit(decode_rgb(encoded))

    def to_dict(self) -> dict:
        """Returns the JSON-ready form in run directories and manifests."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocessing":
        """Makes a `Preprocessing` of what `to_dict` returned, also after a trip through JSON."""
        values = {**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])}
        return cls(**values)
