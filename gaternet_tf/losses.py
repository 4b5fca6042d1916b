"""The sparsity loss and the metrics that belong to gates."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="gaternet_tf")
class SparsityLoss(keras.losses.Loss):
    """`weight * ||g||_1 / c`, averaged over the batch (paper section 3).

    A loss on the `gates` output rather than a layer's `add_loss`, so that Keras scales it over
    replicas as it scales the task's loss. `y_true` is ignored; `y_pred` are gates [batch, c].

    Args:
      weight: the paper's lambda, 0 or more.
      **kwargs: those of `keras.losses.Loss`.

    Raises:
      ValueError: for a negative weight, which would reward open gates without bound.
    """

    def __init__(self, weight, name="sparsity_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        if not weight >= 0:
            raise ValueError(f"the sparsity weight lambda must be 0 or more, got {weight}")
        self.weight = weight

    def call(self, y_true, y_pred):
        return self.weight * ops.mean(ops.abs(y_pred), axis=-1)

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}


@keras.saving.register_keras_serializable(package="gaternet_tf")
class GateRate(keras.metrics.Mean):
    """Share of gates that are on; a soft gate of training counts as on above one half.

    Above one half is exactly where the pre-activation is above 0, so the metric means the same
    for hard and soft samples. `y_true` is ignored; `y_pred` are gates [batch, c].
    """

    def __init__(self, name="gate_rate", **kwargs):
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true, y_pred, sample_weight=None):
        on = ops.mean(ops.cast(y_pred > 0.5, "float32"), axis=-1)
        super().update_state(on, sample_weight=sample_weight)
