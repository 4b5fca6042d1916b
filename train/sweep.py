"""Trains every combination of settings: python -m train.sweep --seeds=0,1,2 --sparsity=0,0.1,1

Takes the flags of train.main, of which --experiment and settings may have several values, separated
by commas. Runs that are finished stay, stopped ones resume; at the end it prints their table.
"""

import copy
import dataclasses
import itertools
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from absl import app, flags

import train.main
from train.command import run_command
from train.config import ENVIRONMENT, TrainingConfig

FLAGS = flags.FLAGS

flags.DEFINE_string("output_dir", "runs/sweep", "Directory for the runs, which get their names.")
flags.DEFINE_integer(
    "jobs", 1, "Runs at a time; of several, each one's output goes to NAME.log beside it.", 1
)

SETTINGS = [field.name for field in dataclasses.fields(TrainingConfig)]
SWEPT = ["experiment", *(name for name in SETTINGS if name not in ENVIRONMENT)]
"""Flags that may have several values; runs are named by them."""


def main(argv):
    """Trains what is missing of the combinations; returns the exit status."""
    return run_command("train.sweep", argv[:1], lambda: sweep(combinations(argv)))


def parse(argv: Sequence[str]) -> Sequence[str]:
    """Parses the command line with the first value of each flag, and returns it as it is."""
    app.parse_flags_with_usage(next(expand(argv)))
    return argv


def expand(argv: Sequence[str]) -> Iterator[list[str]]:
    """Yields the command line once for each combination of values."""
    choices = []
    for argument in argv:
        name, equals, values = argument.lstrip("-").partition("=")
        name = "seed" if name == "seeds" else name
        several = equals and argument.startswith("-") and name in SWEPT
        choices.append(
            [f"--{name}={value}" for value in values.split(",")] if several else [argument]
        )
    return map(list, itertools.product(*choices))


def combinations(argv: Sequence[str]) -> dict[str, list[str]]:
    """Returns the flags of `train.main` for each run, by its name.

    A name has every setting that the command line gives, so it stays when values are added. Without
    a gater, the settings of the gates are left out, and so are runs that differ in nothing else.

    Raises:
      UserError: for flags or values that there are not.
    """
    from gaternet_tf.errors import UserError
    from train.comparison import GATE_SETTINGS
    from train.experiments import find_experiment

    own = [flag.name for flag in FLAGS.get_key_flags_for_module(train.main)]
    runs = {}
    for arguments in expand(argv):
        values = copy.deepcopy(FLAGS)
        try:
            extra = values(arguments)[1:]
        except flags.Error as error:
            raise UserError(str(error)) from error
        if extra or values["workdir"].present:
            raise UserError(
                "train.sweep takes the flags of train.main, except for --workdir, since it names "
                f"the runs, got '{extra[0] if extra else '--workdir'}'; see --output_dir"
            )
        named = find_experiment(values.experiment).settings if values.experiment else {}
        gater = values.gater if values["gater"].present else named.get("gater", values.gater)
        unused = GATE_SETTINGS if gater == "none" else ()
        given = [name for name in own if values[name].present and name not in unused]
        parts = [
            f"{name}={quote(str(values[name].value), safe='')}"
            for name in (*SWEPT, "smoke")
            if name in given or name == "seed"
        ]
        runs[",".join(parts)] = [values[name].serialize() for name in given]
    return runs


def sweep(runs: dict[str, list[str]]) -> None:
    """Trains the runs that are not finished, `--jobs` at a time, and prints the table of all.

    Raises:
      UserError: naming the runs that failed; after SIGINT, SIGTERM and SIGHUP, when those that
        were running are saved.
    """
    from gaternet_tf.errors import UserError
    from gaternet_tf.runs import RunDirectory, require_writable
    from train.comparison import as_markdown, compare

    directory = pathlib.Path(FLAGS.output_dir)
    require_writable(directory, "--output_dir")
    directory.mkdir(parents=True, exist_ok=True)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: stopping.set())
    waiting = [name for name in runs if not RunDirectory(directory / name).finished]
    total = len(waiting)
    running: dict[str, subprocess.Popen] = {}
    print(f"{len(runs)} runs, {len(runs) - total} of them finished, in {directory}", flush=True)
    while (waiting or running) and not stopping.is_set():
        while waiting and len(running) < FLAGS.jobs:
            name = waiting.pop(0)
            print(f"[{total - len(waiting)}/{total}] {name}", flush=True)
            running[name] = _start(runs[name], directory / name)
        running = {name: process for name, process in running.items() if process.poll() is None}
        stopping.wait(0.2)
    for process in running.values():
        process.terminate()
    for process in running.values():
        process.wait()
    if stopping.is_set():
        raise UserError("stopped; the same command goes on")
    finished = [name for name in runs if RunDirectory(directory / name).finished]
    if finished:
        print(as_markdown(compare(directory / name for name in finished)))
    if failed := [name for name in runs if name not in finished]:
        lines = "".join(f"\n{directory / name}" for name in failed)
        raise UserError(f"{len(failed)} of {len(runs)} runs failed:{lines}")


def _start(arguments, workdir):
    command = [sys.executable, "-m", "train.main", *arguments, f"--workdir={workdir}"]
    # In a group of its own a run does not get the terminal's Ctrl-C, but SIGTERM, which saves it.
    if FLAGS.jobs == 1:
        return subprocess.Popen(command, process_group=0)
    with open(f"{workdir}.log", "a") as log:
        return subprocess.Popen(command, process_group=0, stdout=log, stderr=subprocess.STDOUT)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
