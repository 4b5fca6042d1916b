"""Analyses the gates of a run or an export: python -m gaternet_tf.analysis --workdir=RUN"""

import pathlib
from typing import Any

from absl import flags

from gaternet_tf.command import define_path, run, run_command

FLAGS = flags.FLAGS

define_path("workdir", None, "Finished run to analyse.")
define_path("model_dir", None, "Exported version to analyse instead, models/NAME/VERSION.")
define_path(
    "redraw", None, "Directory of an analysis whose figures and report are to be drawn again."
)
flags.DEFINE_string("split", None, "Split of the dataset; default: the test split.")
flags.DEFINE_string("dataset", None, "Dataset with the run's classes; default: the run's own.")
define_path("data_dir", None, "TFDS directory to read and prepare datasets in.")
flags.DEFINE_boolean("download", True, "Whether a dataset that is not on disk may be fetched.")
define_path(
    "output_dir",
    None,
    "Directory to write to; default: RUN/analysis, for another split RUN/analysis-SPLIT. Required "
    "with --model_dir, since an exported version must not change, and with --dataset.",
)
flags.DEFINE_float("perplexity", 30.0, "Perplexity of t-SNE.", lower_bound=1.0)
flags.DEFINE_integer("seed", 0, "Seed of samples, noise, PCA and t-SNE.", 0, 2**32 - 1)
flags.DEFINE_integer("batch_size", None, "Images in a batch; default: 250, of large ones fewer.", 1)


flags.mark_flags_as_mutual_exclusive(["workdir", "model_dir", "redraw"], required=True)
flags.register_multi_flags_validator(
    ["model_dir", "dataset", "output_dir"],
    lambda values: values["output_dir"] or not (values["model_dir"] or values["dataset"]),
    "--model_dir and --dataset need --output_dir",
)


def main(argv):
    """Writes the analysis and prints its headlines; returns the exit status."""
    return run_command("gaternet_tf.analysis", argv, report)


def report():
    """Analyses what the flags name, draws the report, and prints its headlines."""
    from gaternet_tf.analysis.files import load
    from gaternet_tf.analysis.report import draw, headlines

    directory = pathlib.Path(FLAGS.redraw) if FLAGS.redraw else _analyse()
    document, arrays = load(directory)
    draw(document, arrays, directory)
    for sentence in headlines(document):
        print(sentence)
    print(f"report: {directory / 'report.html'}")


def _analyse() -> pathlib.Path:
    from gaternet_tf.analysis.analyse import analyse
    from gaternet_tf.analysis.files import prepare_output, save
    from gaternet_tf.analysis.networks import network_of_export, network_of_run

    network = network_of_run(FLAGS.workdir) if FLAGS.workdir else network_of_export(FLAGS.model_dir)
    # Of an export, which does not record its test split, --output_dir is required.
    own = not FLAGS.split or FLAGS.split == network.dataset.get("test_split")
    name = "analysis" if own else f"analysis-{FLAGS.split}"
    directory = prepare_output(FLAGS.output_dir or pathlib.Path(FLAGS.workdir) / name)
    names = ("dataset", "data_dir", "download", "split", "perplexity", "seed", "batch_size")
    settings: dict[str, Any] = {name: FLAGS[name].value for name in names}
    document, arrays = analyse(network, **settings)
    directory.mkdir(parents=True, exist_ok=True)
    save(document, arrays, directory)
    return directory


if __name__ == "__main__":
    run(main)
