"""Times exports of a run as a model server runs them: python -m benchmarks.export --workdir=RUN

Prints a table: Keras' own graph, ours as trained, folded, specialized, and the plain backbone,
folded; each at several batch sizes and two thread settings, and with the extra [bench] OpenVINO on
the same weights. For each thread setting one process loads the exports into TensorFlow's v1
Session, where they take turns, so that a noisy machine is noisy for all of them; OpenVINO runs
after them.
"""

import pathlib
import statistics
import tempfile
import time
import unittest.mock

from absl import flags

from gaternet_tf.command import define_path, run, run_command

FLAGS = flags.FLAGS

define_path("workdir", None, "Directory of a finished run.", required=True)
define_path("data_dir", None, "TFDS directory with the run's dataset.")
flags.DEFINE_multi_integer("batch", [1, 8, 32], "Batch sizes.", lower_bound=1)
flags.DEFINE_integer("rounds", 30, "Timed calls of each.", lower_bound=2)

THREADS = {"2 intra-op, 2 inter-op": (2, 2), "1 intra-op, 2 inter-op": (1, 2)}
WARM_UP = 5
"""Calls of each before the timed ones."""


def main(argv):
    """Prints the table."""
    return run_command("benchmarks.export", argv, print_table)


def print_table():
    """Exports the run in all ways and lets them take turns."""
    import numpy as np

    from export.session import Request, run_requests
    from export.signatures import write_saved_model
    from gaternet_tf.runs import open_run

    run = open_run(FLAGS.workdir)
    networks, pictures = networks_of(run)
    images = [np.resize(pictures, (n, *run.preprocessing.shape)) for n in FLAGS.batch]
    with tempfile.TemporaryDirectory() as scratch:
        versions = [pathlib.Path(scratch) / str(number) for number in range(len(networks))]
        for network, version in zip(networks.values(), versions, strict=True):
            write_saved_model(network, run.preprocessing, run.labels, str(version))
        requests = [
            Request(version, "serving_default", {"images": batch})
            for version in versions
            for batch in images
        ]
        print("| threads | export | " + " | ".join(f"batch {n}, ms" for n in FLAGS.batch) + " |")
        print("|---|---|" + "---|" * len(FLAGS.batch))
        for title, (intra, inter) in THREADS.items():
            answers = iter(run_requests(requests, WARM_UP, FLAGS.rounds, (intra, inter)))
            rows = {name: [next(answers).seconds for _ in images] for name in networks}
            if times := time_openvino(networks["folded"], images, intra):
                rows["OpenVINO, folded"] = times
            for name, times in rows.items():
                cells = [quartiles(seconds) for seconds in times]
                print(f"| {title} | {name} | {' | '.join(cells)} |", flush=True)


def quartiles(seconds) -> str:
    """Returns the median (first to third quartile) as text, in milliseconds."""
    low, middle, high = statistics.quantiles([1000 * value for value in seconds], n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def networks_of(run) -> tuple[dict, list]:
    """Returns the networks to compare, by name, and test pictures to time them on.

    They are no noise, on which settled gates could be others.
    """
    from export.frozen import FrozenNetwork
    from export.specializing import MODES, SpecializedNetwork, calibrate
    from gaternet_tf import build_gaternet, gate_map
    from gaternet_tf.data import evaluation_batches
    from gaternet_tf.evaluation import dataset_with_classes

    model = run.load_model()
    keras_own = with_keras_batch_normalization(model)
    plain = build_gaternet(
        run.config["backbone"],
        "none",
        run.preprocessing.shape,
        len(run.labels),
        width=run.config["width"],
    )
    networks = {
        "Keras' own": lambda images: keras_own(images, training=False),
        "as trained": lambda images: model(images, training=False),
        "folded": FrozenNetwork(model),
        "plain backbone, folded": FrozenNetwork(plain),
    }
    recorded = run.document["dataset"]
    data = dataset_with_classes(
        run.labels, run.config, recorded, None, FLAGS.data_dir, download=False
    )
    if len(gate_map(model)):
        batches = evaluation_batches(data, run.preprocessing, 250, data.train_split)
        calibration = calibrate(model, batches)
        for mode in MODES:
            networks[f"specialized, {mode}"] = SpecializedNetwork(model, calibration, mode)
    examples = data.examples(data.test_split).take(max(FLAGS.batch))
    return networks, [run.preprocessing.fit(image) for image, _ in examples]


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


def time_openvino(network, images, threads) -> list[list[float]]:
    """Returns the seconds of each call by batch of images; nothing where it is not installed.

    OpenVINO runs the network alone, without the operations before and after it.
    """
    try:
        import openvino
    except ImportError:
        return []
    import numpy as np
    import tensorflow as tf

    module = tf.Module()
    module.network = tf.function(
        network, input_signature=[tf.TensorSpec((None, *images[0].shape[1:]), name="images")]
    )
    with tempfile.TemporaryDirectory() as scratch:
        tf.saved_model.save(module, scratch, signatures=module.network)
        converted = openvino.convert_model(scratch)
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    request = openvino.Core().compile_model(converted, "CPU", settings).create_infer_request()
    times: list[list[float]] = []
    for batch in images:
        floats = [batch.astype(np.float32) / 255]
        times.append([])
        for _ in range(WARM_UP + FLAGS.rounds):
            started = time.perf_counter()
            request.infer(floats)
            times[-1].append(time.perf_counter() - started)
    return [seconds[WARM_UP:] for seconds in times]


if __name__ == "__main__":
    run(main)
