"""The comparison table of finished runs: python -m train.table RUN RUN ..."""

import os
import sys

from absl import app, flags, logging

FLAGS = flags.FLAGS

flags.DEFINE_enum("format", "markdown", ["markdown", "csv"], "How the table is printed.")


def main(argv):
    """Prints the table of the runs that the arguments name; returns the exit status."""
    if len(argv) < 2:
        raise app.UsageError("train.table takes the directories of finished runs, got none")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    from gaternet_tf.errors import UserError
    from train.comparison import as_csv, as_markdown, table_rows

    try:
        rows = table_rows(argv[1:])
    except (UserError, OSError) as error:
        print(f"train.table: error: {error}", file=sys.stderr)
        return 1
    print(as_csv(rows) if FLAGS.format == "csv" else as_markdown(rows))
    return 0


if __name__ == "__main__":
    app.run(main)
