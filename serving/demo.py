"""Starts the local server on an export, classifies labelled pictures, and stops the server.

python -m serving.demo --model_base_path=models/gaternet runs/demo/pictures
"""

import argparse
import contextlib
import pathlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

from serving.client import ClientError, GaterNetClient, Prediction
from serving.client.command_line import format_gates, format_table, path, print_error

START_SECONDS = 120
MODEL = "gaternet"


@contextlib.contextmanager
def local_server(model_base_path: str) -> Iterator[str]:
    """Runs serving.server on a free port; yields host:port, and stops it with the block.

    Raises:
      ClientError: when it does not start.
    """
    command = [sys.executable, "-m", "serving.server", "--port=0", f"--model_name={MODEL}"]
    command.append(f"--model_base_path={model_base_path}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(START_SECONDS, process.kill)
        watchdog.start()
        try:
            line = process.stdout.readline() if process.stdout else ""
            watchdog.cancel()
            address = re.search(r" on (\S+:\d+) ", line)
            if address is None:
                raise ClientError("the local server did not start; it says why above")
            print(line, end="", flush=True)
            yield address[1]
        finally:
            watchdog.cancel()
            process.terminate()
            print(process.communicate()[0], end="")


def classify_labelled(target: str, pictures: list[pathlib.Path]) -> bool:
    """Prints a table of pictures CLASS/NAME.png; returns whether all were classified."""
    with GaterNetClient(target, MODEL) as client:
        answers = client.gates(pictures)
    rows = [["picture", "true class", "predicted class", "probability", "gates on"]]
    for picture, answer in zip(pictures, answers, strict=True):
        if isinstance(answer, Prediction):
            cells = [answer.label, f"{answer.probability:.4f}", format_gates(answer)]
        else:
            cells = [f"error: {answer}", "", ""]
        rows.append([str(picture), picture.parent.name, *cells])
    print(format_table(rows), end="")
    return all(isinstance(answer, Prediction) for answer in answers)


def main(arguments=None) -> int:
    """Runs the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serving.demo", description=__doc__)
    parser.add_argument(
        "--model_base_path", type=path, required=True, help="directory with versions below it"
    )
    parser.add_argument("pictures", type=path, help="directory with pictures CLASS/NAME.png")
    options = parser.parse_args(arguments)
    pictures = sorted(pathlib.Path(options.pictures).glob("*/*.png"))
    if not pictures:
        parser.error(f"there must be pictures CLASS/NAME.png in '{options.pictures}', found none")
    try:
        with local_server(options.model_base_path) as target:
            return 0 if classify_labelled(target, pictures) else 1
    except ClientError as error:
        print_error("serving.demo", error)
        return 1


if __name__ == "__main__":
    from gaternet_tf.command import run_command

    sys.exit(run_command("serving.demo", [], main, tensorflow=False))
