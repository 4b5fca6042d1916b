"""Loads a model server with requests, and tells how it did: python -m serving.loadtest PICTURE...

A closed loop has a fixed number of callers, each of which asks again when it was answered. An open
loop asks at a fixed rate, whether answers come or not, as many independent callers would; its
latency counts from when a request was due, so that a server which falls behind looks like it.
Requests are made once and are not retried. Those of an open loop for which there was no room before
the end are not sent any more; the report says how many.
"""

import argparse
import asyncio
import collections
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from serving.client_command import (
    FAILED,
    INTERRUPTED,
    SOME_FAILED,
    add_server_flags,
    client_arguments,
    end_of,
    expand,
)

SIGNATURES = {"image_bytes": "image_bytes", "images": "serving_default", "gates": "gates"}
OK = "OK"


@dataclasses.dataclass(frozen=True)
class Load:
    """What to ask for.

    Attributes:
      rate: requests a second of an open loop; None for a closed one.
      concurrency: callers of a closed loop; the most requests under way of an open one.
      duration: seconds after which no request is begun; None for no end.
      requests: the number of requests; None for any.
    """

    rate: float | None = None
    concurrency: int = 8
    duration: float | None = 10.0
    requests: int | None = None

    @property
    def most(self) -> float:
        """How many requests there can be; in an open loop, how many there are to be."""
        most = math.inf if self.requests is None else self.requests
        if self.rate is None or self.duration is None:
            return most
        return min(most, math.ceil(round(self.duration * self.rate, 6)))

    def begins(self, start: float) -> Iterator[float]:
        """When each request is due (an open loop) or may begin, until there are no more."""
        number = 0
        while number < self.most:
            due = time.monotonic() if self.rate is None else start + number / self.rate
            if self.rate is None and self.is_over(start):
                return
            yield due
            number += 1

    def is_over(self, start: float) -> bool:
        """Whether no request may be begun any more."""
        return self.duration is not None and time.monotonic() >= start + self.duration


