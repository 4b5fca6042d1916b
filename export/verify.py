"""Checks exported versions: python -m export.verify models/gaternet/1"""

import os
import sys

from absl import app, logging


def main(argv):
    """Checks the versions given as arguments; returns the exit status."""
    if len(argv) < 2:
        raise app.UsageError("export.verify takes version directories, such as models/gaternet/1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    import pathlib

    from export.verification import problems_of

    status = 0
    for version_dir in argv[1:]:
        if problems := problems_of(pathlib.Path(version_dir)):
            status = 1
            for problem in problems:
                print(f"export.verify: {version_dir}: {problem}", file=sys.stderr)
        else:
            print(f"{version_dir}: good")
    return status


if __name__ == "__main__":
    app.run(main)
