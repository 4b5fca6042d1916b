"""Trains a GaterNet: python -m train.main --backbone=resnet164"""

import os
import sys
from typing import Any

from absl import app, flags, logging

FLAGS = flags.FLAGS

flags.DEFINE_string("backbone", "resnet20", "Network that classifies: resnet20, resnet164, ...")
flags.DEFINE_string("gater", "resnet20", "Network that gates it, named alike; 'none' for no gates.")
flags.DEFINE_string("dataset", "cifar10", "'digits' (needs no network) or the name of a TFDS set.")
flags.DEFINE_string("data_dir", None, "TFDS directory to read and prepare datasets in.")
flags.DEFINE_boolean("download", True, "Whether a dataset that is not on disk may be fetched.")
flags.DEFINE_string("workdir", None, "Run directory; default runs/DATASET-BACKBONE-SEED.")
flags.DEFINE_integer("epochs", 160, "Passes over the training split.", lower_bound=1)
flags.DEFINE_integer("batch_size", 128, "Images a step, over all replicas.", lower_bound=1)
flags.DEFINE_float(
    "learning_rate", 0.1, "At the start; divided by 10 after 1/2 and 3/4 of the training."
)
flags.DEFINE_float("momentum", 0.9, "Nesterov momentum.", lower_bound=0)
flags.DEFINE_float(
    "weight_decay", 1e-4, "w in gradient + w * kernel, as PyTorch counts it.", lower_bound=0
)
flags.DEFINE_float(
    "sparsity", 0.1, "Weight lambda of the sparsity loss lambda * ||g||_1 / c.", lower_bound=0
)
flags.DEFINE_enum(
    "gated_convs", "last", ["last", "all"], "Which convolutions of a residual unit are gated."
)
flags.DEFINE_integer("bottleneck", 8, "Units before the gater's last layer.", lower_bound=1)
flags.DEFINE_boolean("head_batch_norm", True, "Batch normalisation in the gater's bottleneck.")
flags.DEFINE_integer("image_size", 0, "Side of the pictures, pixels; 0: the dataset's own.")
flags.DEFINE_integer(
    "crop_padding", None, "Pixels to pad before the random crop; default: the dataset's.", 0
)
flags.DEFINE_boolean("flip", None, "Random horizontal flips; default: the dataset's.")
flags.DEFINE_integer("seed", 0, "Seed of weights, gate noise, order and crops.", lower_bound=0)
flags.DEFINE_enum(
    "strategy",
    "auto",
    ["auto", "none", "mirrored"],
    "Devices: all GPUs if there are several, one, or a replica on every GPU or logical CPU.",
)
flags.DEFINE_integer(
    "logical_cpus", 1, "Splits the CPU in so many devices, to try --strategy=mirrored.", 1
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
    # TensorFlow is imported here, so that --help and a bad flag are answered at once.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    import dataclasses

    import tensorflow as tf

    from gaternet_tf.errors import UserError
    from gaternet_tf.training import TrainingConfig, train

    try:
        if FLAGS.logical_cpus > 1:
            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0],
                [tf.config.LogicalDeviceConfiguration()] * FLAGS.logical_cpus,
            )
        names = [field.name for field in dataclasses.fields(TrainingConfig)]
        settings: dict[str, Any] = {name: FLAGS[name].value for name in names}
        config = TrainingConfig(**settings)
        workdir = FLAGS.workdir or f"runs/{config.dataset}-{config.backbone}-{config.seed}"
        train(config, workdir)
    except (UserError, OSError) as error:
        print(f"train.main: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    app.run(main)
