"""Times the client and the local server: python -m benchmarks.serving --model_base_path=DIR

Starts the server on a model, and prints the CPU time that the client takes for a request; what the
server answers to 1 and 8 callers, raw arrays and encoded pictures, one and several a request; and
how fast the same model is when it is called in the process itself, without a server. Callers and
model take turns in several rounds, of which the medians count: what else the machine does meanwhile
slows all of them.
"""

import argparse
import functools
import io
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from serving.client import ClientError, GaterNetClient
from serving.demo import MODEL, local_server
from serving.loadtest import SIGNATURES, noise, percentile

INPUTS = ("images", "image_bytes")
CALLERS = (1, 8)
ROUNDS = 3


def client_cost(client, picture, requests: int) -> float:
    """Milliseconds of this process' CPU for a request with one picture, the best of some rounds."""
    client.classify([picture])
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(requests):
            client.classify([picture])
        rounds.append(time.process_time() - started)
    return 1e3 * min(rounds) / requests


def client_costs(target: str, requests: int) -> tuple[tuple[int, int, int], dict[str, float]]:
    """The model's input shape, and the costs of an encoded picture and of an array."""
    import numpy as np

    with GaterNetClient(target, MODEL) as client:
        shape = client.input_shape()
        picture = noise(shape, 0)
        file = io.BytesIO()
        picture.save(file, "PNG")
        forms: dict[str, Any] = {
            "an encoded picture": file.getvalue(),
            "an array, which becomes PNG": np.asarray(picture),
        }
        return shape, {name: client_cost(client, one, requests) for name, one in forms.items()}


def load_test(target: str, kind: str, callers: int, pictures: int, seconds: float) -> dict:
    """The report of serving.loadtest, in a process of its own.

    Raises:
      ClientError: when a request failed.
    """
    command = [sys.executable, "-m", "serving.loadtest", f"--target={target}", f"--model={MODEL}"]
    command += [f"--input={kind}", f"--concurrency={callers}", f"--batch_size={pictures}"]
    done = subprocess.run(
        [*command, f"--duration={seconds}", f"--warmup={seconds / 10}", "--output=json"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ClientError(f"the load test failed: {done.stderr.strip() or done.stdout}")
    return json.loads(done.stdout)


def in_process(
    version_dir: pathlib.Path, shape, sizes, seconds: float
) -> dict[tuple[str, int], Callable[[], dict]]:
    """What times the model called here, for each input and size; reports like the load test's."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np
    import tensorflow as tf

    model = tf.saved_model.load(str(version_dir))

    def report(kind, value, pictures):
        times = timed(model.signatures[SIGNATURES[kind]], {kind: value}, seconds)
        return {
            "pictures_per_second": pictures / statistics.fmean(times),
            "latency_ms": {
                f"p{share}": 1e3 * (percentile(sorted(times), share) or 0) for share in (50, 99)
            },
        }

    reports: dict[tuple[str, int], Callable[[], dict]] = {}
    for pictures in sizes:
        images = np.stack([np.asarray(noise(shape, seed)) for seed in range(pictures)])
        images = images.reshape(pictures, *shape)
        values = {
            "images": tf.constant(images),
            "image_bytes": tf.constant([tf.io.encode_png(one).numpy() for one in images]),
        }
        for kind, value in values.items():
            reports[kind, pictures] = functools.partial(report, kind, value, pictures)
    return reports


def timed(signature, inputs, seconds: float) -> list[float]:
    """How long each call took, for so many seconds, after a tenth of them that do not count."""
    times: list[float] = []
    begin = time.monotonic() + seconds / 10
    while not times or time.monotonic() < begin + seconds:
        started = time.monotonic()
        signature(**inputs)["probabilities"].numpy()
        if started >= begin:
            times.append(time.monotonic() - started)
    return times


def in_turns(ways: dict[str, Callable[[], dict]]) -> dict[str, list[dict]]:
    """The reports of each way of asking, which take turns."""
    reports: dict[str, list[dict]] = {who: [] for who in ways}
    for _ in range(ROUNDS):
        for who, ask in ways.items():
            reports[who].append(ask())
    return reports


def row(who: str, kind: str, pictures: int, reports: list[dict], alone: list[dict]) -> str:
    """A row of the table; `alone` are the reports of the same rounds in the process itself."""
    rates = [one["pictures_per_second"] for one in reports]
    shares = [rate / one["pictures_per_second"] for rate, one in zip(rates, alone, strict=True)]
    p50, p99 = (
        statistics.median(one["latency_ms"][share] for one in reports) for share in ("p50", "p99")
    )
    return (
        f"| {who} | {kind} | {pictures} | {statistics.median(rates):.0f} | {p50:.2f} | {p99:.2f} | "
        f"{statistics.median(shares):.0%} |"
    )


def newest_version(model_base_path: str) -> pathlib.Path:
    """The directory that the server serves."""
    found = [path for path in pathlib.Path(model_base_path).iterdir() if path.name.isdecimal()]
    return max(found, key=lambda path: int(path.name))


def main(arguments=None) -> int:
    """Prints what it measures; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--model_base_path", required=True, help="directory with versions below it")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of each row in each of the rounds (%(default)s)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=32, help="pictures of a large request (%(default)s)"
    )
    parser.add_argument(
        "--requests", type=int, default=200, help="for the client's cost (%(default)s)"
    )
    options = parser.parse_args(arguments)
    for name in ("seconds", "batch_size", "requests"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name} must be above 0, got {getattr(options, name)}")
    sizes = (1, options.batch_size)
    try:
        with local_server(options.model_base_path) as target:
            shape, costs = client_costs(target, options.requests)
            print("\n| the client's own cost of a request | CPU, ms |\n|---|---|")
            for name, cost in costs.items():
                print(f"| {name} | {cost:.2f} |")
            print(
                "\n| who asks | input | pictures | pictures/s | p50, ms | p99, ms | of in process |"
            )
            print("|---|---|---|---|---|---|---|")
            version_dir = newest_version(options.model_base_path)
            calls = in_process(version_dir, shape, sizes, options.seconds)
            for kind, pictures in itertools.product(INPUTS, sizes):
                ways = {"in process": calls[kind, pictures]}
                for callers in CALLERS:
                    ways[f"{callers} over gRPC"] = functools.partial(
                        load_test, target, kind, callers, pictures, options.seconds
                    )
                reports = in_turns(ways)
                for who, found in reports.items():
                    print(row(who, kind, pictures, found, reports["in process"]), flush=True)
    except ClientError as error:
        print(f"benchmarks.serving: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
