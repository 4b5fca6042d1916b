"""Training speed: gated against plain, precisions, the overhead of fit, the input pipeline.

    python -m benchmarks.training --backbone=resnet20

All contenders of a table take turns in one run, so that other load of the machine slows them alike;
compare ratios, not times. With PyTorch installed (pip install '.[torch]') a ResNet of basic units
written in PyTorch takes part.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from absl import flags

from gaternet_tf.command import run, run_command

FLAGS = flags.FLAGS

flags.DEFINE_string("backbone", "resnet20", "Network that is gated.")
flags.DEFINE_string("gater", "resnet20", "Network that gates it.")
flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Turns of each contender; medians are printed.", 1)
flags.DEFINE_integer("steps", 3, "Steps per turn.", lower_bound=1)
SHAPE = (32, 32, 3)
INPUT_BATCHES = 100
"""Batches of a turn of the input pipeline."""


def compare(title: str, contenders: dict[str, Callable[[], int]], base: str) -> dict[str, float]:
    """Lets contenders take turns, and prints their images per second and time relative to `base`.

    Args:
      title: of the printed table.
      contenders: by name, what does one turn and returns the number of steps or batches in it.
      base: name of the contender that the times are divided by.

    Returns:
      The median seconds per image of each, without its first turn.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(FLAGS.rounds + 1):
        for name, turn_of in contenders.items():
            started = time.perf_counter()
            images = turn_of() * FLAGS.batch_size
            if turn:
                times[name].append((time.perf_counter() - started) / images)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:32} {1 / value:8.0f} images/s   {value / seconds[base]:5.2f}", flush=True)
    return seconds


def build(backbone, gater, policy="float32", steps_per_execution=1):
    """Returns a compiled model."""
    import keras

    from gaternet_tf.models import build_gaternet
    from train.recipe import compile_model, set_weight_decay

    keras.mixed_precision.set_dtype_policy(policy)
    model = build_gaternet(backbone, gater, SHAPE)
    keras.mixed_precision.set_dtype_policy("float32")
    set_weight_decay(model, 1e-4)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
    compile_model(model, optimizer, 0.1, steps_per_execution=steps_per_execution)
    return model


def noise():
    """Returns one batch, (images, labels)."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.normal(size=(FLAGS.batch_size, *SHAPE)).astype(np.float32)
    return images, rng.integers(0, 10, FLAGS.batch_size)


def repeated(step):
    """Returns a contender that takes `--steps` times a step."""

    def run():
        for _ in range(FLAGS.steps):
            step()
        return FLAGS.steps

    return run


def bare_step(model):
    """Returns Keras' training step in a plain loop."""
    import tensorflow as tf

    images, labels = (tf.constant(array) for array in noise())
    step = tf.function(model.train_step, autograph=False)
    batch = (images, dict.fromkeys(model.output_names, labels))
    return repeated(lambda: step(batch))


def fitted(model):
    """Returns `fit` on the same batch, with everything that `fit` does around a step."""
    import tensorflow as tf

    from gaternet_tf.data.dataset import untuned
    from train.recipe import with_targets

    batches = tf.data.Dataset.from_tensors(noise()).repeat()
    batches = with_targets(batches, model).prefetch(2).with_options(untuned())

    def run():
        model.fit(batches, steps_per_epoch=FLAGS.steps, shuffle=False, verbose=0)
        return FLAGS.steps

    return run


def input_pipeline():
    """Returns the training pipeline with CIFAR's augmentation, from memory, on 50,000 images."""
    import numpy as np
    import tensorflow as tf

    from gaternet_tf.data import Preprocessing, defaults_of, training_batches
    from gaternet_tf.data.defaults import CIFAR_AUGMENTATION

    images = np.random.default_rng(0).integers(0, 256, (50_000, *SHAPE)).astype(np.uint8)

    class InMemory:
        """A cached `Dataset`."""

        training_images = len(images)
        image_shape = SHAPE

        def training_files(self):
            """Returns (image, label) pairs."""
            return tf.data.Dataset.from_tensor_slices((images, np.zeros(len(images), np.int64)))

        def decode(self, image, label):
            """Returns both as they are."""
            return image, label

    preprocessing = Preprocessing(*SHAPE, *(defaults_of("cifar10").statistics or ()))
    dataset: Any = InMemory()
    epochs = range(1_000)
    iterator = iter(
        training_batches(dataset, preprocessing, CIFAR_AUGMENTATION, FLAGS.batch_size, epochs, 0)
    )

    def run():
        for _ in range(INPUT_BATCHES):
            next(iterator)
        return INPUT_BATCHES

    return run


def torch_contender() -> dict:
    """Returns a gated ResNet in PyTorch, channels last, or nothing without PyTorch."""
    if not FLAGS.backbone.startswith("resnet"):
        return {}
    try:
        from benchmarks.torch_network import training_step
    except ImportError:
        return {}
    return {"gated, PyTorch": repeated(training_step(FLAGS.backbone, FLAGS.gater, *noise()))}


def main(argv):
    """Runs the benchmark; returns the exit status."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As train.main does.
    return run_command("benchmarks.training", argv, print_tables)


def print_tables():
    """Prints the tables."""
    backbone, gater, steps = FLAGS.backbone, FLAGS.gater, FLAGS.steps
    gated_model = build(backbone, gater)
    plain, gated = bare_step(build(backbone, "none")), bare_step(gated_model)
    gaters_network = bare_step(build(gater, "none"))
    seconds = compare(
        f"one training step, {backbone}, batch {FLAGS.batch_size}",
        {"backbone": plain, "gater's network": gaters_network, "gated": gated},
        "gated",
    )
    parts = seconds["backbone"] + seconds["gater's network"]
    print(f"  gated / (backbone + gater's network) = {seconds['gated'] / parts:.2f}")
    # A table of its own: bfloat16 without hardware for it is slow, and disturbs its neighbours.
    bfloat16 = bare_step(build(backbone, gater, "mixed_bfloat16"))
    compare(
        "the same step otherwise",
        {"gated": gated, "gated, bfloat16": bfloat16, **torch_contender()},
        "gated",
    )
    several = fitted(build(backbone, gater, steps_per_execution=steps))
    fit = fitted(gated_model)
    compare(
        "fit's own overhead",
        {"bare step": gated, "fit": fit, f"fit, steps_per_execution={steps}": several},
        "bare step",
    )
    compare(
        "input pipeline against what training consumes",
        {"backbone": plain, "input pipeline": input_pipeline()},
        "backbone",
    )


if __name__ == "__main__":
    run(main)
