"""Random crops and flips that differ from image to image and from epoch to epoch."""

import dataclasses

import tensorflow as tf

CROP_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied.

    Called on a batch, it pads by `padding` zero pixels on every side, crops at random to the old
    size and maybe flips, as the CIFAR recipe does. With `resized_crop`, `cut` comes before that,
    on each picture in its own size, as the ImageNet recipe does.
    """

    padding: int = 0
    flip: bool = False
    resized_crop: bool = False

    def cut(self, image, seed):
        """A random part of a picture, to be scaled to the network's size (Inception's crop).

        8 to 100 % of its area at an aspect ratio of 3:4 to 4:3, by TensorFlow's sampler; the whole
        picture where that finds none in ten attempts.

        Args:
          image: any dtype [height, width, channels].
          seed: integer [2]; the same seed gives the same part.
        """
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros([1, 0, 4]),
            seed,
            min_object_covered=0.0,
            aspect_ratio_range=CROP_ASPECT,
            area_range=CROP_AREA,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.ensure_shape(tf.slice(image, begin, size), [None, None, image.shape[-1]])

    def __call__(self, images, seed, start=0, whole=None):
        """Augments a batch, each image by its own draw.

        Args:
          images: any dtype [batch, height, width, channels].
          seed: integer [2]; the same seed gives the same crops and flips.
          start: where in a larger batch of `whole` images these begin; the draws are then those
            that they would have got there.
          whole: size of that batch; None: these are all.

        Returns:
          Images of the same shape and dtype.
        """
        count = tf.shape(images)[0]
        whole = count if whole is None else whole
        crop_seed, flip_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        if self.padding:
            most = 2 * self.padding + 1
            offsets = tf.random.stateless_uniform(
                [2, whole, 1], crop_seed, maxval=most, dtype=tf.int32
            )
            images = self._crop(images, offsets[:, start : start + count])
        if self.flip:
            heads = tf.random.stateless_uniform([whole, 1, 1, 1], flip_seed) < 0.5
            images = tf.where(heads[start : start + count], tf.reverse(images, axis=[2]), images)
        return images

    def _crop(self, images, offsets):
        height, width = tf.unstack(tf.shape(images)[1:3])
        pad = self.padding
        padded = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
        cropped = tf.gather(padded, offsets[0] + tf.range(height), axis=1, batch_dims=1)
        cropped = tf.gather(cropped, offsets[1] + tf.range(width), axis=2, batch_dims=1)
        return tf.ensure_shape(cropped, images.shape)
