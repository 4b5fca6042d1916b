"""Exports a trained run: python -m export.main --workdir=runs/demo --output_dir=models/gaternet"""

import dataclasses
from typing import Any

from absl import flags

from gaternet_tf.command import define_path, run, run_command

FLAGS = flags.FLAGS

define_path("workdir", None, "Directory of a finished run.", required=True)
define_path(
    "output_dir", None, "Directory of the model, for example models/gaternet.", required=True
)
flags.DEFINE_integer(
    "version", None, "Number of the version; default: one above the highest present.", 1
)
flags.DEFINE_enum(
    "optimize",
    "auto",
    ["auto", "none", "fold", "specialize", "conditional"],
    "'fold' folds batch normalisation into the convolutions; 'specialize' also leaves out gates "
    "that never change over --calibration_split, and 'conditional' computes of what is left only "
    "the filters that a picture's gates switch on, where that is faster; 'none' exports Keras' "
    "graph; 'auto' folds what was trained in float32.",
)
flags.DEFINE_enum(
    "specialize_mode",
    "calibrated",
    ["calibrated", "exact"],
    "'exact' takes the full network for a batch in which a settled gate differs; 'calibrated' "
    "never does.",
)
define_path(
    "cost",
    None,
    "JSON file with measured times of layers for 'conditional', such as those of the server's "
    "machine; what is missing in it is measured here and added.",
    suffixes=(".json",),
)
flags.DEFINE_string("calibration_split", "train", "Split of the run's dataset to calibrate on.")
define_path(
    "data_dir", None, "TFDS directory with the run's dataset, for 'specialize' and 'conditional'."
)
define_path(
    "warmup_images", None, "Picture, or directory of pictures, to warm up with; default: the run's."
)
flags.DEFINE_integer("keep", None, "Keeps so many versions and removes older ones.", 1)
define_path(
    "server_config",
    None,
    "TensorFlow Serving's --model_config_file: --keep neither removes nor counts the versions that "
    "it pins or labels.",
)


def main(argv):
    """Exports the run of the flags; returns the exit status."""
    return run_command("export.main", argv, export)


def export():
    """Publishes the version, and prints where."""
    from export.exporting import ExportConfig, export_run

    names = [field.name for field in dataclasses.fields(ExportConfig)]
    settings: dict[str, Any] = {name: FLAGS[name].value for name in names}
    print(f"exported {FLAGS.workdir} to {export_run(ExportConfig(**settings))}")


if __name__ == "__main__":
    run(main)
