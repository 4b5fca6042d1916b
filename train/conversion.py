"""Turns the authors' PyTorch checkpoints into runs, and runs into such checkpoints."""

import dataclasses
import os
import pathlib

from gaternet_tf.data import Preprocessing, defaults_of
from gaternet_tf.documents import sha256
from gaternet_tf.errors import UserError
from gaternet_tf.models import build_gaternet, gate_map
from gaternet_tf.runs import RunDirectory, open_run, require_place, require_writable
from train.authors_format import check_representable, load_state_dicts, state_dicts
from train.loop import TrainingConfig, count_parameters, save_model
from train.torch_files import import_torch, read_checkpoint, write_checkpoint

IMAGE_SHAPE = (32, 32, 3)
DATASET = "cifar10"
LABELS = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
DESCRIPTION = {
    "name": DATASET,
    "version": "3.0.2",
    "train_split": "train",
    "train_images": 50_000,
    "test_split": "test",
    "test_images": 10_000,
    "labels": LABELS,
}
"""What `Dataset.describe` says of the set that the authors' models were trained on."""


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
      UserError: for a file that does not hold that network, or a place that cannot take the run.
        Nothing is written then.
    """
    require_place(output, "--output")
    config = TrainingConfig(backbone=backbone, gater=gater, head_batch_norm=False)
    config.check()
    parts = read_checkpoint(checkpoint)
    model = build_gaternet(
        backbone=backbone,
        gater=gater,
        input_shape=IMAGE_SHAPE,
        num_classes=len(LABELS),
        bottleneck=config.bottleneck,
        head_batch_norm=False,
    )
    load_state_dicts(model, parts)
    run = RunDirectory(output)
    preprocessing = Preprocessing(*IMAGE_SHAPE, *(defaults_of(DATASET).statistics or ()))
    run.write_document(dataclasses.asdict(config), DESCRIPTION, preprocessing)
    save_model(model, run)
    run.write_result(
        {
            "converted_from": {
                "file": pathlib.Path(checkpoint).name,
                "sha256": sha256(pathlib.Path(checkpoint)),
            },
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
    import_torch()
    model = run.load_model()
    check_representable(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, state_dicts(model))
