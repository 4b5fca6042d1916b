"""What several test files call."""

import contextlib
import dataclasses
import os
import pathlib
import struct
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass
class Finished:
    """A command that ended."""

    status: int
    out: str
    err: str

    def assert_refused(self, *words):
        """It ended with status 1 or 2, without a traceback, and said each of `words`."""
        assert self.status in (1, 2), (self.status, self.out, self.err)
        assert "Traceback" not in self.err, self.err
        for word in words:
            assert word in self.err + self.out, (word, self.out, self.err)


def run_module(module, *arguments, cwd) -> Finished:
    """Runs `python -m module arguments` in another directory, as a user would."""
    return run_python("-m", module, *arguments, cwd=cwd)


def run_python(*arguments, cwd) -> Finished:
    """Runs `python arguments` in another directory, where it finds our modules."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def help_without_tensorflow(module, cwd):
    """What `--help` of a command prints where TensorFlow cannot be imported."""
    program = f"""
import runpy, sys
sys.modules["tensorflow"] = None
sys.argv = [{module!r}, "--help"]
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
    done = run_python("-c", program, cwd=cwd)
    assert "Traceback" not in done.err, done.err
    return done.out


@contextlib.contextmanager
def running(module, *arguments, cwd):
    """`python -m module arguments` as a process to talk with; it is killed if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def small_config(data_dir, **changes):
    """Settings of the smallest run that exercises everything."""
    from train.loop import TrainingConfig

    settings = {
        "backbone": "resnet8",
        "gater": "resnet8",
        "dataset": "digits",
        "data_dir": data_dir,
        "epochs": 1,
        "batch_size": 64,
    }
    return TrainingConfig(**(settings | changes))


def plant_run(path, result=None, dataset=None, **config):
    """A finished run that nobody trained: its two documents, as `train` writes them.

    Args:
      path: the run directory.
      result: what result.json has besides the least of a run with or without gates.
      dataset: the dataset's name, if not that of `config`.
      **config: settings of `TrainingConfig`.
    """
    from gaternet_tf.data import Preprocessing
    from gaternet_tf.runs import RunDirectory
    from train.loop import TrainingConfig

    settings = dataclasses.asdict(TrainingConfig(**config))
    facts = {"name": dataset or settings["dataset"], "version": "1.0.0", "test_split": "test"}
    least = {"parameters": 1000, "test_accuracy": 0.9, "test_loss": 0.3, "macs": 2000}
    least["macs_on"] = 1500.0
    if settings["gater"] != "none":
        least |= {"gates": 112, "gate_rate": 0.5, "gates_input_dependent": 20}
    run = RunDirectory(path)
    preprocessing = Preprocessing(8, 8, 1, (0.0,), (1.0,))
    run.write_document(settings, {**facts, "labels": ["a", "b"]}, preprocessing)
    run.write_result(least | (result or {}))
    return run


def palette_bmp(numbers, palette):
    """A BMP with 8 bits a pixel: uint8 [height, width] numbers of the colours in a palette.

    `palette` is uint8 [up to 256, 3], RGB.
    """
    height, width = numbers.shape
    colors = b"".join(bytes((*color[::-1].tolist(), 0)) for color in palette)
    rows = b"".join(row.tobytes().ljust((width + 3) // 4 * 4, b"\0") for row in numbers[::-1])
    start = 54 + len(colors)
    head = struct.pack("<2sIII", b"BM", start + len(rows), 0, start)
    facts = (40, width, height, 1, 8, 0, len(rows), 0, 0, len(palette), 0)
    return head + struct.pack("<IiiHHIIiiII", *facts) + colors + rows
