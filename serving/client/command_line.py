"""What the commands that call a model server share: flags, pictures, messages, exit statuses."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from serving.client import (
    ClientError,
    GaterNetClient,
    Prediction,
    Tls,
    UnavailableError,
    UnknownModelError,
)

OK, FAILED, USAGE, SOME_FAILED, UNREACHABLE, UNKNOWN_MODEL = range(6)
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp")
SUFFIXES = (*JPEG_SUFFIXES, ".png", ".bmp", ".gif", ".webp")


def path(text: str) -> str:
    """Is the argparse type of a path, see `gaternet_tf.command.local_path`."""
    # Imported here, since in any other process than a command it brings TensorFlow.
    from gaternet_tf.command import local_path

    try:
        return local_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(kind: type) -> Callable[[str], float]:
    """Returns an argparse type for an int or float above 0."""

    def convert(text):
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    convert.__name__ = kind.__name__
    return convert


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for the server, the model and TLS."""
    server = parser.add_argument_group("server")
    server.add_argument(
        "--target", default="localhost:8500", help="HOST:PORT of its gRPC interface (%(default)s)"
    )
    server.add_argument("--model", default="gaternet", help="name of the model (%(default)s)")
    version = server.add_mutually_exclusive_group()
    version.add_argument("--version", type=int, help="version of the model (the server's newest)")
    version.add_argument("--label", help="or the label of a version, such as stable")
    server.add_argument(
        "--timeout",
        type=positive(float),
        default=10.0,
        help="seconds for each request, retries included (%(default)s)",
    )
    server.add_argument(
        "--tls", action="store_true", help="use TLS; implied by the other flags for TLS"
    )
    pem: dict[str, Any] = {"type": path, "metavar": "PEM"}
    server.add_argument(
        "--tls_ca", **pem, help="the authorities' certificates (default: gRPC's own)"
    )
    server.add_argument("--tls_cert", **pem, help="the client's certificate (mutual TLS)")
    server.add_argument("--tls_key", **pem, help="the key of --tls_cert")
    server.add_argument(
        "--tls_server_name", metavar="NAME", help="name in the server's certificate"
    )


def open_client(options: argparse.Namespace, **arguments) -> GaterNetClient:
    """Returns the client that the flags of `add_server_flags` describe.

    Raises:
      OSError, ValueError: as `Tls` and `GaterNetClient`.
    """
    files = (options.tls_ca, options.tls_cert, options.tls_key, options.tls_server_name)
    return GaterNetClient(
        options.target,
        options.model,
        version=options.version,
        label=options.label,
        timeout=options.timeout,
        tls=Tls(*files) if options.tls or any(file is not None for file in files) else None,
        **arguments,
    )


def find_pictures(arguments: Iterable[str]) -> list[str]:
    """Returns the files that PICTURE arguments stand for.

    A directory that cannot be read or has no pictures is returned itself: it is then a picture
    that cannot be read.
    """
    paths: list[str] = []
    for argument in arguments:
        if argument == "-":
            lines = (os.fsdecode(line).rstrip("\r\n") for line in sys.stdin.buffer)
            paths.extend(line for line in lines if line)
        elif os.path.isdir(argument):
            paths.extend(_search(argument))
        else:
            paths.append(argument)
    return paths


def _search(directory):
    unreadable: list[str] = []
    found = [
        os.path.join(parent, name)
        for parent, _, names in os.walk(
            directory, onerror=lambda error: unreadable.append(error.filename)
        )
        for name in names
        if name.lower().endswith(SUFFIXES)
    ]
    return sorted(found + unreadable) or [directory]


def printable(text: str) -> str:
    """Returns the text with escapes for characters that a terminal would obey."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def format_table(rows: Iterable[Iterable[str]]) -> str:
    """Returns rows of cells, of which the first are headings, as aligned lines."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)


def format_gates(prediction: Prediction) -> str:
    """Returns the number of gates that are on, for example "143 of 336"."""
    gates = prediction.gates or ()
    return f"{sum(gates)} of {len(gates)}"


def print_error(program: str, error: object) -> None:
    """Prints an error in one line on the standard error."""
    print(f"{program}: error: {printable(str(error))}", file=sys.stderr)


def exit_status(error: ClientError) -> int:
    """Returns the exit status for an error that concerns more than one picture."""
    if isinstance(error, UnavailableError):
        return UNREACHABLE
    return UNKNOWN_MODEL if isinstance(error, UnknownModelError) else FAILED
