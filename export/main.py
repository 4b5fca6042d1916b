"""Exports a trained run: python -m export.main --workdir=runs/demo --output_dir=models/gaternet"""

import dataclasses
import os
import sys
from typing import Any

from absl import app, flags, logging

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", None, "Directory of a finished run.", required=True)
flags.DEFINE_string(
    "output_dir", None, "Directory of the model, for example models/gaternet.", required=True
)
flags.DEFINE_integer(
    "version", None, "Number of the version; default: one above the highest present.", 1
)
flags.DEFINE_enum(
    "optimize",
    "auto",
    ["auto", "none", "fold", "specialize"],
    "'fold' folds batch normalisation into the convolutions; 'specialize' also leaves out gates "
    "that never change over --calibration_split; 'none' exports Keras' graph; 'auto' folds what "
    "was trained in float32.",
)
flags.DEFINE_enum(
    "specialize_mode",
    "exact",
    ["exact", "calibrated"],
    "'exact' takes the full network for a batch in which a settled gate differs; 'calibrated' "
    "never does.",
)
flags.DEFINE_string("calibration_split", "train", "Split of the run's dataset to calibrate on.")
flags.DEFINE_string("data_dir", None, "TFDS directory with the run's dataset, for 'specialize'.")
flags.DEFINE_string(
    "warmup_images", None, "Picture, or directory of pictures, to warm up with; default: the run's."
)
flags.DEFINE_integer("keep", None, "Keeps so many versions and removes older ones.", 1)


def main(argv):
    """Exports the run of the flags; returns the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"export.main takes flags only, got '{argv[1]}'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    from export.exporting import ExportConfig, export_run
    from gaternet_tf.errors import UserError

    try:
        names = [field.name for field in dataclasses.fields(ExportConfig)]
        settings: dict[str, Any] = {name: FLAGS[name].value for name in names}
        directory = export_run(ExportConfig(**settings))
    except (UserError, OSError) as error:
        print(f"export.main: error: {error}", file=sys.stderr)
        return 1
    print(f"exported {FLAGS.workdir} to {directory}")
    return 0


if __name__ == "__main__":
    app.run(main)
