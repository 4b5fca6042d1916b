"""Names of files and directories, which on Linux may be any bytes."""

import os
import pathlib


def printable(path: str | os.PathLike) -> str:
    """A path as text that can be printed and stored; bytes that are no UTF-8 are escaped."""
    return os.fspath(path).encode(errors="surrogateescape").decode(errors="backslashreplace")


def is_text(name: str) -> bool:
    """Whether a name is UTF-8, so that it can be printed and stored as it is."""
    return printable(name) == name


def content_name(directory: pathlib.Path, digest: str) -> str:
    """What the prepared copy of a directory's content is called."""
    return f"{printable(directory.name)}-{digest}"
