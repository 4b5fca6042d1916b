"""A version directory that appears whole or not at all."""

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from gaternet_tf.errors import UserError
from gaternet_tf.runs import is_run, require_outside_versions

MAX_VERSION = 2**63 - 1
NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*")
STAGING = ".export-"
"""How unfinished versions' names begin; a server takes only numbers for versions."""
NOT_IN_NAMES = frozenset(" :%?#")
"""What cannot stand in an address as it is; `/v1/models/NAME:predict` is one."""


def existing_versions(base: pathlib.Path) -> list[int]:
    """Numbers below `base` that TensorFlow Serving would take as versions, in rising order.

    It reads names as absl::SimpleAtoi does: `00000005` is 5, `+8` is 8, a file counts too, and a
    number that 64 bits do not hold is none.
    """
    if not base.is_dir():
        return []
    numbers = {int(child.name) for child in base.iterdir() if NUMBER.fullmatch(child.name)}
    return sorted(number for number in numbers if -MAX_VERSION - 1 <= number <= MAX_VERSION)


def choose_version(base: pathlib.Path, version: int | None) -> int:
    """Returns `version`, or one above the highest present.

    Raises:
      UserError: for an output directory that cannot be one, or a version that cannot be written.
    """
    _require_model_directory(base)
    present = existing_versions(base)
    highest = max([0, *present])
    if version is None:
        if highest == MAX_VERSION:
            raise UserError(f"'{base}' has version {highest}, the highest number that there is")
        return highest + 1
    if not 1 <= version <= MAX_VERSION:
        raise UserError(f"--version must be an integer from 1 to {MAX_VERSION}, got {version}")
    if version in present:
        raise UserError(
            f"--version must be new, since a server may be reading an old one, and '{base}' has "
            f"{version} already; leave --version out to get {highest + 1}"
        )
    if version < highest:
        raise UserError(
            f"--version must be above {highest}, the highest in '{base}', since a server takes the "
            f"highest for the newest, got {version}; leave it out to get {highest + 1}"
        )
    return version


def _require_model_directory(base):
    if base.exists() and not base.is_dir():
        raise UserError(f"--output_dir must be a directory, and '{base}' is a file")
    if NUMBER.fullmatch(base.name):
        raise UserError(
            f"--output_dir must be the model's directory, such as models/gaternet, and the name of "
            f"'{base}' is a version's number; give the directory above it, or another name"
        )
    if not base.name or not base.name.isprintable() or NOT_IN_NAMES & set(base.name):
        raise UserError(
            "--output_dir must end in the model's name, which stands in the addresses of requests, "
            f"so in printable UTF-8 without spaces and : % ? #, and it ends in {base.name!r}; "
            "choose another, such as models/gaternet"
        )
    try:
        str(base).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"--output_dir must be a path in UTF-8, since TensorFlow takes no other, and "
            f"{str(base)!r} is not; choose another"
        ) from error
    require_outside_versions(base, "--output_dir")
    if is_run(base):
        raise UserError(
            f"--output_dir must be the model's directory, such as models/gaternet, and '{base}' is "
            "a run's; choose another"
        )


class Staged:
    """A version in the making: fill `directory`, and read `version` after it is published."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self.version = 0


@contextlib.contextmanager
def published(base: pathlib.Path, version: int | None) -> Iterator[Staged]:
    """Gives a directory to fill; when the block ends well it becomes `base/version`.

    It lies in `base`, so in the same file system, under a name that servers ignore, so that one
    rename publishes it. When the block raises, nothing is left behind; what a killed export left
    behind is removed by the next. Several exports may run at once: the number is chosen when all
    is written, None for one above the highest then present.

    Raises:
      UserError: for what `choose_version` refuses, before anything is written, or when all is and
        the version has appeared in the meantime; and when `base` cannot be written.
    """
    choose_version(base, version)
    missing = [path for path in (base, *base.parents) if not os.path.exists(path)]
    with contextlib.ExitStack() as stack:
        try:
            base.mkdir(parents=True, exist_ok=True)
            for path in missing:
                path.chmod(0o755)
            with _locked(base):
                _remove_leftovers(base)
                staged = Staged(pathlib.Path(tempfile.mkdtemp(prefix=STAGING, dir=base)))
                stack.enter_context(_locked(staged.directory))
        except OSError as error:
            raise UserError(
                f"--output_dir must be a directory that can be written, and '{base}' cannot "
                f"({error.strerror}); choose another or change its permissions"
            ) from error
        try:
            yield staged
            _make_readable_and_sync(staged.directory)
            with _locked(base):
                staged.version = choose_version(base, version)
                os.rename(staged.directory, base / str(staged.version))
                _sync(base)
        except BaseException:
            shutil.rmtree(staged.directory, ignore_errors=True)
            for path in missing:
                # Only what this export made, and only if it is empty again.
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise


def remove_old_versions(base: pathlib.Path, newest: int, keep: int, is_ours) -> list[int]:
    """Removes versions of ours below `newest`, oldest first, until `keep` are left with it.

    Args:
      base: the model's directory.
      newest: a version that is known to be good; it and higher ones always stay.
      keep: how many may stay, 1 or more.
      is_ours: says of a directory whether it is an export of ours; others stay, uncounted.

    Returns:
      The numbers removed.
    """
    with _locked(base):
        older = [
            number
            for number in existing_versions(base)
            if 0 < number < newest and (base / str(number)).is_dir() and is_ours(base / str(number))
        ]
        doomed = older[: max(0, len(older) + 1 - keep)]
        for number in doomed:
            # Out of a server's sight first, so that it never sees half a version.
            hidden = pathlib.Path(tempfile.mkdtemp(prefix=STAGING, dir=base))
            os.rename(base / str(number), hidden / str(number))
            shutil.rmtree(hidden, ignore_errors=True)
    return doomed


@contextlib.contextmanager
def _locked(directory, block=True):
    """Holds the lock of a directory, which the kernel releases when the process dies."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(base):
    """Removes the unfinished versions of exports that were killed."""
    for path in base.glob(f"{STAGING}*"):
        # One that is being written is locked.
        with contextlib.suppress(OSError), _locked(path, block=False):
            shutil.rmtree(path)


def _make_readable_and_sync(directory):
    """Another user's server has to read it, and a crash must not lose what the rename published."""
    for root, _, files in os.walk(directory):
        os.chmod(root, 0o755)
        for name in files:
            path = os.path.join(root, name)
            os.chmod(path, 0o644)
            _sync(path)
        _sync(root)


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
