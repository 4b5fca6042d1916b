"""Trains a GaterNet: python -m train.main --backbone=resnet164"""

import dataclasses
import os
import re
import sys
from typing import Any

from absl import app, flags, logging

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "experiment", None, "Named settings, which flags given beside override; 'help' lists them."
)
flags.DEFINE_boolean("smoke", False, "Only tries the --experiment: two steps of a small network.")
flags.DEFINE_string("backbone", "resnet20", "Network that classifies: resnet20, resnet164, ...")
flags.DEFINE_integer("width", 16, "Base channels of the backbone; the paper's have 16.", 1)
flags.DEFINE_string("gater", "resnet20", "Network that gates it, named alike; 'none' for no gates.")
flags.DEFINE_enum(
    "attention",
    "none",
    ["none", "se"],
    "'se' scales channels by squeeze-and-excitation instead of gates; needs --gater=none.",
)
flags.DEFINE_string(
    "dataset",
    "cifar10",
    "'digits' (needs no network), idx:DIR for MNIST-format files, folder:DIR for pictures in "
    "DIR/train/CLASS and DIR/test/CLASS or in DIR/CLASS, or the name of a TFDS set.",
)
flags.DEFINE_string("data_dir", None, "TFDS directory to read and prepare datasets in.")
flags.DEFINE_boolean("download", True, "Whether a dataset that is not on disk may be fetched.")
flags.DEFINE_boolean(
    "skip_unreadable", False, "Whether pictures of folder:DIR that cannot be read are left out."
)
flags.DEFINE_string("workdir", None, "Run directory; default runs/DATASET-BACKBONE-SEED.")
flags.DEFINE_float(
    "validation",
    None,
    "Share of the training images held out; default 0.1, of sets above 200,000 images 0.01.",
    lower_bound=0,
)
flags.DEFINE_boolean(
    "previous_checkpoint", False, "Resumes from the checkpoint before the last, damaged one."
)
flags.DEFINE_enum(
    "select",
    "best",
    ["best", "last"],
    "The epoch whose weights the run ends with: best on the validation images, or the last.",
)
flags.DEFINE_integer("epochs", 160, "Passes over the training images.", lower_bound=1)
flags.DEFINE_integer("steps_per_epoch", None, "Ends each pass after so many steps.", 1)
flags.DEFINE_integer("batch_size", 128, "Images a step, over all replicas.", lower_bound=1)
flags.DEFINE_enum("optimizer", "sgd", ["sgd", "adam"], "SGD with Nesterov momentum, or Adam.")
flags.DEFINE_float("learning_rate", 0.1, "At the start, after the warm-up.")
flags.DEFINE_enum(
    "schedule",
    "step",
    ["step", "cosine"],
    "Learning rate: divided by 10 after 1/2 and 3/4 of the training, or half a cosine to 0.",
)
flags.DEFINE_float("warmup_epochs", 0.0, "Epochs of linear rise to it.", lower_bound=0)
flags.DEFINE_float("momentum", 0.9, "Nesterov momentum.", lower_bound=0)
flags.DEFINE_float(
    "weight_decay", 1e-4, "w in gradient + w * kernel, as PyTorch counts it.", lower_bound=0
)
flags.DEFINE_float(
    "sparsity", 0.1, "Weight lambda of the sparsity loss lambda * ||g||_1 / c.", lower_bound=0
)
flags.DEFINE_float("sparsity_warmup_epochs", 0.0, "Epochs of linear rise to lambda.", 0)
flags.DEFINE_float(
    "label_smoothing", 0.0, "Share of a label that all classes get alike.", lower_bound=0
)
flags.DEFINE_enum(
    "gated_convs", "last", ["last", "all"], "Which convolutions of a residual unit are gated."
)
flags.DEFINE_integer("bottleneck", 8, "Units before the gater's last layer.", lower_bound=1)
flags.DEFINE_boolean("head_batch_norm", True, "Batch normalisation in the gater's bottleneck.")
flags.DEFINE_float(
    "gate_bias", 0.0, "Bias of the gates at the start; above 0 most are on then. The paper has 0."
)
flags.DEFINE_integer("image_size", 0, "Side of the pictures, pixels; 0: the dataset's own.")
flags.DEFINE_integer(
    "crop_padding", None, "Pixels to pad before the random crop; default: the dataset's.", 0
)
flags.DEFINE_boolean("flip", None, "Random horizontal flips; default: the dataset's.")
flags.DEFINE_boolean(
    "resized_crop",
    None,
    "Random parts of the pictures, scaled to --image_size (Inception's crop); default: the "
    "dataset's, which is so for imagenet2012.",
)
flags.DEFINE_integer(
    "resize",
    None,
    "Pixels that the shorter side has before the central crop of evaluation and serving; 0: no "
    "crop; default: the dataset's, 256 for imagenet2012.",
    lower_bound=0,
)
flags.DEFINE_integer("seed", 0, "Seed of weights, gate noise, order and crops.", lower_bound=0)
flags.DEFINE_enum(
    "strategy",
    "auto",
    ["auto", "none", "mirrored", "multi_worker"],
    "Devices: all GPUs if there are several, one, a replica on every GPU or logical CPU, or the "
    "same on every machine of the environment variable TF_CONFIG.",
)
flags.DEFINE_integer(
    "logical_cpus", 1, "Splits the CPU in so many devices, to try --strategy=mirrored.", 1
)
flags.DEFINE_boolean(
    "synchronized_batch_norm", True, "Whether replicas share the moments of batch normalisation."
)
flags.DEFINE_boolean("jit_compile", False, "Whether XLA compiles the training step.")
flags.DEFINE_integer(
    "steps_per_execution", 1, "Steps between two looks at the numbers; one device only.", 1
)
flags.DEFINE_boolean(
    "deterministic", False, "Whether two runs give the same weights to the bit; slower on a GPU."
)
flags.DEFINE_enum(
    "dtype_policy",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "Precision of the computation; weights, gates and losses stay float32.",
)


