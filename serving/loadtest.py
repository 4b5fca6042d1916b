"""Loads a model server with requests and reports throughput and latency.

python -m serving.loadtest --concurrency=8 --duration=10 PICTURE...

Each caller asks again as soon as it was answered (a closed loop), or after a pause when the server
had no room for its request. Latency includes the client's retries.
"""

import argparse
import collections
import concurrent.futures
import itertools
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from serving.client import ClientError, PictureError, UnavailableError
from serving.client.command_line import (
    OK,
    SOME_FAILED,
    USAGE,
    add_server_flags,
    exit_status,
    find_pictures,
    open_client,
    positive,
    print_error,
)
from serving.client.pictures import encode

PROGRAM = "serving.loadtest"
PAUSE = 0.1
"""Seconds until a caller asks again for whose request the server had no room."""


def run_load(
    ask: Callable[[], Any], callers: int, duration: float, requests: float = math.inf
) -> dict[str, Any]:
    """Calls `ask` from several threads, and returns what came of it.

    Args:
      ask: makes a request; raises `ClientError` when it fails.
      callers: number of threads.
      duration: seconds after which no request begins, but the first of each caller.
      requests: number of requests after which none begins.

    Returns:
      `seconds`, `answered`, `requests_per_second`, `latency_ms` (p50, p90, p99, mean and max, or
      empty without answers) and `errors`, a count for each status.
    """
    numbers = itertools.count(1)
    latencies: list[float] = []
    errors: collections.Counter = collections.Counter()
    started = time.monotonic()

    def call():
        now = started
        while now < started + duration and next(numbers) <= requests:
            begun = time.monotonic()
            try:
                ask()
                latencies.append(time.monotonic() - begun)
            except ClientError as error:
                errors[error.code.name if error.code else "UNKNOWN"] += 1
                if isinstance(error, UnavailableError):
                    # Refusing requests without a pause would take the server's CPU.
                    time.sleep(PAUSE)
            now = time.monotonic()

    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        for caller in [pool.submit(call) for _ in range(callers)]:
            caller.result()
    seconds = time.monotonic() - started
    return {
        "seconds": round(seconds, 3),
        "answered": len(latencies),
        "requests_per_second": round(len(latencies) / seconds, 2),
        "latency_ms": summarize([1e3 * latency for latency in latencies]),
        "errors": dict(errors),
    }


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Returns percentiles (the smallest value that so many percent do not exceed), mean and max."""
    if not values:
        return {}
    ordered = sorted(values)
    summary = {
        f"p{percent}": ordered[math.ceil(percent / 100 * len(ordered)) - 1]
        for percent in (50, 90, 99)
    }
    summary |= {"mean": sum(ordered) / len(ordered), "max": ordered[-1]}
    return {name: round(value, 3) for name, value in summary.items()}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.loadtest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0 when all requests were answered, 3 when some were not, otherwise as "
        "python -m serving.client",
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="what to send, in turn")
    parser.add_argument(
        "--concurrency", type=positive(int), default=8, help="number of callers (%(default)s)"
    )
    parser.add_argument(
        "--duration", type=positive(float), default=10.0, help="in seconds (%(default)s)"
    )
    parser.add_argument("--requests", type=positive(int), help="end after so many, if sooner")
    parser.add_argument(
        "--batch_size", type=positive(int), default=1, help="pictures in a request (%(default)s)"
    )
    parser.add_argument("--gates", action="store_true", help="ask which gates are on, too")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    add_server_flags(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = parse_arguments(arguments)
    paths = find_pictures(options.pictures)
    if not paths:
        print_error(PROGRAM, "there must be pictures to send, found none")
        return USAGE
    try:
        client = open_client(options, batch_size=options.batch_size)
    except (OSError, ValueError) as error:
        print_error(PROGRAM, error)
        return USAGE
    with client:
        ask = client.gates if options.gates else client.classify
        try:
            # Outside the measurement: connects, and shows whether all is well.
            for path, answer in zip(paths, ask(paths), strict=True):
                if isinstance(answer, PictureError):
                    print_error(PROGRAM, f"{path}: {answer}")
                    return SOME_FAILED
        except ClientError as error:
            print_error(PROGRAM, error)
            return exit_status(error)
        pictures = itertools.cycle([encode(path) for path in paths])
        report = run_load(
            lambda: ask(list(itertools.islice(pictures, options.batch_size))),
            options.concurrency,
            options.duration,
            options.requests or math.inf,
        )
    report["pictures_per_second"] = round(report["requests_per_second"] * options.batch_size, 2)
    if options.output == "json":
        print(json.dumps(report, indent=2))
    else:
        latency = "  ".join(f"{name} {value:.1f}" for name, value in report["latency_ms"].items())
        errors = ", ".join(f"{count} {code}" for code, count in report["errors"].items())
        print(
            f"throughput  {report['requests_per_second']:.1f} requests/s, "
            f"{report['pictures_per_second']:.1f} pictures/s\n"
            f"latency ms  {latency}\n"
            f"errors      {errors or 'none'} ({report['answered']} answered "
            f"in {report['seconds']:.1f} s)"
        )
        if "RESOURCE_EXHAUSTED" in report["errors"]:
            print(
                "refused     RESOURCE_EXHAUSTED: the server has too few threads for so many "
                f"callers; give it --grpc_max_threads={max(80, 2 * options.concurrency)} or more"
            )
    return SOME_FAILED if report["errors"] else OK


if __name__ == "__main__":
    from gaternet_tf.command import run_command

    # Ctrl-C ends the process at once, also while gRPC waits.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(run_command(PROGRAM, [], main, tensorflow=False, prints_only=True))
