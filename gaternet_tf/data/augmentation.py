"""Random crops and flips that differ from image to image and from epoch to epoch."""

import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random crops and flips of training pictures.

    Calling it on a batch pads by `padding` zero pixels on every side, crops at random to the old
    size and flips half of the pictures if `flip`, as in the CIFAR recipe. With `resized_crop`, each
    picture is first `cut` in its own size, as in the ImageNet recipe.
    """

    padding: int = 0
    flip: bool = False
    resized_crop: bool = False

    def cut(self, image, seed):
        """Cuts a random part out of a picture, to be scaled to the network's size (Inception crop).

        The part has 8 to 100 % of the area at an aspect ratio of 3:4 to 4:3, or is the whole
        picture after ten attempts that do not fit.

        Args:
          image: any dtype [height, width, channels].
          seed: integer [2]; the same seed gives the same part.
        """
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros([1, 0, 4]),
            seed,
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.ensure_shape(tf.slice(image, begin, size), [None, None, image.shape[-1]])

    def __call__(self, images, seed, start=0, whole=None):
        """Augments a batch, drawing for each image on its own.

        Args:
          images: any dtype [batch, height, width, channels].
          seed: integer [2]; the same seed gives the same crops and flips.
          start: index of the first image in a larger batch, of which these are a part; the draws
            are those of the larger batch.
          whole: size of the larger batch; None if these images are all of it.

        Returns:
          Images of the same shape and dtype.
        """
        count = tf.shape(images)[0]
        whole = count if whole is None else whole
        crop_seed, flip_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        if self.padding:
            offsets = tf.random.stateless_uniform(
                [2, whole, 1], crop_seed, maxval=2 * self.padding + 1, dtype=tf.int32
            )
            rows, columns = offsets[0, start : start + count], offsets[1, start : start + count]
            height, width = tf.unstack(tf.shape(images)[1:3])
            around = [self.padding, self.padding]
            padded = tf.pad(images, [[0, 0], around, around, [0, 0]])
            cropped = tf.gather(padded, rows + tf.range(height), axis=1, batch_dims=1)
            cropped = tf.gather(cropped, columns + tf.range(width), axis=2, batch_dims=1)
            images = tf.ensure_shape(cropped, images.shape)
        if self.flip:
            heads = tf.random.stateless_uniform([whole, 1, 1, 1], flip_seed) < 0.5
            images = tf.where(heads[start : start + count], tf.reverse(images, axis=[2]), images)
        return images