@dataclasses.dataclass
class Report:
    """What came of it.

    Attributes:
      load: what was asked for.
      pictures: in each request.
      seconds: from the first request to the last answer.
      latencies: of each request that was answered.
      codes: how many ended with which status.
      interrupted: whether Ctrl-C ended it, and what was under way.
    """

    load: Load
    pictures: int
    seconds: float
    latencies: list[float]
    codes: collections.Counter
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The JSON-ready form."""
        answers = len(self.latencies)
        ordered = sorted(self.latencies)
        times = {f"p{share}": percentile(ordered, share) for share in (50, 90, 99)}
        times["mean"] = sum(ordered) / answers if answers else None
        times["max"] = ordered[-1] if answers else None
        return {
            "mode": "closed" if self.load.rate is None else "open",
            **{name: value for name, value in dataclasses.asdict(self.load).items() if value},
            "pictures_per_request": self.pictures,
            "seconds": round(self.seconds, 3),
            "sent": self.sent,
            "not_sent": self.not_sent,
            "answered": answers,
            "requests_per_second": round(answers / self.seconds, 2) if self.seconds else 0.0,
            "pictures_per_second": round(answers * self.pictures / self.seconds, 2)
            if self.seconds
            else 0.0,
            "latency_ms": {
                name: None if value is None else round(value * 1e3, 3)
                for name, value in times.items()
            },
            "errors": dict(sorted(self.errors.items())),
        }

    @property
    def sent(self) -> int:
        """How many requests ended, however."""
        return self.codes.total()

    @property
    def not_sent(self) -> int:
        """How many requests of an open loop were due, and had no room before the end."""
        if self.load.rate is None or self.interrupted:
            return 0
        return int(self.load.most) - self.sent

    @property
    def errors(self) -> dict[str, int]:
        """How many requests ended with which code but OK."""
        return {code: count for code, count in self.codes.items() if code != OK}

    def to_text(self) -> str:
        """The form for a person."""
        told = self.to_dict()
        times = "  ".join(
            f"{name} {'-' if value is None else f'{value:.1f}'}"
            for name, value in told["latency_ms"].items()
        )
        errors = ", ".join(f"{count} {code}" for code, count in told["errors"].items()) or "none"
        how = (
            f"closed loop, {self.load.concurrency} callers"
            if self.load.rate is None
            else f"open loop, {self.load.rate:g} requests/s"
        )
        unsent = f"; {told['not_sent']} more were due" if told["not_sent"] else ""
        return (
            f"{how}, {self.pictures} pictures a request, {told['seconds']:.1f} s\n"
            f"throughput  {told['requests_per_second']:.1f} requests/s, "
            f"{told['pictures_per_second']:.1f} pictures/s\n"
            f"latency ms  {times}\n"
            f"errors      {errors} ({told['answered']} of {told['sent']} answered{unsent})\n"
        )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest of the values that `share` percent of them do not exceed; None of none."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]


async def run_load(load: Load, send: Callable[[], Awaitable[str]], pictures: int = 1) -> Report:
    """Sends requests as `load` says; `send` returns the name of the status it got.

    Who cancels it gets the report of what was answered until then.
    """
    latencies: list[float] = []
    codes: collections.Counter = collections.Counter()

    async def one(due):
        code = await send()
        codes[code] += 1
        if code == OK:
            latencies.append(time.monotonic() - due)

    start = time.monotonic()
    begins = load.begins(start)

    async def caller():
        for due in begins:
            await one(due)

    async def closed_loop():
        async with asyncio.TaskGroup() as tasks:
            for _ in range(load.concurrency):
                tasks.create_task(caller())

    async def open_loop():
        room = asyncio.Semaphore(load.concurrency)
        async with asyncio.TaskGroup() as tasks:
            for due in begins:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await room.acquire()
                if load.is_over(start):
                    return
                tasks.create_task(one(due)).add_done_callback(lambda _: room.release())

    interrupted = False
    try:
        await (closed_loop() if load.rate is None else open_loop())
    except asyncio.CancelledError:
        interrupted = True
    return Report(load, pictures, time.monotonic() - start, latencies, codes, interrupted)


def parse_arguments(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.loadtest",
        description=__doc__,
        epilog="Exit status: 0 all requests that were sent were answered, 3 some were not, 1 none "
        "was, 130 interrupted (Ctrl-C, after the report); before the load begins, 1, 2, 4 and 5 as "
        "those of python -m serving.client.",
    )
    parser.add_argument(
        "pictures", nargs="*", metavar="PICTURE", help="what to send; noise of the model's size"
    )
    parser.add_argument("--rate", type=float, help="requests a second: an open loop")
    parser.add_argument(
        "--concurrency",
        type=int,
        help="callers of a closed loop (8), or most requests under way of an open one (1000)",
    )
    parser.add_argument("--duration", type=float, help="seconds (10, if --requests is not given)")
    parser.add_argument("--requests", type=int, help="how many; with --duration whichever is first")
    parser.add_argument(
        "--warmup", type=float, default=1.0, help="seconds before that count not (%(default)s)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=1, help="pictures a request (%(default)s)"
    )
    parser.add_argument(
        "--input",
        choices=list(SIGNATURES),
        default="image_bytes",
        help="encoded pictures, raw arrays, or raw arrays with gates (%(default)s)",
    )
    parser.add_argument("--resize", type=int, help="as serving.client's, for raw arrays")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    add_server_flags(parser)
    options = parser.parse_args(arguments)
    if options.duration is None and options.requests is None:
        options.duration = 10.0
    if options.concurrency is None:
        options.concurrency = 8 if options.rate is None else 1000
    for name in ("rate", "concurrency", "duration", "requests", "batch_size", "timeout"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            parser.error(f"--{name} must be above 0 and finite, got {value}")
    if not 0 <= options.warmup < math.inf:
        parser.error(f"--warmup must be 0 or above and finite, got {options.warmup}")
    return options


def noise(shape: tuple[int, int, int], seed: int):
    """A picture of random pixels, which compresses as badly as any."""
    import random

    from PIL import Image

    height, width, channels = shape
    content = random.Random(seed).randbytes(height * width * channels)
    return Image.frombytes("L" if channels == 1 else "RGB", (width, height), content)


async def make_request(rules, options):
    """The request that is sent again and again.

    Raises:
      ClientError: for a picture that is none, or when the server does not tell the model's size.
    """
    from serving import wire
    from serving.client_errors import PictureError
    from serving.pictures import encoded, pixels

    found: Sequence[Any] = options.pictures
    raw = options.input != "image_bytes"
    shape = await rules.input_shape() if raw or not found else (0, 0, 0)
    if not found:
        found = [noise(shape, seed) for seed in range(options.batch_size)]

    def prepared(picture):
        try:
            return pixels(picture, shape, options.resize) if raw else encoded(picture)
        except PictureError as error:
            raise PictureError(f"{picture}: {error}") from error

    chosen = [prepared(found[number % len(found)]) for number in range(options.batch_size)]
    if raw:
        name, tensor = "images", wire.uint8_tensor(b"".join(chosen), (len(chosen), *shape))
    else:
        name, tensor = "image_bytes", wire.string_tensor(chosen)
    return wire.PredictRequest(
        model_spec=rules.model_spec(SIGNATURES[options.input]), inputs={name: tensor}
    )


def wake_at_ctrl_c() -> None:
    """Lets Ctrl-C wake the event loop, in which asyncio.run's handler of it then runs.

    Otherwise that waits until the loop wakes up by itself, if the signal comes in the moment before
    it falls asleep, or to another thread: with a server that does not answer, until the deadline.
    """
    handler = signal.getsignal(signal.SIGINT)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
    signal.signal(signal.SIGINT, handler)


async def measure(options) -> Report:
    """Warms up and runs the load.

    Raises:
      ClientError: when not even one request is answered before.
    """
    from serving.client_questions import Choices
    from serving.client_rules import Rules
    from serving.transport import PREDICT, CallError, Retries, Settings, async_transport

    wake_at_ctrl_c()
    asked = client_arguments(options)
    version, label, model = asked.pop("version"), asked.pop("label"), asked.pop("model")
    settings = Settings(**asked, in_flight=options.concurrency, retries=Retries(attempts=1))
    transport = async_transport(settings)
    try:
        rules = Rules(transport, settings, Choices(model, version, label))
        request = await make_request(rules, options)

        async def send():
            try:
                await transport.call(PREDICT, request)
            except CallError as error:
                return error.code
            return OK

        try:
            await transport.call(PREDICT, request)
        except CallError as error:
            raise rules.refusal(error) from error
        if options.warmup:
            warmup = await run_load(Load(None, min(options.concurrency, 8), options.warmup), send)
            if warmup.interrupted:
                raise asyncio.CancelledError
        load = Load(options.rate, options.concurrency, options.duration, options.requests)
        return await run_load(load, send, options.batch_size)
    finally:
        await transport.close()


def load_and_tell(options) -> int:
    """Prints what came of the load; returns the exit status."""
    # Not in the event loop: the list may come from a terminal.
    options.pictures = expand(options.pictures)
    report = asyncio.run(measure(options))
    if options.output == "json":
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print(report.to_text(), end="")
    if report.interrupted:
        return INTERRUPTED
    if not report.errors:
        return 0
    return SOME_FAILED if report.latencies else FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = parse_arguments(arguments)
    return end_of("serving.loadtest", lambda: load_and_tell(options))


if __name__ == "__main__":
    sys.exit(main())