def main(argv):
    """Trains with the settings of the flags; returns the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"train.main takes flags only, got '{argv[1]}'")
    # TensorFlow is imported below, so that --help and a bad flag are answered at once.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TensorFlow uses oneDNN by itself only on CPUs with AVX-512; with AVX2 alone a training step
    # takes 1.4 times as long without it.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    logging.set_verbosity(logging.ERROR)
    from gaternet_tf.errors import UserError
    from train.callbacks import Stopped

    try:
        named = named_settings()
        if named is None:
            return 0
        import tensorflow as tf

        from train.loop import TrainingConfig, train

        if FLAGS.logical_cpus > 1:
            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0],
                [tf.config.LogicalDeviceConfiguration()] * FLAGS.logical_cpus,
            )
        names = [field.name for field in dataclasses.fields(TrainingConfig)]
        flags_given: dict[str, Any] = {
            name: FLAGS[name].value for name in names if name not in named or FLAGS[name].present
        }
        config = TrainingConfig(**(named | flags_given))
        workdir = FLAGS.workdir or default_workdir(config)
        train(config, workdir, FLAGS.previous_checkpoint)
    except Stopped as stopped:
        print(f"train.main: {stopped}; the same command resumes it", file=sys.stderr)
        return 1
    except (UserError, OSError) as error:
        print(f"train.main: error: {error}", file=sys.stderr)
        return 1
    return 0


def named_settings() -> dict[str, Any] | None:
    """The settings of --experiment, none without one; None when the user asked for the list."""
    from train.experiments import find_experiment, list_experiments

    if FLAGS.experiment == "help":
        print(list_experiments())
        return None
    if FLAGS.experiment is None:
        if FLAGS.smoke:
            raise app.UsageError("--smoke tries a named experiment; give --experiment=NAME too")
        return {}
    experiment = find_experiment(FLAGS.experiment)
    return experiment.smoke() if FLAGS.smoke else experiment.settings


def default_workdir(config) -> str:
    """runs/EXPERIMENT-SEED, or runs/DATASET-BACKBONE-SEED."""
    name = FLAGS.experiment or re.sub(r"[^\w.-]+", "-", f"{config.dataset}-{config.backbone}")
    return f"runs/{name}{'-smoke' if FLAGS.smoke else ''}-{config.seed}"


if __name__ == "__main__":
    app.run(main)
