"""What several test files call."""

import dataclasses
import os
import pathlib
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


def run_module(module, *arguments, cwd, timeout=300) -> Finished:
    """Runs `python -m module arguments` in another directory, as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def small_config(data_dir, **changes):
    """Settings of the smallest run that exercises everything."""
    from gaternet_tf.training import TrainingConfig

    settings = {
        "backbone": "resnet8",
        "gater": "resnet8",
        "dataset": "digits",
        "data_dir": data_dir,
        "epochs": 1,
        "batch_size": 64,
    }
    return TrainingConfig(**(settings | changes))
