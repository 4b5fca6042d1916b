"""Runs exported versions as a model server does: through TensorFlow's v1 Session, in a new process.

Like TensorFlow Serving's loader, `tf.compat.v1.saved_model.load` takes the graph with exactly the
tag {serve}, restores its variables and runs its init op, and fails where the server fails.
`tf.saved_model.load` does not: it answers even where a server cannot find the variables. The
process imports none of the project's code, so an export that needed any would fail too.
"""

import dataclasses
import os
import pathlib
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


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
    environment: Mapping[str, str] | None = None,
) -> list[Answer]:
    """Runs requests one after the other, in one process, and returns their answers.

    Args:
      requests: of one version or of several.
      warm_up: how often all of them are run again before they are timed.
      rounds: how often all of them are run again, in turns, and timed.
      threads: sizes of the intra-op and the inter-op thread pool; 0 is TensorFlow's choice.
      environment: variables of the process beside this one's.

    Raises:
      RuntimeError: when a version cannot be loaded, or the process fails.
    """
    calls = [(str(each.directory), each.signature, dict(each.inputs)) for each in requests]
    # -P: the modules beside this file must not be taken for others of the same name.
    done = subprocess.run(
        [sys.executable, "-P", __file__],
        input=pickle.dumps((calls, warm_up, rounds, threads)),
        capture_output=True,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit status {done.returncode}")
    return [Answer(*answer) for answer in pickle.loads(done.stdout)]


def main() -> None:
    """Runs the calls that standard input holds, and writes their answers to standard output."""
    calls, warm_up, rounds, threads = pickle.load(sys.stdin.buffer)
    try:
        loaded = {path: _load(path, *threads) for path in {path for path, _, _ in calls}}
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        sys.exit(_text(error))
    answers: list[tuple] = []
    for path, signature, inputs in calls:
        try:
            answers.append((_run(loaded[path], signature, inputs), "", []))
        except (ValueError, TypeError, tf.errors.OpError) as error:
            answers.append(({}, _text(error), []))
    for number in range(warm_up + rounds):
        for (path, signature, inputs), (_, _, seconds) in zip(calls, answers, strict=True):
            started = time.perf_counter()
            _run(loaded[path], signature, inputs)
            if number >= warm_up:
                seconds.append(time.perf_counter() - started)
    sys.stdout.buffer.write(pickle.dumps(answers))


def _load(path, intra, inter):
    """Loads a version; returns its session and its signatures."""
    # On the CPU: another process may have taken all of a GPU's memory.
    config = tf.compat.v1.ConfigProto(
        device_count={"GPU": 0},
        intra_op_parallelism_threads=intra,
        inter_op_parallelism_threads=inter,
    )
    session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
    with session.graph.as_default():
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], path)
    # Copies, since the rest of it holds all constants once more.
    signatures = {
        name: type(each).FromString(each.SerializeToString())
        for name, each in loaded.signature_def.items()
    }
    return session, signatures


def _run(version, name, inputs):
    """Runs a signature; like a server, it does not convert the inputs' types."""
    session, signatures = version
    if name not in signatures:
        raise ValueError(f"there is no signature '{name}'")
    signature = signatures[name]
    required = {key: tf.as_dtype(info.dtype).name for key, info in signature.inputs.items()}
    types = {key: tf.as_dtype(value.dtype).name for key, value in inputs.items()}
    if types != required:
        raise ValueError(f"the inputs must be {required}, not {types}")
    return session.run(
        {key: info.name for key, info in signature.outputs.items()},
        {info.name: inputs[key] for key, info in signature.inputs.items()},
    )


def _text(error):
    return " ".join(str(error).partition("Original stack trace")[0].split())


if __name__ == "__main__":
    main()
