"""Trains a GaterNet: python -m train.main --backbone=resnet164"""

import dataclasses
import os
from typing import Any

from absl import flags

from gaternet_tf.command import define_path, run, run_command
from gaternet_tf.errors import UserError
from train.command import define_settings, settings_by_group
from train.config import RUN, TrainingConfig, default_workdir
from train.experiments import find_experiment, is_pattern, list_experiments

FLAGS = flags.FLAGS

define_settings()
flags.DEFINE_string(
    "experiment",
    None,
    "Named settings, which further flags override. 'help' lists all, and a pattern, such as "
    "'fashion-*', those that match.",
)
flags.DEFINE_boolean("smoke", False, "Only tries the --experiment: two steps of a small network.")
define_path(
    "workdir",
    None,
    "Run directory, new or to resume; default: runs/NAME, named by what is trained.",
)
flags.DEFINE_boolean(
    "previous_checkpoint",
    False,
    "Resumes from the checkpoint before the last, which may be damaged.",
)
flags.DEFINE_integer(
    "logical_cpus", 1, "Splits the CPU in so many devices, to try --strategy=mirrored.", 1
)
EXAMPLES = (
    "python -m train.main --dataset=digits --backbone=resnet14 --gater=resnet8 --epochs=20",
    "python -m train.main --dataset=folder:pictures --image_size=96 --sparsity=0.05",
    "python -m train.main --experiment=fashion-resnet20-gated-open --seed=1",
)


def main(argv):
    """Trains with the settings of the flags; returns the exit status."""
    if is_pattern(FLAGS.experiment):
        return run_command("train.main", argv, print_experiments, tensorflow=False)
    # TensorFlow uses oneDNN by itself only on CPUs with AVX-512; with AVX2 alone a training step
    # takes 1.4 times as long without it.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    return run_command("train.main", argv, train_from_flags)


def print_experiments():
    """Prints the experiments that --experiment asks for."""
    print(list_experiments("*" if FLAGS.experiment == "help" else FLAGS.experiment))


def train_from_flags():
    """Trains the run that the flags describe."""
    config, workdir = resolve(FLAGS)
    import tensorflow as tf

    from train.loop import train

    if FLAGS.logical_cpus > 1:
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * FLAGS.logical_cpus,
        )
    train(config, workdir, FLAGS.previous_checkpoint)


def resolve(values: flags.FlagValues) -> tuple[TrainingConfig, str]:
    """Returns the settings and the run directory that flags stand for.

    Raises:
      UserError: for an experiment that there is not.
    """
    if values.smoke and not values.experiment:
        raise UserError("--smoke tries a named experiment; give --experiment=NAME too")
    named: dict[str, Any] = {}
    if values.experiment:
        experiment = find_experiment(values.experiment)
        named = experiment.smoke() if values.smoke else experiment.settings
    settings = {
        field.name: values[field.name].value
        for field in dataclasses.fields(TrainingConfig)
        if values[field.name].present or field.name not in named
    }
    config = TrainingConfig(**(named | settings))
    workdir = values.workdir or default_workdir(config, named, values.experiment, values.smoke)
    return config, workdir


if __name__ == "__main__":
    sections = settings_by_group()
    own = ["experiment", "smoke", "workdir", "previous_checkpoint"]
    sections[RUN] = [*own, *sections[RUN], "logical_cpus"]
    run(main, sections, EXAMPLES)
