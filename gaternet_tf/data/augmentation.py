"""Random crops and flips that differ from image to image and from epoch to epoch."""

import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Pad by `padding` zero pixels on every side, crop at random to the old size, maybe flip."""

    padding: int = 0
    flip: bool = False

    def __call__(self, images, seed):
        """Augments a batch, each image by its own draw.

        Args:
          images: any dtype [batch, height, width, channels].
          seed: integer [2]; the same seed gives the same crops and flips.

        Returns:
          Images of the same shape and dtype.
        """
        crop_seed, flip_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        if self.padding:
            images = self._crop(images, crop_seed)
        if self.flip:
            heads = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], flip_seed) < 0.5
            images = tf.where(heads, tf.reverse(images, axis=[2]), images)
        return images

    def _crop(self, images, seed):
        batch, height, width = tf.unstack(tf.shape(images)[:3])
        pad = self.padding
        padded = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
        offsets = tf.random.stateless_uniform(
            [2, batch, 1], seed, maxval=2 * pad + 1, dtype=tf.int32
        )
        cropped = tf.gather(padded, offsets[0] + tf.range(height), axis=1, batch_dims=1)
        cropped = tf.gather(cropped, offsets[1] + tf.range(width), axis=2, batch_dims=1)
        return tf.ensure_shape(cropped, images.shape)
