"""A version directory that appears whole or not at all."""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from gaternet_tf.errors import UserError

MAX_VERSION = 2**63 - 1
NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*")


def existing_versions(base: pathlib.Path) -> list[int]:
    """Numbers below `base` that TensorFlow Serving would take as versions, in rising order.

    It reads names as absl::SimpleAtoi does: `00000005` is 5, `+8` is 8, and a file counts too.
    """
    if not base.is_dir():
        return []
    return sorted({int(child.name) for child in base.iterdir() if NUMBER.fullmatch(child.name)})


def choose_version(base: pathlib.Path, version: int | None) -> int:
    """Returns `version`, or one above the highest present.

    Raises:
      UserError: for an output directory that cannot be one, or a version that cannot be written.
    """
    if base.exists() and not base.is_dir():
        raise UserError(f"--output_dir must be a directory, and '{base}' is a file")
    present = existing_versions(base)
    if version is None:
        return max([0, *present]) + 1
    if not 1 <= version <= MAX_VERSION:
        raise UserError(f"--version must be an integer from 1 to {MAX_VERSION}, got {version}")
    if version in present:
        raise UserError(
            f"--version must be new, since a server may be reading an old one, and '{base}' has "
            f"{version} already; leave --version out to get {max(present) + 1}"
        )
    return version


@contextlib.contextmanager
def published(base: pathlib.Path, version: int) -> Iterator[pathlib.Path]:
    """Gives a directory to fill; when the block ends well it becomes `base/version`.

    It lies in `base` under a name that servers ignore, so that one rename publishes it. When the
    block raises, nothing is left behind.

    Raises:
      UserError: when `base` cannot be written, or the version has appeared in the meantime.
    """
    target = base / str(version)
    try:
        base.mkdir(parents=True, exist_ok=True)
        beside = pathlib.Path(tempfile.mkdtemp(prefix=f".export-{version}-", dir=base))
    except OSError as error:
        raise UserError(
            f"--output_dir must be a directory that can be written, and '{base}' cannot "
            f"({error.strerror}); choose another or change its permissions"
        ) from error
    try:
        yield beside
        _make_readable_and_sync(beside)
        try:
            # Renaming onto an empty directory would succeed, so the check comes first.
            if target.exists():
                raise FileExistsError
            os.rename(beside, target)
        except OSError as error:
            raise UserError(
                f"version {version} appeared in '{base}' while it was being exported, and is left "
                "as it is; run the command again"
            ) from error
        _sync(base)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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
