"""Time and memory of an analysis of many images and gates: python -m benchmarks.analysis

Counts and t-SNE of a planted gate matrix, by default as large as ImageNet's validation set with a
network of 20,000 gates. The network's own time comes on top, see what it takes with
`time python -m gaternet_tf.analysis --workdir=RUN`.
"""

import os
import resource
import time

from absl import app, flags

FLAGS = flags.FLAGS

flags.DEFINE_integer("images", 50_000, "Images.", lower_bound=1)
flags.DEFINE_integer("gates", 20_000, "Gates, a multiple of 8.", lower_bound=8)
flags.DEFINE_integer("classes", 1_000, "Classes.", lower_bound=2)


def main(argv):
    """Prints seconds and the peak of memory after each part."""
    if len(argv) > 1:
        raise app.UsageError(f"benchmarks.analysis takes flags only, got '{argv[1]}'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np

    from gaternet_tf.analysis.record import GateRecord
    from gaternet_tf.analysis.separation import separate
    from gaternet_tf.analysis.statistics import count, statistics_of
    from gaternet_tf.models.gate_map import GateMap, GateSegment

    rng = np.random.default_rng(0)
    width = FLAGS.gates // 8
    gate_map = GateMap([GateSegment(1, unit, 2, 8) for unit in range(1, width + 1)])
    labels = rng.integers(0, FLAGS.classes, FLAGS.images).astype(np.int32)
    record = GateRecord(
        packed=rng.integers(0, 256, (FLAGS.images, width), np.uint8),
        labels=labels,
        predictions=labels,
        confidences=np.ones(FLAGS.images, np.float32),
        gate_map=gate_map,
        classes=[str(number) for number in range(FLAGS.classes)],
        macs=1_000_000,
        gate_macs=np.full(8 * width, 10),
    )
    report("made", time.perf_counter())
    started = time.perf_counter()
    counts = count(record)
    report("counted", started)
    started = time.perf_counter()
    statistics_of(record, counts)
    report("statistics", started)
    started = time.perf_counter()
    sample, _, _ = separate(record, counts.dependent)
    report(f"t-SNE of {len(sample)} images", started)


def report(name, started):
    """Prints the seconds since `started`, and the most memory that was ever used."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name:24} {time.perf_counter() - started:7.1f} s, peak {peak:.2f} GiB", flush=True)


if __name__ == "__main__":
    app.run(main)
