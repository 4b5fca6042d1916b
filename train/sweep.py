"""Trains every combination of settings: python -m train.sweep --seeds=0,1,2 --sparsity=0,0.1,1

Takes the flags of train.main (its --help lists them), of which --experiment and settings may have
several values, separated by commas. Runs get the directories that train.main gives them. What is
finished stays, what was stopped is resumed; at the end the table of all is printed.
"""

import copy
import dataclasses
import fnmatch
import itertools
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from absl import app, flags

from gaternet_tf.command import run, run_command
from gaternet_tf.errors import StoppedError, UserError
from train import main as train_main
from train.config import ENVIRONMENT, GATE_SETTINGS, TrainingConfig
from train.experiments import EXPERIMENTS

FLAGS = flags.FLAGS

flags.DEFINE_integer(
    "jobs", 1, "Runs at a time; of several, each one's output goes to runs/logs/NAME.log.", 1
)
SWEPT = {"experiment", *(field.name for field in dataclasses.fields(TrainingConfig))} - {
    *ENVIRONMENT
}
"""Flags that may have several values."""
LOGS = "runs/logs"
EXAMPLES = (
    "python -m train.sweep --dataset=digits --backbone=resnet8 --gater=none,resnet8 --seeds=0,1",
    "python -m train.sweep --experiment='fashion-resnet20-*' --seeds=0,1,2",
)


def main(argv):
    """Trains what is missing of the combinations; returns the exit status."""
    work = lambda: sweep(combinations(argv))  # noqa: E731
    return run_command("train.sweep", argv[:1], work, tensorflow=False)


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
        chosen = values.split(",")
        if name == "experiment":
            chosen = [n for value in chosen for n in fnmatch.filter(EXPERIMENTS, value) or [value]]
        choices.append([f"--{name}={value}" for value in chosen] if several else [argument])
    return map(list, itertools.product(*choices))


def combinations(argv: Sequence[str]) -> dict[str, list[str]]:
    """Returns the flags of `train.main` for each run, by its directory.

    Without a gater the settings of the gates are left out, and runs that differ in nothing else are
    one.

    Raises:
      UserError: for flags or values that there are not, and two runs of one directory.
    """
    own = [flag.name for flag in FLAGS.get_key_flags_for_module(train_main)]
    runs: dict[str, list[str]] = {}
    for arguments in expand(argv):
        values = copy.deepcopy(FLAGS)
        try:
            extra = values(arguments)[1:]
        except flags.Error as error:
            raise UserError(str(error)) from error
        if extra or values["workdir"].present:
            raise UserError(
                "train.sweep takes the flags of train.main, except for --workdir, since it names "
                f"the runs, got '{extra[0] if extra else '--workdir'}'"
            )
        config, workdir = train_main.resolve(values)
        unused = GATE_SETTINGS if config.gater == "none" else ()
        given = [
            values[name].serialize() for name in own if values[name].present and name not in unused
        ]
        if runs.setdefault(workdir, given) != given:
            raise UserError(
                f"every run must have a directory of its own, and {' '.join(runs[workdir])} and "
                f"{' '.join(given)} would both have '{workdir}'; sweep over one of them"
            )
    return runs


def sweep(runs: dict[str, list[str]]) -> None:
    """Trains the runs that are not finished, `--jobs` at a time, and prints the table of all.

    Raises:
      UserError: naming the runs that failed; after a signal, when those that were running are
        saved.
    """
    from gaternet_tf.runs import RunDirectory, require_writable
    from train.comparison import as_markdown, compare

    require_writable("runs", "the directory of the runs")
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: stopping.set())
    waiting = [workdir for workdir in runs if not RunDirectory(workdir).finished]
    total = len(waiting)
    running: dict[str, subprocess.Popen] = {}
    print(f"{len(runs)} runs, {len(runs) - total} of them finished", flush=True)
    while (waiting or running) and not stopping.is_set():
        while waiting and len(running) < FLAGS.jobs:
            workdir = waiting.pop(0)
            print(f"[{total - len(waiting)}/{total}] {workdir}", flush=True)
            running[workdir] = _start(runs[workdir], workdir)
        running = {workdir: each for workdir, each in running.items() if each.poll() is None}
        stopping.wait(0.2)
    for process in running.values():
        process.terminate()
    for process in running.values():
        process.wait()
    if stopping.is_set():
        raise StoppedError("stopped; the same command goes on")
    finished = [workdir for workdir in runs if RunDirectory(workdir).finished]
    if finished:
        print(as_markdown(compare(finished)))
    if failed := [workdir for workdir in runs if workdir not in finished]:
        output = f"; their output is in {LOGS}" if FLAGS.jobs > 1 else ""
        raise UserError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}{output}")


def _start(arguments, workdir):
    command = [sys.executable, "-m", "train.main", *arguments, f"--workdir={workdir}"]
    # In a group of its own a run does not get the terminal's Ctrl-C, but SIGTERM, which saves it.
    if FLAGS.jobs == 1:
        return subprocess.Popen(command, process_group=0)
    path = pathlib.Path(LOGS) / f"{pathlib.Path(workdir).name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as log:
        return subprocess.Popen(command, process_group=0, stdout=log, stderr=subprocess.STDOUT)


if __name__ == "__main__":
    run(main, examples=EXAMPLES, flags_parser=parse)
