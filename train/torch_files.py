"""Reads and writes PyTorch's checkpoint files; the only module that imports torch."""

import collections
import os
import pathlib
import pickle
import re
import warnings
import zipfile

import numpy as np

from gaternet_tf.errors import UserError
from train.authors_format import BACKBONE, GATER, StateDicts

PARTS = (BACKBONE, GATER)


def import_torch():
    """Imports torch, an optional dependency, or raises `UserError` saying how to get it."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "PyTorch is required to read and write its files, and is not installed; run "
            "pip install '.[torch]'"
        ) from error
    return torch


def read_checkpoint(path: str | os.PathLike) -> StateDicts:
    """Reads a checkpoint in the authors' format as NumPy arrays.

    Only tensors and plain containers are unpickled, so a malicious file runs no code. The format
    of PyTorch before 1.6, which is no zip file, is read too, and tensors saved on a GPU.

    Raises:
      UserError: for a file that is none, is damaged, holds anything else, or has no
        `backbone_state_dict` and `gater_state_dict`.
    """
    torch = import_torch()
    path = pathlib.Path(path)
    required = f"--checkpoint must be a PyTorch file with {BACKBONE} and {GATER}, and '{path}'"
    if not path.is_file():
        raise UserError(f"{required} is no file; give the path of the .pth file")
    try:
        content = _load(path, torch)
    except pickle.UnpicklingError as error:
        # What torch says advises to switch the protection off, which we do not.
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"holds {forbidden[1]}, which is refused unrun" if forbidden else "is none"
        raise UserError(f"{required} {reason}; get it again from where it was published") from error
    except Exception as error:  # Damaged bytes raise anything.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{required} is damaged or none ({reason}); get it again") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(p), dict) for p in PARTS):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{required} has {found}")
    return {
        part: {str(key): _array(key, value, required) for key, value in content[part].items()}
        for part in PARTS
    }


def write_checkpoint(path: str | os.PathLike, parts: StateDicts) -> None:
    """Writes state dictionaries as a PyTorch file, whole or not at all."""
    torch = import_torch()
    content = {
        part: collections.OrderedDict(
            (key, torch.from_numpy(np.array(value))) for key, value in values.items()
        )
        for part, values in parts.items()
    }
    path = pathlib.Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(content, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _load(path, torch):
    if zipfile.is_zipfile(path):
        # torch itself does not compare checksums.
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise ValueError(f"checksum of {broken} does not fit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _array(key, value, required):
    try:
        return value.detach().cpu().float().numpy()
    except (AttributeError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{required} holds no tensor but a {type(value).__name__} as {key}"
        ) from error
