"""The documents that pass between rooms: written whole, and checked where they are read."""

import hashlib
import json
import os
import pathlib
from types import NoneType
from typing import Any

NUMBER = (int, float)
OPTIONAL_TEXT = (str, NoneType)


def read_json(path: pathlib.Path, parts: Any = None) -> dict:
    """Reads a JSON file that must have some parts, see `require_parts`.

    Raises:
      OSError, ValueError: when it cannot be read, is no JSON, or lacks a part.
    """
    document = json.loads(path.read_text())
    require_parts(document, dict if parts is None else parts)
    return document


def require_parts(value: Any, wanted: Any, name: str = "the document") -> None:
    """Checks that a part of a document, and what must be in it, is there and of its type.

    Args:
      value: the part.
      wanted: a type or a tuple of types, [items' wanted] for a list, or a dict of what an object
        must have at least.
      name: what errors call the part.

    Raises:
      ValueError: naming the first part that is missing, or another thing.
    """
    kind = type(wanted) if isinstance(wanted, dict | list) else wanted
    # JSON's true is an int to Python, and no number to anybody else.
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise ValueError(f"{name} is no {' or '.join(each.__name__ for each in kinds)}")
    if isinstance(wanted, list):
        for item in value:
            require_parts(item, wanted[0], f"an item of {name}")
    elif isinstance(wanted, dict):
        for key, part in wanted.items():
            if key not in value:
                raise ValueError(f"{name} has no '{key}'")
            require_parts(value[key], part, f"'{key}'")


def sha256(path: pathlib.Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: pathlib.Path, document: dict) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all: beside it first, then renamed into place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
