"""The command of `serving.client`: what it takes, prints and ends with."""

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from serving.client_errors import ClientError, printable
from serving.pictures import MAX_PIXELS

if TYPE_CHECKING:
    from serving.client import Prediction

DESCRIPTION = """\
Classifies pictures on a model server: TensorFlow Serving, or python -m serving.server.

PICTURE is a JPEG, PNG, BMP or GIF file, a directory, of which all such files are taken, or "-" for
a list of them on the standard input, one a line. EXIF orientation is ignored, as in training."""
EPILOG = """\
exit status:
  0  every picture was classified
  1  the server answered with an error, the model is not one of ours, or the output cannot be
     written (as when head has seen enough)
  2  wrong usage
  3  some pictures were not classified; the others were
  4  the server cannot be reached, has no room, or did not answer in time
  5  the server has no such model, version or label
  130  interrupted (Ctrl-C)"""
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
FAILED, USAGE, SOME_FAILED, UNREACHABLE, UNKNOWN_MODEL, INTERRUPTED = 1, 2, 3, 4, 5, 130
MANY = 20


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which server and model to ask, and how."""
    server = parser.add_argument_group("server")
    server.add_argument(
        "--target",
        default="localhost:8500",
        help="HOST:PORT of gRPC, or http://HOST:PORT of REST (%(default)s)",
    )
    server.add_argument("--model", default="gaternet", help="name of the model (%(default)s)")
    server.add_argument("--version", type=int, help="its version (the server's newest)")
    server.add_argument("--label", help="or the label of a version, such as stable")
    server.add_argument(
        "--timeout", type=float, default=10.0, help="seconds for each request (%(default)s)"
    )
    server.add_argument("--tls", action="store_true", help="speak TLS; also if a file is given")
    server.add_argument("--tls_ca", metavar="PEM", help="authorities (the well-known ones)")
    server.add_argument("--tls_cert", metavar="PEM", help="the client's certificate (mutual TLS)")
    server.add_argument("--tls_key", metavar="PEM", help="the key of --tls_cert")
    server.add_argument(
        "--tls_server_name", metavar="NAME", help="name in the server's certificate"
    )


def client_arguments(options) -> dict[str, Any]:
    """The arguments of a client that `add_server_flags` stand for.

    Raises:
      SettingsError: for TLS files that are not.
    """
    from serving.client import Tls

    files = {
        "ca": options.tls_ca,
        "cert": options.tls_cert,
        "key": options.tls_key,
        "server_name": options.tls_server_name,
    }
    # Whoever names a file means TLS.
    wanted = options.tls or any(value is not None for value in files.values())
    return {
        "target": options.target,
        "model": options.model,
        "timeout": options.timeout,
        "version": options.version,
        "label": options.label,
        "tls": Tls(**files) if wanted else None,
    }


def parse_arguments(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.client",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="what to classify")
    parser.add_argument("--gates", action="store_true", help="also ask which gates are on")
    parser.add_argument("--top", type=int, default=1, help="classes to show (%(default)s)")
    parser.add_argument("--output", choices=["table", "json", "csv"], default="table")
    parser.add_argument(
        "--status", action="store_true", help="print the states of the model's versions instead"
    )
    parser.add_argument(
        "--wait_ready",
        type=float,
        metavar="SECONDS",
        help="first wait so long for the model to be available",
    )
    add_server_flags(parser)
    details = parser.add_argument_group("requests")
    details.add_argument(
        "--resize",
        type=int,
        help="for --gates of pictures of any size: the model's preprocessing.resize, in "
        "assets.extra/gaternet.json",
    )
    details.add_argument("--batch_size", type=int, default=32, help="pictures (%(default)s)")
    details.add_argument("--in_flight", type=int, default=4, help="at once (%(default)s)")
    details.add_argument(
        "--max_pixels", type=int, default=MAX_PIXELS, help="of a picture (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if not options.timeout > 0:
        parser.error(f"--timeout must be above 0, got {options.timeout}")
    if options.top < 1:
        parser.error(f"--top must be above 0, got {options.top}")
    if options.top > 1 and options.gates:
        parser.error("--top above 1 and --gates are not given together; ask twice")
    if not options.pictures and not options.status and options.wait_ready is None:
        parser.error("the following arguments are required: PICTURE (or --status, --wait_ready)")
    return options


def expand(arguments: Sequence[str]) -> list[str]:
    """The files that PICTURE arguments stand for; what is none is left to be told as an error."""
    paths: list[str] = []
    for argument in arguments:
        if argument == "-":
            lines = (os.fsdecode(line).rstrip("\r\n") for line in sys.stdin.buffer)
            paths.extend(line for line in lines if line)
        elif os.path.isdir(argument):
            found = sorted(
                str(path)
                for path in pathlib.Path(argument).rglob("*")
                if path.suffix.lower() in SUFFIXES and path.is_file()
            )
            paths.extend(found or [argument])
        else:
            paths.append(argument)
    return paths


def format_table(rows: Iterable[Sequence[str]]) -> str:
    """Aligns rows of cells, the first of which are headings."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def gates_on(prediction: "Prediction") -> str:
    """For example "143 of 336"."""
    gates = prediction.gates or ()
    return f"{sum(gates)} of {len(gates)}"


