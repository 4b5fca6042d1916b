"""The command: python -m serving.client PICTURE..."""

import argparse
import csv
import dataclasses
import json
import signal
import sys
from collections.abc import Sequence

from serving.client import ClientError, GaterNetClient
from serving.client.command_line import (
    OK,
    SOME_FAILED,
    USAGE,
    add_server_flags,
    exit_status,
    find_pictures,
    format_gates,
    format_table,
    open_client,
    positive,
    print_error,
)

PROGRAM = "serving.client"
DESCRIPTION = """\
Classifies pictures on a model server: TensorFlow Serving, or python -m serving.server.

PICTURE is a JPEG, PNG, GIF, BMP or WebP file, a directory, which stands for all such files below
it, or "-" for a list of them on the standard input, one a line. EXIF orientation is ignored, as in
training."""
EPILOG = """\
exit status:
  0  every picture was classified
  1  the server answered with another error, or the model was not made by export.main
  2  wrong usage
  3  some pictures were not classified; the others were
  4  the server cannot be reached, has no room, or did not answer in time
  5  the server has no such model, version or label
  130  interrupted (Ctrl-C)"""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.client",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="what to classify")
    parser.add_argument("--gates", action="store_true", help="also ask which gates are on")
    parser.add_argument(
        "--top", type=positive(int), default=1, help="classes to show (%(default)s)"
    )
    parser.add_argument("--output", choices=["table", "json", "csv"], default="table")
    parser.add_argument(
        "--status", action="store_true", help="print the states of the model's versions instead"
    )
    parser.add_argument(
        "--wait_ready",
        type=positive(float),
        metavar="SECONDS",
        help="first wait so long for the model to answer",
    )
    add_server_flags(parser)
    requests = parser.add_argument_group("requests")
    requests.add_argument(
        "--batch_size", type=positive(int), default=32, help="pictures in a request (%(default)s)"
    )
    requests.add_argument(
        "--in_flight", type=positive(int), default=4, help="requests at once (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.pictures and options.status:
        parser.error("--status takes no pictures")
    if not options.pictures and not options.status and options.wait_ready is None:
        parser.error("the following arguments are required: PICTURE (or --status, --wait_ready)")
    return options


def classify(client: GaterNetClient, paths: Sequence[str], options) -> tuple[list, int]:
    """Returns the answers, or the errors in their places, and the exit status."""
    answers: list = []
    try:
        for answer in client.stream(paths, options.top, options.gates):
            answers.append(answer)
            if sys.stderr.isatty():
                print(f"{len(answers)} of {len(paths)}", end="\r", file=sys.stderr)
    except ClientError as error:
        if not answers:
            raise
        # What was answered before the server failed is worth printing.
        return answers + [error] * (len(paths) - len(answers)), exit_status(error)
    failed = any(isinstance(answer, ClientError) for answer in answers)
    return answers, SOME_FAILED if failed else OK


def print_table(paths, answers, options) -> None:
    """Prints the answers for a person, without those that failed."""
    rows = [["picture", "class", "probability"]]
    rows[0] += ["gates on"] * options.gates + ["then"] * (options.top > 1)
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, ClientError):
            continue
        row = [path, answer.label, f"{answer.probability:.4f}"]
        if options.gates:
            row.append(format_gates(answer))
        if options.top > 1:
            row.append(", ".join(f"{label} {share:.4f}" for label, share in answer.top[1:]))
        rows.append(row)
    if len(rows) > 1:
        print(format_table(rows), end="")


def print_json(paths, answers, options) -> None:
    """Prints a list with an object for each picture, in order."""
    documents = []
    for path, answer in zip(paths, answers, strict=True):
        document = {"picture": path}
        if isinstance(answer, ClientError):
            document["error"] = str(answer)
        else:
            document |= dataclasses.asdict(answer)
            document["top"] = [
                {"label": label, "probability": share} for label, share in answer.top
            ]
            if options.top == 1:
                del document["top"]
            if not options.gates:
                del document["gates"]
        documents.append(document)
    print(json.dumps(documents, indent=2))


def print_csv(paths, answers, options) -> None:
    """Prints a row for each picture, in order, with the error in the last column."""
    columns = ["picture", "label", "class_id", "probability", "version"]
    columns += ["gates_on", "gates"] * options.gates
    for place in range(2, options.top + 1):
        columns += [f"label_{place}", f"probability_{place}"]
    columns.append("error")
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for path, answer in zip(paths, answers, strict=True):
        row = {"picture": path}
        if isinstance(answer, ClientError):
            row["error"] = str(answer)
        else:
            row |= dataclasses.asdict(answer)
            row["gates_on"] = sum(answer.gates or ())
            row["gates"] = "".join(map(str, answer.gates or ()))
            for place, (label, share) in enumerate(answer.top, start=1):
                row |= {f"label_{place}": label, f"probability_{place}": share}
        writer.writerow(row)


PRINTERS = {"table": print_table, "json": print_json, "csv": print_csv}


def print_status(states: dict[int, str], output: str) -> None:
    """Prints the states of a model's versions."""
    entries = []
    for version, text in states.items():
        state, _, error = text.partition(": ")
        entries.append({"version": version, "state": state, "error": error})
    rows = [["version", "state", "error"], *(map(str, entry.values()) for entry in entries)]
    if output == "json":
        print(json.dumps(entries, indent=2))
    elif output == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    else:
        print(format_table(rows), end="")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = parse_arguments(arguments)
    paths = find_pictures(options.pictures)
    if options.pictures and not paths:
        print_error(PROGRAM, "the standard input must name a picture per line, and is empty")
        return USAGE
    try:
        client = open_client(options, batch_size=options.batch_size, in_flight=options.in_flight)
    except (OSError, ValueError) as error:
        print_error(PROGRAM, error)
        return USAGE
    try:
        with client:
            if options.wait_ready is not None:
                client.wait_ready(options.wait_ready)
            if options.status:
                print_status(client.status(), options.output)
                return OK
            answers, status = classify(client, paths, options)
    except ClientError as error:
        print_error(PROGRAM, error)
        return exit_status(error)
    PRINTERS[options.output](paths, answers, options)
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, ClientError):
            print_error(PROGRAM, f"{path}: {answer}")
    return status


if __name__ == "__main__":
    from gaternet_tf.command import run_command

    # Ctrl-C ends the process at once, also while gRPC waits.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(run_command(PROGRAM, [], main, tensorflow=False, prints_only=True))
