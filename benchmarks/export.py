"""Times exports as a model server runs them: python -m benchmarks.export --backbone=resnet56

Prints a table: Keras' own graph, ours as it is trained, folded, specialized if a run is given, and
the plain backbone, folded; each at several batch sizes and two thread settings, and with the extra
[bench] OpenVINO on the same weights. The exports are loaded through TensorFlow's C++ in one process
for each thread setting, which takes them in turn, so that a noisy machine is noisy to all of them;
OpenVINO runs after them, through its Python.
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


def main(argv):
    """Prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"benchmarks.export takes flags only, got '{argv[1]}'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    import numpy as np
    import tensorflow as tf

    from export.served import Request, Served
    from gaternet_tf.errors import UserError

    with tempfile.TemporaryDirectory() as scratch:
        try:
            networks, exports, pictures = write_exports(pathlib.Path(scratch))
        except UserError as error:
            print(f"benchmarks.export: error: {error}", file=sys.stderr)
            return 1
        images = {n: np.resize(pictures, (n, *pictures.shape[1:])) for n in FLAGS.batch}
        requests = [
            Request("serving_default", {"images": images[n]}, name)
            for n in FLAGS.batch
            for name in exports
        ]
        print("| threads | export | " + " | ".join(f"batch {n}, ms" for n in FLAGS.batch) + " |")
        print("|---|---|" + "---|" * len(FLAGS.batch))
        for title, (intra, inter) in THREADS.items():
            config = tf.compat.v1.ConfigProto(
                intra_op_parallelism_threads=intra, inter_op_parallelism_threads=inter
            )
            answers = Served(exports, config).run(requests, warm_up=5, rounds=FLAGS.rounds)
            for row, name in enumerate(exports):
                cells = answers[row :: len(exports)]
                print(f"| {title} | {name} | " + " | ".join(map(cell, cells)) + " |", flush=True)
            if row := openvino_row(networks["folded"], images, intra):
                print(f"| {title} | OpenVINO, folded | {row} |", flush=True)
    return 0


def cell(answer) -> str:
    """Median and the middle half's ends, in milliseconds."""
    if answer.error:
        raise RuntimeError(answer.error)
    return spread(answer.seconds)


def spread(seconds) -> str:
    """Median (first to third quartile), in milliseconds."""
    low, middle, high = statistics.quantiles([1000 * value for value in seconds], n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def write_exports(directory: pathlib.Path) -> tuple[dict, dict[str, pathlib.Path], Any]:
    """Functions of normalised images by name, their exports, and pictures to ask them about.

    Of a run these are test pictures, since settled gates may be others on noise.
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
    exports: dict[str, pathlib.Path] = {}

    def export(name, network):
        exports[name] = directory / str(len(exports))
        shape = (None, *preprocessing.shape)
        networks[name] = tf.function(
            network, input_signature=[tf.TensorSpec(shape, tf.float32, name="images")]
        )
        write_saved_model(networks[name], preprocessing, labels, str(exports[name]))

    for name, network in list(networks.items()):
        export(name, network)
    return networks, exports, pictures


def with_keras_batch_normalization(model):
    """The same network with Keras' batch normalisation in its convolutions."""
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
    """The cells of OpenVINO's row, one string; None where it is not installed.

    It runs after the others, in this process and through its Python, and gets the network alone,
    without the two operations that normalise and those after logits.
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
        for number in range(5 + FLAGS.rounds):
            started = time.perf_counter()
            request.infer([floats])
            if number >= 5:
                seconds.append(time.perf_counter() - started)
        cells.append(spread(seconds))
    return " | ".join(cells)


if __name__ == "__main__":
    app.run(main)
