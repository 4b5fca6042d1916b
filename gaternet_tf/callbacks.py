"""A callback for `fit` that watches the gates."""

import keras


class WarnOfConstantGates(keras.callbacks.Callback):
    """Prints a warning after every epoch in which no gate depends on the image.

    Such a network can be accurate, and is a plain one all the same. The gates are those of
    inference, without noise, and only the part of the model that computes them is run.

    Args:
      images: what `keras.Model.predict` takes, an array or a `tf.data.Dataset` of batches; a
        thousand images are enough.

    Raises:
      ValueError: when training starts, for a model that is not functional or has no output `gates`.
    """

    def __init__(self, images):
        super().__init__()
        self.images = images

    def on_train_begin(self, logs=None):
        outputs = getattr(self.model, "output", [])
        if not isinstance(outputs, dict):
            names = getattr(self.model, "output_names", [])
            outputs = dict(zip(names, keras.tree.flatten(outputs), strict=False))
        if "gates" not in outputs:
            raise ValueError(
                "WarnOfConstantGates needs a functional model with an output named 'gates', as is "
                "keras.Model(images, {'logits': logits, 'gates': gates}); got outputs named "
                f"{list(outputs)}"
            )
        self.gater = keras.Model(self.model.input, outputs["gates"])

    def on_epoch_end(self, epoch, logs=None):
        on = self.gater.predict(self.images, verbose=0) > 0
        always_on, always_off = int(on.all(axis=0).sum()), int((~on).all(axis=0).sum())
        if text := constant_gates_warning(on[0].size, always_on, always_off, f"{len(on)} images"):
            # A progress bar leaves the cursor at the end of its line.
            print(f"\n{text}", flush=True)


def constant_gates_warning(gates: int, always_on: int, always_off: int, images: str) -> str | None:
    """Returns a warning when all gates are always on or always off, else None.

    Args:
      gates: number of gates.
      always_on: how many are on for every image.
      always_off: how many are off for every image.
      images: words for the images, such as "1000 training images".
    """
    if always_on + always_off < gates:
        return None
    problem, remedy = "the gates are the same", "lower"
    if always_on == gates:
        problem, remedy = "all gates are on", "raise"
    elif always_off == gates:
        problem = "all gates are off"
    return (
        f"warning: {problem} for every image ({always_on} of {gates} always on, {always_off} "
        f"always off on {images}); {remedy} lambda, the weight of the sparsity loss, or give the "
        "gater a bottleneck with batch normalisation"
    )
