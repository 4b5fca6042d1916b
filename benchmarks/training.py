"""Training speed: gated against plain, precisions, the overhead of fit, the input pipeline.

    python -m benchmarks.training --backbone=resnet20

All contenders of a table take turns in one run, so that other load of the machine slows them alike;
compare ratios, not times. With PyTorch installed (pip install '.[torch]') the same network written
in PyTorch takes part.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags

from train.command import run_command

FLAGS = flags.FLAGS

flags.DEFINE_string("backbone", "resnet20", "ResNet of basic units that is gated.")
flags.DEFINE_string("gater", "resnet20", "ResNet that gates it.")
flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Turns of each contender; medians are printed.", 1)
flags.DEFINE_integer("steps", 3, "Steps per turn.", lower_bound=1)
SHAPE = (32, 32, 3)


@dataclasses.dataclass
class Contender:
    """Code to time: `run` does one turn of `images` images."""

    name: str
    run: Callable[[], None]
    images: int


def take_turns(contenders: list[Contender], rounds: int) -> dict[str, float]:
    """Returns the median seconds per image of each, after one turn that does not count."""
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(rounds + 1):
        for contender in contenders:
            started = time.perf_counter()
            contender.run()
            if turn:
                times[contender.name].append((time.perf_counter() - started) / contender.images)
    return {name: statistics.median(values) for name, values in times.items()}


def show(title: str, seconds: dict[str, float], base: str) -> None:
    """Prints images per second, and the time divided by that of `base`."""
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:32} {1 / value:8.0f} images/s   {value / seconds[base]:5.2f}", flush=True)


def build(backbone, gater, policy="float32", steps_per_execution=1):
    """Returns a compiled model."""
    import keras

    from gaternet_tf import build_gaternet
    from train.recipe import compile_model, set_weight_decay

    keras.mixed_precision.set_dtype_policy(policy)
    model = build_gaternet(backbone, gater, SHAPE)
    keras.mixed_precision.set_dtype_policy("float32")
    set_weight_decay(model, 1e-4)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
    compile_model(model, optimizer, 0.1, steps_per_execution=steps_per_execution)
    return model


def data():
    """Returns one batch of noise, (images, labels)."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.normal(size=(FLAGS.batch_size, *SHAPE)).astype(np.float32)
    return images, rng.integers(0, 10, FLAGS.batch_size)


def bare_step(name, model) -> Contender:
    """Returns Keras' training step in a plain loop."""
    import tensorflow as tf

    images, labels = (tf.constant(array) for array in data())
    step = tf.function(model.train_step, autograph=False)
    batch = (images, dict.fromkeys(model.output_names, labels))

    def run():
        for _ in range(FLAGS.steps):
            step(batch)

    return Contender(name, run, FLAGS.steps * FLAGS.batch_size)


def fitted(name, model, steps) -> Contender:
    """Returns `fit` on the same batch, with everything that `fit` does around a step."""
    import tensorflow as tf

    from gaternet_tf.data.dataset import untuned
    from train.recipe import with_targets

    batches = tf.data.Dataset.from_tensors(data()).repeat()
    batches = with_targets(batches, model).prefetch(2).with_options(untuned())

    def run():
        model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)

    return Contender(name, run, steps * FLAGS.batch_size)


def input_pipeline() -> Contender:
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
    batches = training_batches(
        dataset, preprocessing, CIFAR_AUGMENTATION, FLAGS.batch_size, range(1_000), 0
    )
    turn = 100
    iterator = iter(batches)

    def run():
        for _ in range(turn):
            next(iterator)

    return Contender("input pipeline", run, turn * FLAGS.batch_size)


def torch_step() -> Contender | None:
    """Returns the gated network in PyTorch, channels last, or None without PyTorch."""
    try:
        from benchmarks.torch_network import training_step
    except ImportError:
        return None
    step = training_step(FLAGS.backbone, FLAGS.gater, *data())

    def run():
        for _ in range(FLAGS.steps):
            step()

    return Contender("gated, PyTorch", run, FLAGS.steps * FLAGS.batch_size)


def main(argv):
    """Runs the benchmark; returns the exit status."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As train.main does.
    return run_command("benchmarks.training", argv, print_tables)


def print_tables():
    """Prints the tables."""
    backbone, gater, rounds = FLAGS.backbone, FLAGS.gater, FLAGS.rounds
    gated = build(backbone, gater)
    seconds = take_turns(
        [
            bare_step("backbone", build(backbone, "none")),
            bare_step("gater's network", build(gater, "none")),
            bare_step("gated", gated),
        ],
        rounds,
    )
    show(f"one training step, {backbone}, batch {FLAGS.batch_size}", seconds, "gated")
    parts = seconds["backbone"] + seconds["gater's network"]
    print(f"  gated / (backbone + gater's network) = {seconds['gated'] / parts:.2f}")

    # A table of its own: bfloat16 without hardware for it is slow, and disturbs its neighbours.
    contenders = [
        bare_step("gated", gated),
        bare_step("gated, bfloat16", build(backbone, gater, "mixed_bfloat16")),
    ]
    if (torch := torch_step()) is not None:
        contenders.append(torch)
    show("the same step otherwise", take_turns(contenders, rounds), "gated")

    many = build(backbone, gater, steps_per_execution=8)
    seconds = take_turns(
        [
            bare_step("bare step", gated),
            fitted("fit", gated, 8),
            fitted("fit, steps_per_execution=8", many, 8),
        ],
        rounds,
    )
    show("fit's own overhead", seconds, "bare step")

    seconds = take_turns([bare_step("backbone", build(backbone, "none")), input_pipeline()], rounds)
    show("input pipeline against what training consumes", seconds, "backbone")


if __name__ == "__main__":
    app.run(main)
