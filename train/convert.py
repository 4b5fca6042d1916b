"""Converts the authors' PyTorch checkpoints to runs and back.

python -m train.convert --checkpoint=ResNet-20-Gated.pth --backbone=resnet20 --output=runs/authors
python -m train.convert --to_torch=runs/mine
"""

import os

from absl import flags

from gaternet_tf.command import define_path, run, run_command
from gaternet_tf.errors import UserError
from train.command import define_settings

FLAGS = flags.FLAGS

define_path("checkpoint", None, "PyTorch file in the authors' format, to convert to a run.")
define_path("to_torch", None, "Finished run, to convert to a PyTorch file.")
define_path(
    "output", None, "Run directory or file to write; default with --to_torch: RUN/authors.pth."
)
define_settings("backbone", "gater")


def main(argv):
    """Converts in the direction of the flags; returns the exit status."""
    return run_command("train.convert", argv, convert)


def convert():
    """Writes the run or the PyTorch file, and prints where."""
    if (FLAGS.checkpoint is None) == (FLAGS.to_torch is None):
        raise UserError("give either --checkpoint=FILE or --to_torch=RUN")
    if FLAGS.checkpoint is not None and FLAGS.output is None:
        raise UserError("--checkpoint needs --output=RUN, the run directory to write")
    try:
        from train.conversion import checkpoint_to_run, run_to_checkpoint
    except ImportError as error:
        raise UserError(
            "PyTorch is required to read and write its files, and is not installed; run "
            "pip install '.[torch]'"
        ) from error
    if FLAGS.to_torch is not None:
        output = FLAGS.output or os.path.join(FLAGS.to_torch, "authors.pth")
        run_to_checkpoint(FLAGS.to_torch, output)
        print(f"wrote {output}")
        return
    run = checkpoint_to_run(FLAGS.checkpoint, FLAGS.output, FLAGS.backbone, FLAGS.gater)
    print(
        f"wrote {run.path}: {FLAGS.backbone}, gater {FLAGS.gater}, "
        f"{run.result['parameters']:,} parameters, {run.result['gates']} gates\n"
        f"measure it with python -m train.evaluate --workdir={run.path}"
    )


if __name__ == "__main__":
    run(main)
