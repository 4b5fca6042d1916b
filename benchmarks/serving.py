"""Times the client and the local server: python -m benchmarks.serving --model_base_path=DIR

Starts the server on a model and prints the CPU time that the client takes for a request, what the
server answers to 1 and 8 callers with one and with several encoded pictures in a request, and how
fast the same model is when it is called in the process itself. Callers and model take turns in
several rounds, of which the medians count: what else the machine does slows all of them.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from gaternet_tf.command import run_command
from serving.client import ClientError, GaterNetClient
from serving.client.command_line import path, positive, print_error
from serving.client.pictures import encode
from serving.demo import MODEL, local_server
from serving.loadtest import run_load

CALLERS = (1, 8)
ROUNDS = 3


def client_cost(client: GaterNetClient, picture, requests: int) -> float:
    """Returns the milliseconds of this process's CPU for a request, the best of some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(requests):
            client.classify([picture])
        rounds.append(time.process_time() - started)
    return 1e3 * min(rounds) / requests


def load_signature(model_base_path: str) -> Callable[[Sequence[bytes]], object]:
    """Returns a function that calls the newest version's signature `image_bytes` here."""
    import tensorflow as tf

    versions = [path for path in pathlib.Path(model_base_path).iterdir() if path.name.isdecimal()]
    model = tf.saved_model.load(str(max(versions, key=lambda path: int(path.name))))
    signature = model.signatures["image_bytes"]
    return lambda batch: signature(image_bytes=tf.constant(batch))["probabilities"].numpy()


def print_rows(ways: dict[str, tuple[Callable, int]], batch: Sequence, seconds: float) -> None:
    """Loads each way, a function and its number of callers, in turns; prints a row for each."""
    reports: dict[str, list] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (ask, callers) in ways.items():
            report = run_load(functools.partial(ask, batch), callers, seconds)
            reports[name].append((report["requests_per_second"], report["latency_ms"]))
    in_process = [rate for rate, _ in next(iter(reports.values()))]
    for name, rounds in reports.items():
        rate = statistics.median(rate for rate, _ in rounds)
        p50, p99 = (statistics.median(ms[key] for _, ms in rounds) for key in ("p50", "p99"))
        share = statistics.median(
            rate / base for (rate, _), base in zip(rounds, in_process, strict=True)
        )
        speed = f"{len(batch) * rate:.0f} | {p50:.2f} | {p99:.2f} | {share:.0%}"
        print(f"| {name} | {len(batch)} | {speed} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what it measures; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--model_base_path", type=path, required=True, help="directory with versions below it"
    )
    for flag, default, text in (
        ("--seconds", 2.0, "of each row in each of the rounds"),
        ("--batch_size", 32, "pictures of a large request"),
        ("--requests", 200, "for the client's cost"),
    ):
        parser.add_argument(flag, type=positive(type(default)), default=default, help=text)
    options = parser.parse_args(arguments)
    import numpy as np

    # Random pixels, which compress as badly as any.
    shape = (options.batch_size, 32, 32, 3)
    arrays = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    pictures = [encode(array) for array in arrays]
    try:
        with (
            local_server(options.model_base_path) as target,
            GaterNetClient(target, MODEL, timeout=60, batch_size=options.batch_size) as client,
        ):
            client.classify(pictures)
            print("\n| the client's own cost of a request | CPU, ms |\n|---|---|")
            for name, picture in (
                ("an encoded picture", pictures[0]),
                ("an array, which becomes PNG", arrays[0]),
            ):
                print(f"| {name} | {client_cost(client, picture, options.requests):.2f} |")
            print("\n| who asks | pictures | pictures/s | p50, ms | p99, ms | of in process |")
            print("|---|---|---|---|---|---|")
            ways: dict[str, tuple[Callable, int]] = {
                "in process": (load_signature(options.model_base_path), 1)
            }
            for callers in CALLERS:
                ways[f"{callers} over gRPC"] = (client.classify, callers)
            for batch in (pictures[:1], pictures):
                for ask, _ in ways.values():
                    ask(batch)
                print_rows(ways, batch, options.seconds)
    except ClientError as error:
        print_error("benchmarks.serving", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_command("benchmarks.serving", [], main))
