"""Reads and writes the JSON and text files of runs and exports."""

import hashlib
import json
import os
import pathlib


def read_json(path: pathlib.Path) -> dict:
    """Returns what a JSON file holds."""
    return json.loads(path.read_text())


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


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
