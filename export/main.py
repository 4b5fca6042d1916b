"""Exports a trained run: python -m export.main --workdir=runs/demo --output_dir=models/gaternet"""

import os
import sys

from absl import app, flags, logging

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", None, "Directory of a finished run.", required=True)
flags.DEFINE_string(
    "output_dir", None, "Directory of the model, for example models/gaternet.", required=True
)
flags.DEFINE_integer(
    "version", None, "Number of the version; default: one above the highest present.", 1
)


def main(argv):
    """Exports the run of the flags; returns the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"export.main takes flags only, got '{argv[1]}'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    from export.exporting import export_run
    from gaternet_tf.errors import UserError

    try:
        directory = export_run(FLAGS.workdir, FLAGS.output_dir, FLAGS.version)
    except (UserError, OSError) as error:
        print(f"export.main: error: {error}", file=sys.stderr)
        return 1
    print(f"exported {FLAGS.workdir} to {directory}")
    return 0


if __name__ == "__main__":
    app.run(main)
