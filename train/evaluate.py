"""Evaluates a finished run: python -m train.evaluate --workdir=RUN"""

import os
import sys

from absl import app, flags, logging

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", None, "Run directory to evaluate.", required=True)
flags.DEFINE_string("dataset", None, "Dataset with the run's classes; default: the run's own.")
flags.DEFINE_string("data_dir", None, "TFDS directory to read and prepare datasets in.")
flags.DEFINE_boolean("download", True, "Whether a dataset that is not on disk may be fetched.")
flags.DEFINE_integer("batch_size", 250, "Images a step.", lower_bound=1)


def main(argv):
    """Prints accuracy, loss and gate statistics of the test split; returns the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"train.evaluate takes flags only, got '{argv[1]}'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    from gaternet_tf.errors import UserError
    from gaternet_tf.evaluation import describe, evaluate_run

    try:
        result = evaluate_run(
            FLAGS.workdir, FLAGS.dataset, FLAGS.data_dir, FLAGS.download, FLAGS.batch_size
        )
    except (UserError, OSError) as error:
        print(f"train.evaluate: error: {error}", file=sys.stderr)
        return 1
    print(f"dataset {result['dataset']} {result['version']}, split '{result['split']}'")
    print(describe(result))
    return 0


if __name__ == "__main__":
    app.run(main)
