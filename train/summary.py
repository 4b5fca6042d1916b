"""Prints what a network consists of: python -m train.summary --backbone=resnet164"""

from typing import Any

from absl import flags

from gaternet_tf.command import define_path, run, run_command
from train.command import define_settings

FLAGS = flags.FLAGS

NETWORK = ["backbone", "width", "gater", "attention", "gated_convs", "bottleneck"]
NETWORK += ["head_batch_norm", "gater_size"]
define_settings(*NETWORK)
flags.DEFINE_integer("image_size", 32, "Side of the pictures in pixels.", lower_bound=1)
flags.DEFINE_integer("channels", 3, "Channels of the pictures.", lower_bound=1)
flags.DEFINE_integer("classes", 10, "Number of classes.", lower_bound=2)
define_path(
    "workdir", None, "A finished run instead of these flags; adds what its gates do on --split."
)
define_settings("data_dir")
flags.DEFINE_string("split", None, "Split of the run's dataset; default: the test split.")


def main(argv):
    """Prints the summary; returns the exit status."""
    return run_command("train.summary", argv, print_summary, prints_only=True)


def print_summary():
    """Prints the table of the run, or of the network that the flags describe."""
    from gaternet_tf.data import evaluation_batches
    from gaternet_tf.evaluation import count_gates, dataset_with_classes
    from gaternet_tf.models import build_gaternet
    from gaternet_tf.runs import open_run
    from train.network_summary import as_text, summary_rows

    if FLAGS.workdir:
        run = open_run(FLAGS.workdir)
        data = dataset_with_classes(
            run.labels, run.config, run.document["dataset"], None, FLAGS.data_dir, download=False
        )
        model = run.load_model()
        batches = evaluation_batches(data, run.preprocessing, 250, FLAGS.split)
        gates_on, images = count_gates(model, batches)
        rows = summary_rows(model, gates_on if len(gates_on) else None, images)
    else:
        shape = (FLAGS.image_size, FLAGS.image_size, FLAGS.channels)
        settings: dict[str, Any] = {name: FLAGS[name].value for name in NETWORK}
        settings["gater_size"] = settings["gater_size"] or None
        rows = summary_rows(
            build_gaternet(input_shape=shape, num_classes=FLAGS.classes, **settings)
        )
    print(as_text(rows))


if __name__ == "__main__":
    run(main)
