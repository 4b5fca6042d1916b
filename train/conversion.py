"""Converts the authors' PyTorch checkpoints to runs, and runs to such checkpoints."""

import collections
import dataclasses
import os
import pathlib
import pickle
from typing import Any

import torch

from gaternet_tf.data import Preprocessing, defaults_of
from gaternet_tf.documents import sha256
from gaternet_tf.errors import UserError
from gaternet_tf.models import build_gaternet, gate_map
from gaternet_tf.runs import RunDirectory, open_run, require_new, require_writable
from train.authors_format import BACKBONE, GATER, StateDicts, load_state_dicts, state_dicts
from train.config import TrainingConfig
from train.recipe import count_parameters

IMAGE_SHAPE = (32, 32, 3)
DATASET: dict[str, Any] = {
    "name": "cifar10",
    "version": "3.0.2",
    "train_split": "train",
    "train_images": 50_000,
    "test_split": "test",
    "test_images": 10_000,
    "labels": "airplane automobile bird cat deer dog frog horse ship truck".split(),  # noqa: SIM905
}
"""The dataset that the authors' models were trained on, as `Dataset.describe` describes it."""


def checkpoint_to_run(
    checkpoint: str | os.PathLike,
    output: str | os.PathLike,
    backbone: str,
    gater: str = "resnet20",
) -> RunDirectory:
    """Writes a run directory with the weights of a CIFAR-10 checkpoint in the authors' format.

    Args:
      checkpoint: the .pth file.
      output: the run directory, new or empty.
      backbone: `resnet20`, `resnet56` or another ResNet of basic units, as in the checkpoint.
      gater: likewise.

    Returns:
      The run. It has no test accuracy until `train.evaluate` measures one.

    Raises:
      UserError: for a file that does not hold that network, or an output directory that is taken.
        Nothing is written then.
    """
    require_new(output, "--output")
    config = TrainingConfig(backbone=backbone, gater=gater, head_batch_norm=False)
    config.check()
    path = pathlib.Path(checkpoint)
    parts = read_checkpoint(path)
    model = build_gaternet(
        backbone=backbone,
        gater=gater,
        input_shape=IMAGE_SHAPE,
        num_classes=len(DATASET["labels"]),
        bottleneck=config.bottleneck,
        head_batch_norm=False,
    )
    load_state_dicts(model, parts)
    run = RunDirectory(output)
    preprocessing = Preprocessing(*IMAGE_SHAPE, *(defaults_of("cifar10").statistics or ()))
    run.write_document(dataclasses.asdict(config), DATASET, preprocessing)
    run.save_model(model)
    run.write_result(
        {
            "converted_from": {"file": path.name, "sha256": sha256(path)},
            "parameters": count_parameters(model),
            "gates": len(gate_map(model)),
        }
    )
    return run


def run_to_checkpoint(workdir: str | os.PathLike, output: str | os.PathLike) -> None:
    """Writes the weights of a finished run as a checkpoint in the authors' format.

    Raises:
      UserError: for a run whose network the authors' code cannot hold, see
        `train.authors_format`, or a file that exists or cannot be written.
    """
    run = open_run(workdir)
    path = pathlib.Path(output)
    if os.path.lexists(path):
        raise UserError(f"--output must be a new file, and '{output}' exists; choose another")
    require_writable(path.parent, "--output's directory")
    parts = {
        part: collections.OrderedDict((key, torch.from_numpy(values[key])) for key in values)
        for part, values in state_dicts(run.load_model()).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(parts, path)


def read_checkpoint(path: str | os.PathLike) -> StateDicts:
    """Reads a checkpoint in the authors' format as NumPy arrays.

    Only tensors and plain containers are unpickled, so a malicious file runs no code.

    Raises:
      UserError: for a file that holds anything else, or is no such checkpoint.
    """
    required = f"--checkpoint must be a PyTorch file with {BACKBONE} and {GATER}, and '{path}'"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{required} is damaged or holds more than tensors, which is refused without running "
            "it; get it again from where it was published"
        ) from error
    if not isinstance(content, dict) or not {BACKBONE, GATER} <= content.keys():
        raise UserError(f"{required} is another one")
    return {
        part: {key: value.float().numpy() for key, value in content[part].items()}
        for part in (BACKBONE, GATER)
    }
