"""Publishes a version of a model whole or not at all."""

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from gaternet_tf.errors import UserError
from gaternet_tf.manifest import read_manifest
from gaternet_tf.runs import is_run, require_writable

MAX_VERSION = 2**63 - 1
NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*")
STAGING = ".export-"
"""Prefix of directories that are not published; servers take only numbers for versions."""
STALE = 24 * 60 * 60
"""Seconds after which a staging directory was left behind by an export that was killed."""
NOT_IN_NAMES = frozenset(" :%?#")
"""Characters that cannot stand in an address as they are: /v1/models/NAME:predict is one."""


def existing_versions(base: pathlib.Path) -> list[int]:
    """Returns the version numbers below `base`, as TensorFlow Serving reads them, rising.

    It parses names as absl::SimpleAtoi does: `00000005` is 5, `+8` is 8, a file counts too, and a
    number that does not fit into 64 bits is none.
    """
    if not base.is_dir():
        return []
    numbers = {int(child.name) for child in base.iterdir() if NUMBER.fullmatch(child.name)}
    return sorted(number for number in numbers if -MAX_VERSION - 1 <= number <= MAX_VERSION)


def choose_version(base: pathlib.Path, version: int | None) -> int:
    """Returns `version`, or one above the highest present.

    Raises:
      UserError: for a version that cannot be published in `base`.
    """
    highest = max([0, *existing_versions(base)])
    if version is None:
        version = highest + 1
    if not 1 <= version <= MAX_VERSION:
        raise UserError(f"--version must be an integer from 1 to {MAX_VERSION}, got {version}")
    if version <= highest:
        raise UserError(
            f"--version must be above {highest}, the highest in '{base}', since servers take the "
            f"highest for the newest and never read one again, got {version}; leave it out to get "
            f"{highest + 1}"
        )
    return version


def require_model_directory(base: pathlib.Path) -> None:
    """Raises `UserError` unless `base` is or can become the directory of a model."""
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
    if is_run(base):
        raise UserError(
            f"--output_dir must be the model's directory, such as models/gaternet, and '{base}' is "
            "a run's; choose another"
        )
    require_writable(base, "--output_dir")


@contextlib.contextmanager
def staging_directory(base: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new directory for a version, which `publish` publishes; else it is removed.

    It lies in `base`, hence in the same file system, under a name that servers ignore. What is
    written meanwhile can be read by every user. What exports that were killed left there is removed
    after a day.
    """
    umask = os.umask(0o022)
    directory = base / f"{STAGING}{uuid.uuid4().hex}"
    try:
        directory.mkdir(parents=True)
        for path in base.glob(f"{STAGING}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE:
                    # Those of another user stay.
                    shutil.rmtree(path, ignore_errors=True)
        yield directory
    finally:
        os.umask(umask)
        shutil.rmtree(directory, ignore_errors=True)


def publish(directory: pathlib.Path, base: pathlib.Path, version: int | None) -> int:
    """Makes a staging directory a version of `base`, and returns the version's number.

    The files are on disk before one rename shows them to servers. Other exports may publish at the
    same time.

    Args:
      directory: what `staging_directory(base)` yielded, filled.
      base: the model's directory.
      version: the number, or None for one above the highest present.

    Raises:
      UserError: for a `version` that is no longer above the highest.
    """
    for path in (*directory.rglob("*"), directory):
        _sync(path)
    while True:
        number = choose_version(base, version)
        try:
            directory.rename(base / str(number))
        except OSError:
            # Another export took the number in the meantime.
            if number not in existing_versions(base):
                raise
        else:
            _sync(base)
            return number


def named_versions(server_config: str | None, model: str) -> set[int]:
    """Returns the versions of a model that a configuration of TensorFlow Serving pins or labels.

    Args:
      server_config: the text file that the server reads; None for none.
      model: name of the model, or of the directory with its versions.

    Raises:
      UserError: for a file that is no such configuration, or does not list the model.
    """
    if server_config is None:
        return set()
    try:
        text = pathlib.Path(server_config).read_text()
        config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except (OSError, ValueError, text_format.ParseError) as error:
        raise UserError(
            "--server_config must be the file of TensorFlow Serving's --model_config_file, and "
            f"'{server_config}' cannot be read as one ({error})"
        ) from error
    entries = [
        entry
        for entry in config.model_config_list.config
        if model in (entry.name, pathlib.PurePath(entry.base_path).name)
    ]
    if not entries:
        raise UserError(
            f"--server_config must list the model of --output_dir, and '{server_config}' has no "
            f"'{model}'; give the file of the server that serves it"
        )
    versions: set[int] = set()
    for entry in entries:
        versions.update(entry.model_version_policy.specific.versions, entry.version_labels.values())
    return versions


def remove_old_versions(
    base: pathlib.Path, newest: int, keep: int, named: Collection[int] = ()
) -> list[int]:
    """Removes exports below version `newest`, the oldest first, until `keep` are left with it.

    Versions that this project did not write and the `named` ones stay, uncounted.

    Returns:
      The numbers removed.
    """
    older = []
    for number in existing_versions(base):
        with contextlib.suppress(UserError):
            read_manifest(base / str(number))
            older.append(number)
    older = [number for number in older if number < newest and number not in named]
    removed = older[: max(0, len(older) + 1 - keep)]
    for number in removed:
        # Out of servers' sight first, so that they never see half a version.
        hidden = tempfile.mkdtemp(prefix=STAGING, dir=base)
        with contextlib.suppress(FileNotFoundError):  # Another export removes it.
            os.rename(base / str(number), hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    return removed


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
