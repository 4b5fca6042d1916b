"""Checks exported versions: python -m export.verify models/gaternet/1"""

import pathlib
import sys

from gaternet_tf.command import local_path, run, run_command
from gaternet_tf.errors import UserError


def main(argv):
    """Checks the versions given as arguments; returns the exit status."""
    return run_command("export.verify", argv[:1], lambda: verify(argv[1:]))


def verify(version_dirs):
    """Prints what is wrong with each version; returns whether anything is, as an exit status."""
    from export.verification import problems_of

    if not version_dirs:
        raise UserError("this command takes version directories, such as models/gaternet/1")
    status = 0
    for version_dir in [local_path(path, "a version") for path in version_dirs]:
        if problems := problems_of(pathlib.Path(version_dir)):
            status = 1
            for problem in problems:
                print(f"export.verify: {version_dir}: {problem}", file=sys.stderr)
        else:
            print(f"{version_dir}: good")
    return status


if __name__ == "__main__":
    run(main)
