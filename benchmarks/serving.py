"""Times the client and the local server: python -m benchmarks.serving --model_base_path=DIR

Starts the server on a model and prints the CPU time that the client takes for a request, what the
server answers to 1 and 8 callers with one and with several encoded pictures in a request, and how
fast the same model is when it is called in the process itself. Callers and model take turns in
several rounds, of which the medians count: what else the machine does slows all of them.
"""

import argparse
import functools
import io
import os
import pathlib
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from serving.client import ClientError, GaterNetClient
from serving.client.command_line import positive, print_error
from serving.demo import MODEL, local_server
from serving.loadtest import run_load

CALLERS = (1, 8)
ROUNDS = 3
SIZE = (32, 32)


def noise(seed: int):
    """Returns a PIL image of random pixels, which compresses as badly as any."""
    from PIL import Image

    return Image.frombytes("RGB", SIZE, random.Random(seed).randbytes(3 * SIZE[0] * SIZE[1]))


def encode_png(image) -> bytes:
    """Returns a PIL image as PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def client_cost(client: GaterNetClient, picture, requests: int) -> float:
    """Returns the milliseconds of this process's CPU for a request, the best of some rounds."""
    client.classify([picture])
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(requests):
            client.classify([picture])
        rounds.append(time.process_time() - started)
    return 1e3 * min(rounds) / requests


def load_signature(model_base_path: str) -> Callable[[Sequence[bytes]], object]:
    """Returns a function that calls the newest version's signature `image_bytes` here."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    versions = [path for path in pathlib.Path(model_base_path).iterdir() if path.name.isdecimal()]
    model = tf.saved_model.load(str(max(versions, key=lambda path: int(path.name))))
    signature = model.signatures["image_bytes"]
    return lambda batch: signature(image_bytes=tf.constant(batch))["probabilities"].numpy()


def print_rows(
    ways: dict[str, tuple[Callable[[], object], int]], pictures: int, seconds: float
) -> None:
    """Loads each way, a function and its number of callers, in turns; prints a row for each."""
    rounds = [
        {name: run_load(ask, callers, seconds) for name, (ask, callers) in ways.items()}
        for _ in range(ROUNDS)
    ]
    first = next(iter(ways))
    for name in ways:
        reports = [reports[name] for reports in rounds]
        rate = statistics.median(report["requests_per_second"] for report in reports)
        share = statistics.median(
            reports[name]["requests_per_second"] / reports[first]["requests_per_second"]
            for reports in rounds
        )
        p50, p99 = (
            statistics.median(report["latency_ms"][key] for report in reports)
            for key in ("p50", "p99")
        )
        speed = f"{pictures * rate:.0f} | {p50:.2f} | {p99:.2f} | {share:.0%}"
        print(f"| {name} | {pictures} | {speed} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what it measures; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--model_base_path", required=True, help="directory with versions below it")
    parser.add_argument(
        "--seconds",
        type=positive(float),
        default=2.0,
        help="of each row in each of the rounds (%(default)s)",
    )
    parser.add_argument(
        "--batch_size",
        type=positive(int),
        default=32,
        help="pictures of a large request (%(default)s)",
    )
    parser.add_argument(
        "--requests",
        type=positive(int),
        default=200,
        help="for the client's cost (%(default)s)",
    )
    options = parser.parse_args(arguments)
    import numpy as np

    pictures = [encode_png(noise(seed)) for seed in range(options.batch_size)]
    forms = {"an encoded picture": pictures[0], "an array, which becomes PNG": np.array(noise(0))}
    try:
        with (
            local_server(options.model_base_path) as target,
            GaterNetClient(target, MODEL, timeout=60, batch_size=options.batch_size) as client,
        ):
            print("\n| the client's own cost of a request | CPU, ms |\n|---|---|")
            for name, picture in forms.items():
                print(f"| {name} | {client_cost(client, picture, options.requests):.2f} |")
            print("\n| who asks | pictures | pictures/s | p50, ms | p99, ms | of in process |")
            print("|---|---|---|---|---|---|")
            predict = load_signature(options.model_base_path)
            for batch in (pictures[:1], pictures):
                predict(batch)
                client.classify(batch)
                ways: dict[str, tuple[Callable[[], object], int]] = {}
                ways["in process"] = functools.partial(predict, batch), 1
                for callers in CALLERS:
                    ways[f"{callers} over gRPC"] = (
                        functools.partial(client.classify, batch),
                        callers,
                    )
                print_rows(ways, len(batch), options.seconds)
    except ClientError as error:
        print_error("benchmarks.serving", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
