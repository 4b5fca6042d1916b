"""Times exports as a model server runs them: python -m benchmarks.export

Prints a table. Its networks have untrained weights and gates that are on for a given share: settled
(the same for every picture) or by picture. For each setting one process loads all exports into
TensorFlow's v1 Session, where they take turns, so that a noisy machine is noisy for all of them;
compare ratios. With the extra [bench] OpenVINO runs the plain network after them.
"""

import ctypes
import gc
import json
import pathlib
import pickle
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags

from gaternet_tf.command import define_path, run, run_command
from gaternet_tf.errors import UserError

FLAGS = flags.FLAGS

flags.DEFINE_multi_string(
    "network",
    [
        *("keras:ResNet50", "keras:DenseNet121", "keras:MobileNetV2", "keras:VGG16"),
        *("resnet20", "resnet56", "resnet164"),
    ],
    "Backbones: resnetD with pictures of 32 pixels and a ResNet-20 as gater, all others with 224 "
    "and a ResNet-18 that sees 112.",
)
flags.DEFINE_multi_float("rate", [0.25, 0.5, 0.75], "Shares of gates that are on.", 0.0, 1.0)
flags.DEFINE_multi_integer("batch", [1, 8, 32], "Batch sizes.", lower_bound=1)
flags.DEFINE_multi_integer("threads", [1, 2], "Threads of an operation.", lower_bound=1)
flags.DEFINE_multi_integer("onednn", [1, 0], "1 with oneDNN, 0 without.", 0, 1)
flags.DEFINE_integer("rounds", 10, "Timed calls of each.", lower_bound=2)
flags.DEFINE_bool("fold_only", False, "Compares only Keras' graph, folded and plain networks.")
define_path("json", None, "File that the medians are added to, in seconds.")
define_path("write", None, "Only writes the exports of the last --network to this directory.")
define_path("figure", None, "Draws time against share of gates on of the file --json, and ends.")

PAPER = {"on": 0.56, "off": 0.22}
"""Shares of gates that are always on and always off in the paper's ResNet-164; half of the others
are on for a picture."""
PICTURES = 32
REQUESTS, OPENVINO = "requests.pickle", "plain.xml"
"""Files beside the exports."""
WARM_UP = 2
"""Calls of each before the timed ones."""


def main(argv):
    """Prints the table."""
    return run_command("benchmarks.export", argv, table)


def table():
    """Builds each network in all ways and lets them take turns."""
    if FLAGS.figure:
        return draw()
    if FLAGS.write:
        return write_exports(FLAGS.network[-1], pathlib.Path(FLAGS.write))
    heads = [f"batch {n}, ms | / plain" for n in FLAGS.batch]
    print(f"| network | threads | oneDNN | export | {' | '.join(heads)} |")
    print("|---|---|---|---" + "|---|---" * len(FLAGS.batch) + "|")
    file = pathlib.Path(FLAGS.json) if FLAGS.json else None
    found = json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else []
    for name in FLAGS.network:
        with tempfile.TemporaryDirectory() as scratch:
            # In a process of its own: tracing takes memory that the timed process needs.
            command = [sys.executable, "-m", "benchmarks.export", *sys.argv[1:]]
            subprocess.run([*command, f"--network={name}", f"--write={scratch}"], check=True)
            requests = pickle.loads((pathlib.Path(scratch) / REQUESTS).read_bytes())
            for onednn in FLAGS.onednn:
                for threads in FLAGS.threads:
                    rows = time_all(requests, pathlib.Path(scratch), threads, onednn)
                    print_rows(name, threads, onednn, rows)
                    found += [
                        [name, threads, onednn, export, [statistics.median(t) for t in times]]
                        for export, times in rows.items()
                    ]
        if file:
            file.write_text(json.dumps(found), encoding="utf-8")
    return None


def print_rows(name, threads, onednn, rows):
    """Prints the rows of one setting: medians (first to third quartile), and their ratios."""
    for export, times in rows.items():
        cells = []
        for seconds, plain in zip(times, rows["plain, folded"], strict=True):
            low, middle, high = statistics.quantiles([1000 * value for value in seconds], n=4)
            ratio = middle / 1000 / statistics.median(plain)
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f}) | {ratio:.2f}")
        setting = f"{name} | {threads} | {'yes' if onednn else 'no'}"
        print(f"| {setting} | {export} | {' | '.join(cells)} |", flush=True)


def time_all(requests, scratch, threads, onednn) -> dict[str, list[list[float]]]:
    """Returns the seconds of each call, by export and batch size."""
    from export.session import run_requests

    environment = {"TF_ENABLE_ONEDNN_OPTS": str(onednn)}
    flat = [request for each in requests.values() for request in each]
    answers = iter(run_requests(flat, WARM_UP, FLAGS.rounds, (threads, threads), environment))
    rows = {name: [next(answers).seconds for _ in each] for name, each in requests.items()}
    if (scratch / OPENVINO).exists():
        batches = [request.inputs["images"] for request in next(iter(requests.values()))]
        rows["plain, OpenVINO"] = time_openvino(str(scratch / OPENVINO), batches, threads)
    return rows


