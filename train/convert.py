"""Converts the authors' PyTorch checkpoints to runs and back.

python -m train.convert --checkpoint=ResNet-20-Gated.pth --backbone=resnet20 --output=runs/authors
python -m train.convert --to_torch=runs/mine
"""

import os
import sys

from absl import app, flags, logging

FLAGS = flags.FLAGS

flags.DEFINE_string("checkpoint", None, "PyTorch file in the authors' format, to make a run of.")
flags.DEFINE_string("to_torch", None, "Finished run, to make a PyTorch file of.")
flags.DEFINE_string(
    "output", None, "Run directory or file to write; default with --to_torch: RUN/authors.pth."
)
flags.DEFINE_string("backbone", "resnet20", "Network that classifies: resnet20, resnet56, ...")
flags.DEFINE_string("gater", "resnet20", "Network that gates it.")


def check_flags():
    """Raises `UsageError` unless there is one thing to do."""
    if (FLAGS.checkpoint is None) == (FLAGS.to_torch is None):
        raise app.UsageError("give either --checkpoint=FILE or --to_torch=RUN")
    if FLAGS.checkpoint is not None and FLAGS.output is None:
        raise app.UsageError("--checkpoint needs --output=RUN, the run directory to write")


def main(argv):
    """Converts in the direction of the flags; returns the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"train.convert takes flags only, got '{argv[1]}'")
    check_flags()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    from gaternet_tf.errors import UserError
    from train.conversion import checkpoint_to_run, run_to_checkpoint

    try:
        if FLAGS.to_torch is not None:
            output = FLAGS.output or os.path.join(FLAGS.to_torch, "authors.pth")
            run_to_checkpoint(FLAGS.to_torch, output)
            print(f"wrote {output}")
        else:
            run = checkpoint_to_run(FLAGS.checkpoint, FLAGS.output, FLAGS.backbone, FLAGS.gater)
            print(
                f"wrote {run.path}: {FLAGS.backbone}, gater {FLAGS.gater}, "
                f"{run.result['parameters']:,} parameters, {run.result['gates']} gates\n"
                f"measure it with python -m train.evaluate --workdir={run.path}"
            )
    except (UserError, OSError) as error:
        print(f"train.convert: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    app.run(main)
