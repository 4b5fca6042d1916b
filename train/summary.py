"""What a network is made of: python -m train.summary --backbone=resnet164"""

import os
import sys
from typing import Any

from absl import app, flags, logging

FLAGS = flags.FLAGS

flags.DEFINE_string("backbone", "resnet20", "Network that classifies.")
flags.DEFINE_integer("width", 16, "Base channels of the backbone.", 1)
flags.DEFINE_string("gater", "resnet20", "Network that gates it; 'none' for no gates.")
flags.DEFINE_enum("attention", "none", ["none", "se"], "'se' for squeeze-and-excitation.")
flags.DEFINE_enum("gated_convs", "last", ["last", "all"], "Which convolutions are gated.")
flags.DEFINE_integer("bottleneck", 8, "Units before the gater's last layer.", lower_bound=1)
flags.DEFINE_boolean("head_batch_norm", True, "Batch normalisation in the gater's bottleneck.")
flags.DEFINE_integer("image_size", 32, "Side of the pictures, pixels.", lower_bound=1)
flags.DEFINE_integer("channels", 3, "Channels of the pictures.", lower_bound=1)
flags.DEFINE_integer("classes", 10, "Number of classes.", lower_bound=2)
flags.DEFINE_string(
    "workdir", None, "A finished run instead of these flags; adds what its gates do on --split."
)
flags.DEFINE_string("data_dir", None, "TFDS directory with the run's dataset.")
flags.DEFINE_string("split", None, "Split of it; default: the test split.")


def main(argv):
    """Prints the table; returns the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"train.summary takes flags only, got '{argv[1]}'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    from gaternet_tf.errors import UserError
    from train.network_summary import as_text, summary_rows

    try:
        if FLAGS.workdir:
            from gaternet_tf.evaluation import gates_of_run

            model, gates_on, images = gates_of_run(FLAGS.workdir, FLAGS.data_dir, FLAGS.split)
            rows = summary_rows(model, gates_on if len(gates_on) else None, images)
        else:
            from gaternet_tf.models import build_gaternet

            side = FLAGS.image_size
            names = ("backbone", "gater", "width", "attention", "gated_convs", "bottleneck")
            arguments: dict[str, Any] = {
                name: FLAGS[name].value for name in (*names, "head_batch_norm")
            }
            model = build_gaternet(
                input_shape=(side, side, FLAGS.channels), num_classes=FLAGS.classes, **arguments
            )
            rows = summary_rows(model)
    except (UserError, OSError) as error:
        print(f"train.summary: error: {error}", file=sys.stderr)
        return 1
    print(as_text(rows))
    return 0


if __name__ == "__main__":
    app.run(main)