def write_exports(name, scratch):
    """Writes all exports of a network, and their requests by name."""
    import numpy as np

    from export.conditional import ConditionalNetwork, gate_places
    from export.costs import Costs, choose
    from export.folding import fold
    from export.program import read_program
    from export.session import Request
    from export.settling import settle
    from export.signatures import write_saved_model
    from gaternet_tf.data import Preprocessing
    from gaternet_tf.models import build_gaternet

    small = name.startswith("resnet")
    shape, classes = ((32, 32, 3), 10) if small else ((224, 224, 3), 1000)
    gater, size = ("resnet20", None) if small else ("imagenet-resnet18", 112)
    model = build_gaternet(name, gater, shape, classes, gated_convs="all", gater_size=size)
    preprocessing = Preprocessing(*shape, (0.5,) * 3, (0.25,) * 3)
    rng = np.random.default_rng(0)
    # Many, since the share of pictures for which a gate is on is set over them.
    pictures = rng.integers(0, 256, (max(PICTURES, *FLAGS.batch), *shape)).astype(np.uint8)
    # Pictures of unlike contrast, since gates of plain noise hardly differ.
    contrast = np.linspace(0.2, 1, len(pictures))[:, None, None, None]
    pictures = (pictures * contrast).astype(np.uint8)
    requests: dict[str, list] = {}

    def write(title, network, order=None):
        directory = scratch / str(len(requests))
        write_saved_model(network, preprocessing, [str(n) for n in range(classes)], str(directory))
        # Several GiB that C's allocator would otherwise keep.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        ordered = pictures if order is None else pictures[order]
        requests[title] = [
            Request(directory, "serving_default", {"images": ordered[:n]}) for n in FLAGS.batch
        ]

    gates_at = _gates_by_picture(model, preprocessing.normalize(pictures))
    gates_at(0.5)
    folded = fold(read_program(model))
    plain = folded.without_gates()
    write("plain, folded", plain)
    write("gated, Keras' graph", lambda images: model(images, training=False))
    write("gated, folded", folded)
    count = model.output["gates"].shape[1]
    convert_to_openvino(plain, shape, scratch / OPENVINO)
    rates = [] if FLAGS.fold_only else FLAGS.rate
    for rate in rates:
        off = rng.random(count) >= rate
        write(f"{rate:.0%} on, settled", settle(folded, ~off, off))
    if rates:
        draws = rng.random(count)
        settled = (draws < PAPER["on"], draws >= 1 - PAPER["off"])
        write("as the paper's, specialised", settle(folded, *settled))
    costs = Costs()
    for rate in rates:
        order = gates_at(rate)
        program = fold(read_program(model))
        chosen = choose(program, gate_places(program), np.full(count, rate), costs)
        network = ConditionalNetwork(program, chosen, max(FLAGS.batch))
        write(f"{rate:.0%} on, by picture", network, order)
    (scratch / REQUESTS).write_bytes(pickle.dumps(requests))


def _gates_by_picture(model, images):
    """Returns a function of a rate, which sets the bias of each gate so that it is on for so many.

    The function returns the order of the pictures, those with that share of gates on first.
    """
    import keras
    import numpy as np

    head = model.get_layer("gater_fc2")
    kernel = np.random.default_rng(1).normal(size=head.kernel.shape)
    head.set_weights([kernel, np.zeros(head.units)])
    values = keras.Model(model.input, head.output).predict(images, batch_size=8, verbose=0)

    def gates_at(rate):
        threshold = np.quantile(values, 1 - rate, axis=0)
        head.bias.assign(-threshold)
        return np.argsort(abs((values > threshold).mean(axis=1) - rate))

    return gates_at


def convert_to_openvino(program, shape, path):
    """Writes a network for OpenVINO, without the operations before and after it, if installed."""
    try:
        import openvino
    except ImportError:
        return
    import tensorflow as tf

    from export.program import Call

    module = tf.Module()
    called = [step.operation for step in program.steps if isinstance(step, Call)]
    module.weights = [w.value for each in called for w in getattr(each, "weights", [])]
    signature = [tf.TensorSpec((None, *shape), name="images")]
    module.network = tf.function(lambda images: program(images), input_signature=signature)
    with tempfile.TemporaryDirectory() as scratch:
        tf.saved_model.save(module, scratch, signatures=module.network)
        openvino.save_model(openvino.convert_model(scratch), path, compress_to_fp16=False)


def time_openvino(path, batches, threads) -> list[list[float]]:
    """Returns the seconds of each call by batch."""
    import numpy as np
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    times: list[list[float]] = []
    for batch in batches:
        floats = [batch.astype(np.float32) / 255]
        times.append([])
        for _ in range(WARM_UP + FLAGS.rounds):
            started = time.perf_counter()
            request.infer(floats)
            times[-1].append(time.perf_counter() - started)
    return [seconds[WARM_UP:] for seconds in times]


def draw():
    """Draws time, as a share of the plain network's, against the share of gates on."""
    import matplotlib.pyplot as plt

    if not FLAGS.json:
        raise UserError("--figure needs the file --json")
    rows = json.loads(pathlib.Path(FLAGS.json).read_text(encoding="utf-8"))
    threads, onednn = FLAGS.threads[0], FLAGS.onednn[0]
    rows = [row for row in rows if row[1:3] == [threads, onednn]]
    names = list(dict.fromkeys(row[0] for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3.2), sharey=True)
    for axis, name in zip(axes if len(names) > 1 else [axes], names, strict=True):
        medians = {row[3]: row[4][0] for row in rows if row[0] == name}
        for kind, marker in (("settled", "o"), ("by picture", "s")):
            points = [
                (float(export.partition("%")[0]), value / medians["plain, folded"])
                for export, value in medians.items()
                if export.endswith(f"on, {kind}")
            ]
            axis.plot(*zip(*points, strict=True), marker=marker, label=kind)
        axis.axhline(1, color="grey", linewidth=1)
        axis.set(title=name.removeprefix("keras:"), xlabel="gates on, %", xlim=(0, 100))
    (axes if len(names) == 1 else axes[0]).set_ylabel("time / plain network's")
    (axes if len(names) == 1 else axes[0]).legend()
    (axes if len(names) == 1 else axes[0]).set_ylim(0)
    figure.tight_layout()
    figure.savefig(FLAGS.figure, dpi=150)
    print(FLAGS.figure)


if __name__ == "__main__":
    run(main)
