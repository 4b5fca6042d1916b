"""Times exports as a model server runs them: python -m benchmarks.export --backbone=resnet56

Prints a table: Keras' own graph, ours as trained, folded, specialized if a run is given, and the
plain backbone, folded; each at several batch sizes and two thread settings, and with the extra
[bench] OpenVINO on the same weights. For each thread setting one process loads the exports into
TensorFlow's v1 Session, where they take turns, so that a noisy machine is noisy for all of them;
OpenVINO runs after them.
"""

import os
import pathlib
import statistics
import sys
import tempfile
import time
import unittest.mock
from typing import Any

from absl import app, flags, logging

FLAGS = flags.FLAGS

flags.DEFINE_string("backbone", "resnet56", "Network with random weights.")
flags.DEFINE_string("gater", "resnet20", "Network that gates it.")
flags.DEFINE_string("workdir", None, "A finished run to take instead; adds specialized exports.")
flags.DEFINE_string("data_dir", None, "TFDS directory with the run's dataset.")
flags.DEFINE_multi_integer("batch", [1, 8, 32], "Batch sizes.", lower_bound=1)
flags.DEFINE_integer("rounds", 30, "Timed calls of each.", lower_bound=2)

THREADS = {"2 intra-op, 2 inter-op": (2, 2), "1 intra-op, 2 inter-op": (1, 2)}
WARM_UP = 5
"""Calls of each before the timed ones."""


def main(argv):
    """Prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"benchmarks.export takes flags only, got '{argv[1]}'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    import numpy as np

    from export.session import Request, run_requests
    from gaternet_tf.errors import UserError

    with tempfile.TemporaryDirectory() as scratch:
        try:
            networks, exports, pictures = write_exports(pathlib.Path(scratch))
        except UserError as error:
            print(f"benchmarks.export: error: {error}", file=sys.stderr)
            return 1
        images = {n: np.resize(pictures, (n, *pictures.shape[1:])) for n in FLAGS.batch}
        requests = [
            Request(directory, "serving_default", {"images": images[n]})
            for n in FLAGS.batch
            for directory in exports.values()
        ]
        print("| threads | export | " + " | ".join(f"batch {n}, ms" for n in FLAGS.batch) + " |")
        print("|---|---|" + "---|" * len(FLAGS.batch))
        for title, (intra, inter) in THREADS.items():
            answers = run_requests(requests, WARM_UP, FLAGS.rounds, (intra, inter))
            for row, name in enumerate(exports):
                cells = [quartiles(answer.seconds) for answer in answers[row :: len(exports)]]
                print(f"| {title} | {name} | " + " | ".join(cells) + " |", flush=True)
            if row := openvino_row(networks["folded"], images, intra):
                print(f"| {title} | OpenVINO, folded | {row} |", flush=True)
    return 0


def quartiles(seconds) -> str:
    """Returns the median (first to third quartile) as text, in milliseconds."""
    low, middle, high = statistics.quantiles([1000 * value for value in seconds], n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def write_exports(directory: pathlib.Path) -> tuple[dict, dict[str, pathlib.Path], Any]:
    """Returns networks by name, their exports by the same names, and pictures to time them on.

    With a run these are test pictures, since on noise settled gates may be others.
    """
    import numpy as np
    import tensorflow as tf

    from export.frozen import FrozenNetwork
    from export.signatures import write_saved_model
    from export.specializing import MODES, SpecializedNetwork, calibrate
    from gaternet_tf import build_gaternet
    from gaternet_tf.data import Preprocessing, evaluation_batches
    from gaternet_tf.evaluation import dataset_with_classes
    from gaternet_tf.models import gate_map
    from gaternet_tf.runs import open_run

    if FLAGS.workdir:
        run = open_run(FLAGS.workdir)
        model, preprocessing, labels = run.load_model(), run.preprocessing, run.labels
        backbone, width = run.config["backbone"], run.config["width"]
    else:
        preprocessing = Preprocessing(32, 32, 3, (0.5,) * 3, (0.25,) * 3)
        labels = [str(number) for number in range(10)]
        model = build_gaternet(FLAGS.backbone, FLAGS.gater, preprocessing.shape, len(labels))
        backbone, width = FLAGS.backbone, 16
    noise = np.random.default_rng(0).integers(0, 256, (max(FLAGS.batch), *preprocessing.shape))
    pictures = noise.astype(np.uint8)
    plain = build_gaternet(backbone, "none", preprocessing.shape, len(labels), width=width)
    keras_own = with_keras_batch_normalization(model)
    networks: dict[str, Any] = {
        "Keras' own": lambda images: keras_own(images, training=False),
        "as trained": lambda images: model(images, training=False),
        "folded": FrozenNetwork(model),
        "plain backbone, folded": FrozenNetwork(plain),
    }
    if FLAGS.workdir:
        recorded = run.document["dataset"]
        data = dataset_with_classes(
            run.labels, run.config, recorded, None, FLAGS.data_dir, download=False
        )
        batches = evaluation_batches(data, preprocessing, 250, data.train_split)
        test = data.examples(data.test_split).take(max(FLAGS.batch))
        pictures = np.stack([preprocessing.fit(image) for image, _ in test])
        calibration = calibrate(model, batches)
        for mode in MODES if len(gate_map(model)) else ():
            networks[f"specialized, {mode}"] = SpecializedNetwork(model, calibration, mode)
    exports = {}
    images = tf.TensorSpec((None, *preprocessing.shape), tf.float32, name="images")
    for number, name in enumerate(networks):
        networks[name] = tf.function(networks[name], input_signature=[images])
        exports[name] = directory / str(number)
        write_saved_model(networks[name], preprocessing, labels, str(exports[name]))
    return networks, exports, pictures


def with_keras_batch_normalization(model):
    """Returns a copy of a model with Keras' batch normalisation in its convolutions."""
    import keras

    from gaternet_tf.layers import batch_normalization

    def keras_own(synchronized, **kwargs):
        ours = batch_normalization()
        constants = {"momentum": ours.momentum, "epsilon": ours.epsilon}
        return keras.layers.BatchNormalization(**constants, **kwargs)

    with unittest.mock.patch("gaternet_tf.layers.gated_conv.batch_normalization", keras_own):
        copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    return copy


def openvino_row(network, images, threads):
    """Returns the cells of OpenVINO's row as text; None where it is not installed.

    OpenVINO runs the network alone, without the operations before and after it.
    """
    try:
        import openvino
    except ImportError:
        return None
    import numpy as np
    import tensorflow as tf

    module = tf.Module()
    module.network = network
    with tempfile.TemporaryDirectory() as scratch:
        tf.saved_model.save(module, scratch, signatures=network)
        converted = openvino.convert_model(scratch)
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    request = compiled.create_infer_request()
    cells = []
    for batch in images.values():
        seconds = []
        floats = batch.astype(np.float32) / 255
        for number in range(WARM_UP + FLAGS.rounds):
            started = time.perf_counter()
            request.infer([floats])
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - started)
        cells.append(quartiles(seconds))
    return " | ".join(cells)


if __name__ == "__main__":
    app.run(main)
