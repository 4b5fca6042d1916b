"""Knowledge distilled from a finished run, the teacher (Hinton et al. 2015)."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from gaternet_tf.data import Preprocessing
from gaternet_tf.errors import UserError
from gaternet_tf.runs import open_run
from train.inputs import SAME_NORMALIZATION


class DistillationLoss(keras.losses.Loss):
    """`T^2 * KL(softmax(t / T) || softmax(s / T))`, averaged over the batch.

    `y_true` are the teacher's logits t, `y_pred` the student's s, [batch, classes]; T^2 keeps the
    size of the gradient.
    """

    def __init__(self, temperature):
        super().__init__(name="distillation_loss", dtype="float32")
        self.temperature = temperature

    def call(self, y_true, y_pred):
        teacher, student = (ops.log_softmax(each / self.temperature) for each in (y_true, y_pred))
        return self.temperature**2 * ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)


class Student(keras.Model):
    """A functional model that is trained with `weight` of its task's loss from a teacher.

    The loss is `(1 - weight) * logits_loss + weight * DistillationLoss` and the other terms.
    """

    def learn_from(self, teacher: keras.Model, weight: float, temperature: float) -> None:
        """Takes the teacher, which becomes no part of the model, its weights or its checkpoints."""
        loss = DistillationLoss(temperature)
        self.task_weight = 1.0 - weight

        # Keras and TensorFlow would track the teacher as an attribute, but not in a function.
        def teachers_loss(images, logits):
            answers = ops.stop_gradient(teacher(images, training=False)["logits"])
            return weight * loss(answers, logits)

        self.teachers_loss = teachers_loss

    def compile(self, optimizer, loss, **settings):
        weights = {**dict.fromkeys(loss, 1.0), "logits": self.task_weight}
        super().compile(optimizer, loss=loss, loss_weights=weights, **settings)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss + self.teachers_loss(x, y_pred["logits"])


def open_teacher(path: str, labels: Sequence[str], preprocessing: Preprocessing) -> keras.Model:
    """Returns the network of a finished run that classifies the same pictures.

    Raises:
      UserError: when there is none, or its classes or pictures are others.
    """
    run = open_run(path, "--distill")
    theirs = run.preprocessing
    facts: dict[str, tuple[Any, Any]] = {
        "classes": (run.labels, list(labels)),
        "size": (theirs.shape, preprocessing.shape),
        "mean": (theirs.mean, preprocessing.mean),
        "deviation": (theirs.std, preprocessing.std),
    }
    for what, (their, our) in facts.items():
        if their != our and not (
            what in ("mean", "deviation") and np.allclose(their, our, atol=SAME_NORMALIZATION)
        ):
            raise UserError(
                "--distill must be a run with the same classes, and pictures of the same size and "
                f"normalisation, and '{path}' differs in {what} ({their} there, {our} here); give "
                "another run, or the settings that make them the same"
            )
    teacher = run.load_model()
    teacher.trainable = False
    return teacher
