"""Evaluates a finished run: python -m train.evaluate --workdir=RUN"""

from absl import flags

from gaternet_tf.command import define_path, run, run_command
from train.command import define_settings

FLAGS = flags.FLAGS

define_path("workdir", None, "Run directory to evaluate.", required=True)
flags.DEFINE_string("dataset", None, "Dataset with the run's classes; default: the run's own.")
define_settings("data_dir", "download")


def main(argv):
    """Evaluates the run; returns the exit status."""
    return run_command("train.evaluate", argv, print_evaluation)


def print_evaluation():
    """Prints accuracy, loss and gate statistics of the test split."""
    from gaternet_tf.evaluation import describe, evaluate_run

    result = evaluate_run(FLAGS.workdir, FLAGS.dataset, FLAGS.data_dir, FLAGS.download)
    print(f"dataset {result['dataset']} {result['version']}, split '{result['split']}'")
    print(describe(result))


if __name__ == "__main__":
    run(main)
