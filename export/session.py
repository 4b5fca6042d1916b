"""Runs exported versions as a model server does: through TensorFlow's v1 Session, in a new process.

Like TensorFlow Serving's loader, `tf.compat.v1.saved_model.load` takes the graph with exactly the
tag {serve}, restores its variables and runs its init op, and fails where the server fails.
`tf.saved_model.load` does not: it answers even where a server cannot find the variables. The
process imports none of the project's code, so an export that needed any would fail too.
"""

import dataclasses
import functools
import pathlib
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

TIMEOUT = 600
"""Seconds that the process may take."""


@dataclasses.dataclass
class Request:
    """A call of a version's signature; `inputs` are arrays by input name, strings as objects."""

    directory: pathlib.Path
    signature: str
    inputs: Mapping[str, Any]


@dataclasses.dataclass
class Answer:
    """Arrays by output name or, where the call failed, the error's text; seconds of each round."""

    outputs: dict[str, np.ndarray]
    error: str
    seconds: list[float]


def run_requests(
    requests: Sequence[Request],
    warm_up: int = 0,
    rounds: int = 0,
    threads: tuple[int, int] = (0, 0),
) -> list[Answer]:
    """Runs requests one after the other, in one process, and returns their answers.

    Args:
      requests: of one version or of several.
      warm_up: how often all of them are run again before they are timed.
      rounds: how often all of them are run again, in turns, and timed.
      threads: sizes of the intra-op and the inter-op thread pool; 0 is TensorFlow's choice.

    Raises:
      RuntimeError: when a version cannot be loaded, or the process fails or takes ten minutes.
    """
    calls = [(str(each.directory), each.signature, dict(each.inputs)) for each in requests]
    with tempfile.TemporaryDirectory() as scratch:
        file = pathlib.Path(scratch) / "job"
        file.write_bytes(pickle.dumps((calls, warm_up, rounds, threads)))
        try:
            # -P: the modules beside this file must not be taken for others of the same name.
            done = subprocess.run(
                [sys.executable, "-P", __file__, str(file)],
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"no answer within {TIMEOUT} s") from error
        if done.returncode:
            raise RuntimeError(f"exit status {done.returncode}: {done.stderr[-500:]}")
        answers = pickle.loads(file.read_bytes())
    if isinstance(answers, str):
        raise RuntimeError(answers)
    return [Answer(*answer) for answer in answers]


def main(file: pathlib.Path) -> None:
    """Runs the job in a file and replaces the file with the answers, or the loading error."""
    calls, warm_up, rounds, threads = pickle.loads(file.read_bytes())
    try:
        directories = {directory for directory, _, _ in calls}
        versions = {directory: _Version(directory, threads) for directory in directories}
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        file.write_bytes(pickle.dumps(_text(error)))
        return
    answers = []
    timed = []
    for directory, signature, inputs in calls:
        run = functools.partial(versions[directory].run, signature, inputs)
        seconds: list[float] = []
        try:
            answers.append((run(), "", seconds))
            timed.append((run, seconds))
        except (ValueError, TypeError, tf.errors.OpError) as error:
            answers.append(({}, _text(error), seconds))
    for number in range(warm_up + rounds):
        for run, seconds in timed:
            started = time.perf_counter()
            run()
            if number >= warm_up:
                seconds.append(time.perf_counter() - started)
    file.write_bytes(pickle.dumps(answers))


class _Version:
    """A version loaded into a session of its own."""

    def __init__(self, directory, threads):
        intra, inter = threads
        # On the CPU: another process may have taken all of a GPU's memory.
        config = tf.compat.v1.ConfigProto(
            device_count={"GPU": 0},
            intra_op_parallelism_threads=intra,
            inter_op_parallelism_threads=inter,
        )
        self.session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        with self.session.graph.as_default():
            loaded = tf.compat.v1.saved_model.load(self.session, ["serve"], directory)
        self.signatures = loaded.signature_def

    def run(self, name, inputs):
        """Runs a signature; like a server, it does not convert the inputs' types."""
        if name not in self.signatures:
            raise ValueError(f"there is no signature '{name}'")
        signature = self.signatures[name]
        required = {key: tf.as_dtype(info.dtype).name for key, info in signature.inputs.items()}
        types = {key: tf.as_dtype(value.dtype).name for key, value in inputs.items()}
        if types != required:
            raise ValueError(f"the inputs must be {required}, not {types}")
        return self.session.run(
            {key: info.name for key, info in signature.outputs.items()},
            {info.name: inputs[key] for key, info in signature.inputs.items()},
        )


def _text(error):
    return " ".join(str(error).partition("Original stack trace")[0].split())


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
