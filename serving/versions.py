"""Finds the versions of a model on disk, as TensorFlow Serving does."""

import pathlib
import re

NUMBER = re.compile(r"\s*[+-]?[0-9]+\s*")


class ModelDirectoryError(Exception):
    """A base path that holds nothing to serve. The text says what is required and what came."""


def find_versions(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """The version directories below a base path, by number as absl::SimpleAtoi reads it."""
    if not base_path.is_dir():
        raise ModelDirectoryError(
            f"--model_base_path must be a directory with a version such as {base_path}/1 in it, "
            f"and there is no directory '{base_path}'"
        )
    versions = {
        int(child.name): child for child in base_path.iterdir() if NUMBER.fullmatch(child.name)
    }
    if not versions:
        hint = ""
        if (base_path / "saved_model.pb").exists():
            hint = f"; it is a version itself, so give the directory above it: {base_path.parent}"
        raise ModelDirectoryError(
            f"--model_base_path must have a directory below it that is named by a number, and "
            f"'{base_path}' has none{hint}"
        )
    return versions