def as_table(paths, answers, options) -> str:
    """The answers for a person, without those that failed; empty if all have."""
    heads = ["picture", "class", "probability"]
    heads += ["gates on"] if options.gates else []
    heads += ["then"] if options.top > 1 else []
    rows = [heads]
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, Exception):
            continue
        row = [path, answer.label, f"{answer.probability:.4f}"]
        if options.gates:
            row.append(gates_on(answer))
        if options.top > 1:
            row.append(", ".join(f"{one.label} {one.probability:.4f}" for one in answer.top[1:]))
        rows.append(row)
    return format_table(rows) + "\n" if len(rows) > 1 else ""


def as_json(paths, answers, options) -> str:
    """The answers for a program: a list with an object a picture, in order."""
    documents = []
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, Exception):
            fields: dict = {"error": str(answer)}
        else:
            fields = {k: v for k, v in dataclasses.asdict(answer).items() if v is not None}
            if options.top == 1:
                del fields["top"]
        documents.append({"picture": path, **fields})
    return json.dumps(documents, indent=2) + "\n"


def as_csv(paths, answers, options) -> str:
    """The answers for a spreadsheet: a row a picture, in order, the error in the last column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = ["picture", "label", "class_id", "probability", "version"]
    heads += ["gates_on", "gates"] if options.gates else []
    for place in range(2, options.top + 1):
        heads += [f"label_{place}", f"probability_{place}"]
    writer.writerow([*heads, "error"])
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, Exception):
            writer.writerow([path, *[""] * (len(heads) - 1), str(answer)])
            continue
        row = [path, answer.label, answer.class_id, answer.probability, answer.version]
        if options.gates:
            row += [sum(answer.gates), "".join(map(str, answer.gates))]
        for one in answer.top[1:]:
            row += [one.label, one.probability]
        row += [""] * (len(heads) - len(row))
        writer.writerow([*row, ""])
    return text.getvalue()


FORMATS = {"table": as_table, "json": as_json, "csv": as_csv}


class Progress:
    """A bar on the standard error, if that is a terminal and there are many pictures."""

    def __init__(self, total: int):
        self._total = total
        self._done = 0
        self._percent = -1
        self._shown = total > MANY and sys.stderr.isatty()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def step(self):
        """One more is done."""
        self._done += 1
        percent = 100 * self._done // self._total
        if self._shown and percent != self._percent:
            self._percent = percent
            bar = ("#" * (percent // 4)).ljust(25)
            text = f"\r[{bar}] {self._done} of {self._total}"
            print(text, end="", file=sys.stderr, flush=True)


def exit_status(error: Exception) -> int:
    """The exit status for an error that concerns not only one picture."""
    from serving import client

    kinds = (
        (client.SettingsError, USAGE),
        (client.UnavailableError, UNREACHABLE),
        (client.UnknownModelError, UNKNOWN_MODEL),
    )
    return next((status for kind, status in kinds if isinstance(error, kind)), FAILED)


def classify(client, paths: Sequence[str], options) -> tuple[list, int]:
    """Asks for all; what is lost with the server gets its error. Returns answers and status."""
    ask = client.stream_gates(paths) if options.gates else client.stream(paths, options.top)
    answers: list = []
    with Progress(len(paths)) as progress, contextlib.closing(ask):
        try:
            for answer in ask:
                answers.append(answer)
                progress.step()
        except ClientError as error:
            if not any(not isinstance(answer, Exception) for answer in answers):
                raise
            lost = len(paths) - len(answers)
            return answers + [error] * lost, exit_status(error)
    failed = any(isinstance(answer, Exception) for answer in answers)
    return answers, SOME_FAILED if failed else 0


def format_status(statuses, output: str) -> str:
    """The states of a model's versions as a table, JSON or CSV."""
    if output == "json":
        return json.dumps([dataclasses.asdict(one) for one in statuses], indent=2) + "\n"
    rows = [["version", "state", "error"]]
    rows += [[str(one.version), one.state, one.error] for one in statuses]
    if output == "table":
        return format_table(rows) + "\n"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def ask(options) -> int:
    """Does what the command line says; returns the exit status.

    Raises:
      ClientError: when nothing could be done.
    """
    from serving.client import GaterNetClient

    paths = expand(options.pictures)
    with GaterNetClient(
        **client_arguments(options),
        in_flight=options.in_flight,
        batch_size=options.batch_size,
        max_pixels=options.max_pixels,
        resize=options.resize,
    ) as client:
        if options.wait_ready is not None:
            client.wait_ready(timeout=options.wait_ready)
        if options.status:
            sys.stdout.write(format_status(client.statuses(), options.output))
            return 0
        answers, status = classify(client, paths, options)
    sys.stdout.write(FORMATS[options.output](paths, answers, options))
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, Exception):
            tell("serving.client", f"{path}: {answer}")
    return status


def tell(program: str, error: object) -> None:
    """Prints an error in one line on the standard error."""
    print(f"{program}: error: {printable(str(error))}", file=sys.stderr)


def end_of(program: str, command: Callable[[], int]) -> int:
    """Runs a command, and tells what keeps it from its end; returns the exit status."""
    # gRPC logs what a connection goes through; the error says what matters of it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        status = command()
        sys.stdout.flush()
        return status
    except ClientError as error:
        tell(program, error)
        return exit_status(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        # Whoever read our output, such as head, has seen enough, or the disk is full.
        if not isinstance(error, BrokenPipeError):
            tell(
                program,
                f"input must be readable and output writable, and is not ({error.strerror})",
            )
        # Python must not try it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = parse_arguments(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name need not be text; it is printed as it is.
        sys.stdout.reconfigure(errors="surrogateescape")
    return end_of("serving.client", lambda: ask(options))
