"""Trains a GaterNet: python -m train.main --backbone=resnet164"""

import dataclasses
import os
import re
from typing import Any

from absl import app, flags

from train.command import define_settings, run_command
from train.config import TrainingConfig

FLAGS = flags.FLAGS

define_settings()
flags.DEFINE_string(
    "experiment", None, "Named settings, which further flags override; 'help' lists them."
)
flags.DEFINE_boolean("smoke", False, "Only tries the --experiment: two steps of a small network.")
flags.DEFINE_string("workdir", None, "Run directory; default runs/DATASET-BACKBONE-SEED.")
flags.DEFINE_boolean(
    "previous_checkpoint", False, "Resumes from the checkpoint before the last, damaged one."
)
flags.DEFINE_integer(
    "logical_cpus", 1, "Splits the CPU in so many devices, to try --strategy=mirrored.", 1
)


def main(argv):
    """Trains with the settings of the flags; returns the exit status."""
    if FLAGS.smoke and not FLAGS.experiment:
        raise app.UsageError("--smoke tries a named experiment; give --experiment=NAME too")
    # TensorFlow uses oneDNN by itself only on CPUs with AVX-512; with AVX2 alone a training step
    # takes 1.4 times as long without it.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    return run_command("train.main", argv, list_experiments_or_train)


def list_experiments_or_train():
    """Does what the flags ask for."""
    from train.experiments import find_experiment, list_experiments

    if FLAGS.experiment == "help":
        print(list_experiments())
        return
    settings: dict[str, Any] = {
        field.name: FLAGS[field.name].value for field in dataclasses.fields(TrainingConfig)
    }
    if FLAGS.experiment:
        experiment = find_experiment(FLAGS.experiment)
        named = experiment.smoke() if FLAGS.smoke else experiment.settings
        settings |= {name: named[name] for name in named if not FLAGS[name].present}
    import tensorflow as tf

    from train.loop import train

    if FLAGS.logical_cpus > 1:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * FLAGS.logical_cpus,
        )
    config = TrainingConfig(**settings)
    train(config, FLAGS.workdir or default_workdir(config), FLAGS.previous_checkpoint)


def default_workdir(config: TrainingConfig) -> str:
    """Returns runs/EXPERIMENT-SEED, or runs/DATASET-BACKBONE-SEED."""
    name = FLAGS.experiment or re.sub(r"[^\w.-]+", "-", f"{config.dataset}-{config.backbone}")
    return f"runs/{name}{'-smoke' if FLAGS.smoke else ''}-{config.seed}"


if __name__ == "__main__":
    app.run(main)
