"""Finds the versions of a model on disk, as TensorFlow Serving does."""

import pathlib
import re

from absl import logging

# As many digits as an int64 may have: Python refuses to convert thousands of them.
NUMBER = re.compile(r"\s*([+-]?)0*([0-9]{1,19})\s*", re.ASCII)
INT64 = range(-(2**63), 2**63)


class ModelDirectoryError(Exception):
    """A base path that holds nothing to serve. The text says what is required and what came."""


class NoVersionError(ModelDirectoryError):
    """A base path that could be read and has no version in it."""


def parse_version(name: str) -> int | None:
    """The number that absl::SimpleAtoi reads in a name, or None where it reads none.

    `00000005`, `+8` and `-3` are numbers; `1.5`, `tmp-1`, `.staging` and what an int64 cannot hold
    are not.
    """
    found = NUMBER.fullmatch(name)
    if not found:
        return None
    number = int(found[1] + found[2])
    return number if number in INT64 else None


def find_versions(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """The versions below a base path by number, in order of their names; any kind of file counts.

    Of two names with one number the last one counts.

    Raises:
      NoVersionError: when there is no version in it.
      ModelDirectoryError: when there is no such directory, or it cannot be read.
    """
    try:
        return _find_versions(base_path)
    except OSError as error:
        raise ModelDirectoryError(
            f"A model's base path must be a directory that can be read, and '{base_path}' is not "
            f"({error.strerror})"
        ) from error


def _find_versions(base_path):
    if not base_path.is_dir():
        raise ModelDirectoryError(
            f"A model's base path must be a directory with a version such as {base_path}/1 in it, "
            f"and there is no directory '{base_path}'"
        )
    versions: dict[int, pathlib.Path] = {}
    for child in sorted(base_path.iterdir()):
        number = parse_version(child.name)
        if number is None:
            continue
        if number in versions:
            logging.warning(
                "Duplicate version directories detected. Version %d will be loaded from %s, %s "
                "will be ignored.",
                number,
                child,
                versions[number],
            )
        versions[number] = child
    if not versions:
        hint = ""
        if (base_path / "saved_model.pb").exists():
            hint = f"; it is a version itself, so give the directory above it: {base_path.parent}"
        raise NoVersionError(
            "A model's base path must have a directory below it that is named by a number, and "
            f"'{base_path}' has none{hint}"
        )
    return versions


def aspired_versions(
    versions: dict[int, pathlib.Path], policy
) -> tuple[dict[int, pathlib.Path], list[int]]:
    """Chooses by a FileSystemStoragePathSourceConfig.ServableVersionPolicy.

    Returns:
      (chosen, absent): the versions to serve, and those asked for that are not there.
    """
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return dict(versions), []
    if kind == "specific":
        wanted = list(policy.specific.versions)
        return (
            {number: versions[number] for number in wanted if number in versions},
            [number for number in wanted if number not in versions],
        )
    count = policy.latest.num_versions if kind == "latest" else 1
    newest = sorted(versions, reverse=True)[: max(count, 1)]
    return {number: versions[number] for number in newest}, []
