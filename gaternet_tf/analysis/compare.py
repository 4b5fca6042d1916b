"""Several finished runs side by side: python -m gaternet_tf.analysis.compare RUN RUN ..."""

import os
import pathlib
import sys

from absl import app, flags, logging

FLAGS = flags.FLAGS

flags.DEFINE_string("output_dir", "comparison", "Where comparison.csv, .png and .svg are written.")


def main(argv):
    """Prints the table and writes it and its figure; returns the exit status."""
    if len(argv) < 3:
        raise app.UsageError(
            "gaternet_tf.analysis.compare takes the directories of two or more finished runs, got "
            f"{len(argv) - 1}"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    from gaternet_tf.analysis.comparing import as_markdown, compare, write_comparison
    from gaternet_tf.errors import UserError
    from gaternet_tf.runs import require_writable

    try:
        rows = compare(argv[1:])
        require_writable(FLAGS.output_dir, "--output_dir")
        write_comparison(rows, pathlib.Path(FLAGS.output_dir))
    except (UserError, OSError) as error:
        print(f"gaternet_tf.analysis.compare: error: {error}", file=sys.stderr)
        return 1
    print(as_markdown(rows))
    print(f"figure: {pathlib.Path(FLAGS.output_dir) / 'comparison.png'}")
    return 0


if __name__ == "__main__":
    app.run(main)
