"""Prints the comparison table of finished runs: python -m train.table RUN RUN ..."""

import pathlib

from absl import flags

from gaternet_tf.command import define_path, local_path, run, run_command
from gaternet_tf.errors import UserError

FLAGS = flags.FLAGS

flags.DEFINE_enum("format", "markdown", ["markdown", "latex"], "How the table is printed.")
flags.DEFINE_string(
    "against",
    None,
    "Pattern of the model to compare with, such as '*squeeze*'; default: the plain backbone.",
)
define_path("output_dir", None, "Where comparison.csv, .png and .svg are written, if anywhere.")


def main(argv):
    """Compares the runs that the arguments name; returns the exit status."""
    return run_command(
        "train.table",
        argv[:1],
        lambda: print_table([local_path(path, "a run") for path in argv[1:]]),
        tensorflow=False,
        prints_only=True,
    )


def print_table(workdirs):
    """Prints the table, and draws its figure if asked to."""
    from gaternet_tf.runs import require_writable
    from train.comparison import as_latex, as_markdown, compare, write_comparison

    if not workdirs:
        raise UserError("this command takes the directories of finished runs, got none")
    rows = compare(workdirs, FLAGS.against)
    if FLAGS.output_dir:
        require_writable(FLAGS.output_dir, "--output_dir")
        write_comparison(rows, pathlib.Path(FLAGS.output_dir))
    print(as_latex(rows) if FLAGS.format == "latex" else as_markdown(rows))


if __name__ == "__main__":
    run(main)
