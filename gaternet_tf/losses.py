"""The losses, and the metric of gates; all are float32 whatever Keras' default dtype is."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="gaternet_tf")
class SparsityLoss(keras.losses.Loss):
    """`weight * ||g||_1 / c`, averaged over the batch (paper section 3).

    A loss on the `gates` output rather than a layer's `add_loss`, so that Keras scales it over
    replicas as it scales the task's loss. `y_true` is ignored; `y_pred` are gates [batch, c].

    The variable `scale`, 1 at the start, multiplies the weight: a warm-up raises it from 0.

    Args:
      weight: the paper's lambda, 0 or more.
      **kwargs: those of `keras.losses.Loss`.

    Raises:
      ValueError: for a negative weight, which would reward gates for being on without bound.
    """

    def __init__(self, weight, name="sparsity_loss", dtype="float32", **kwargs):
        super().__init__(name=name, dtype=dtype, **kwargs)
        if not weight >= 0:
            raise ValueError(f"the sparsity weight lambda must be 0 or more, got {weight}")
        self.weight = weight
        self.scale = keras.Variable(1.0, trainable=False, dtype="float32", name="sparsity_scale")

    def call(self, y_true, y_pred):
        return self.weight * self.scale * ops.mean(ops.abs(y_pred), axis=-1)

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}


@keras.saving.register_keras_serializable(package="gaternet_tf")
class SmoothedCrossentropy(keras.losses.Loss):
    """`-log P(y|x)` where the label's class has `1 - smoothing` and all classes share the rest.

    `y_true` are class numbers [batch] or [batch, 1]; `y_pred` are logits [batch, classes].

    Args:
      smoothing: from 0, for the plain cross entropy, to below 1.
      **kwargs: those of `keras.losses.Loss`.

    Raises:
      ValueError: for another smoothing.
    """

    def __init__(self, smoothing=0.0, name="smoothed_crossentropy", dtype="float32", **kwargs):
        super().__init__(name=name, dtype=dtype, **kwargs)
        if not 0 <= smoothing < 1:
            raise ValueError(f"label smoothing must be from 0 to below 1, got {smoothing}")
        self.smoothing = smoothing

    def call(self, y_true, y_pred):
        labels = ops.reshape(ops.cast(y_true, "int64"), (-1,))
        log_chances = ops.log_softmax(y_pred, axis=-1)
        right = ops.take_along_axis(log_chances, labels[:, None], axis=-1)[:, 0]
        if not self.smoothing:
            return -right
        return -(1 - self.smoothing) * right - self.smoothing * ops.mean(log_chances, axis=-1)

    def get_config(self):
        return {**super().get_config(), "smoothing": self.smoothing}


@keras.saving.register_keras_serializable(package="gaternet_tf")
class GateRate(keras.metrics.Mean):
    """Share of gates that are on; a soft gate of training counts as on above one half.

    Above one half is exactly where the pre-activation is above 0, so the metric means the same
    for hard and soft samples. `y_true` is ignored; `y_pred` are gates [batch, c].
    """

    def __init__(self, name="gate_rate", dtype="float32", **kwargs):
        super().__init__(name=name, dtype=dtype, **kwargs)

    def update_state(self, y_true, y_pred, sample_weight=None):
        on = ops.mean(ops.cast(y_pred > 0.5, "float32"), axis=-1)
        super().update_state(on, sample_weight=sample_weight)
