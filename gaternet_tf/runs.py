"""The run directory: training writes it, and everything else reads it.

config.json     every resolved setting, the dataset, versions, git commit   (written first)
checkpoints/    what a stopped run resumes from
metrics.jsonl   one line an epoch
tensorboard/    the same for TensorBoard
model.keras     the final weights
pictures/       a few test pictures, CLASS/NUMBER.png: for warm-up, demos and first requests
result.json     test accuracy and gate statistics                           (written last)
"""

import contextlib
import fcntl
import json
import os
import pathlib
import platform
import subprocess
import tempfile
from collections.abc import Iterator

from gaternet_tf.data import Preprocessing
from gaternet_tf.documents import NUMBER, OPTIONAL_TEXT, read_json, write_json, write_text
from gaternet_tf.errors import UserError

FORMAT = "gaternet-run-1"
LOCK = ".lock"
"""Held by the process that trains, see `RunDirectory.locked`."""
BEGUN = {"config": {"epochs": int}, "dataset": dict, "preprocessing": dict}
"""What config.json of any run has at least, so that it can be resumed."""
PARTS = {
    "config": {
        "backbone": str,
        "gater": str,
        "width": int,
        "attention": str,
        "gated_convs": str,
        "head_batch_norm": bool,
        "sparsity": NUMBER,
        "dataset": str,
        "seed": int,
    },
    "dataset": {"name": str, "version": str, "test_split": str, "labels": [str]},
    "preprocessing": dict,
    "versions": {"python": str, "tensorflow": str, "keras": str},
    "git_commit": OPTIONAL_TEXT,
}
"""What config.json of a finished run has at least; other rooms count on it."""
RESULT = {"parameters": int}
MEASURED = {"test_accuracy": NUMBER, "test_loss": NUMBER, "macs": NUMBER, "macs_on": NUMBER}
OF_GATES = {"gates": int, "gate_rate": NUMBER, "gates_input_dependent": int}
"""What result.json has: of every run, of one that was not converted, and of one with gates."""


class RunDirectory:
    """A directory with one training run in it. `open_run` and `prepare_run` make these."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.config_file = self.path / "config.json"
        self.checkpoints = self.path / "checkpoints"
        self.metrics_file = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.model_file = self.path / "model.keras"
        self.pictures = self.path / "pictures"
        self.result_file = self.path / "result.json"

    @property
    def finished(self) -> bool:
        """Whether training ran to its end: the result is the last thing that it writes."""
        return self.result_file.exists()

    @property
    def document(self) -> dict:
        """All of config.json: `format`, `config`, `dataset`, `preprocessing`, `versions`, ..."""
        return read_json(self.config_file)

    @property
    def config(self) -> dict:
        """The settings of the run."""
        return self.document["config"]

    @property
    def preprocessing(self) -> Preprocessing:
        """What turns a picture into this run's input."""
        return Preprocessing.from_dict(self.document["preprocessing"])

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the logits."""
        return self.document["dataset"]["labels"]

    @property
    def result(self) -> dict:
        """What result.json holds."""
        return read_json(self.result_file)

    def metrics(self) -> Iterator[dict]:
        """The epochs' records so far; not a last one that is cut off, as a full disk leaves it."""
        lines = self.metrics_file.read_text().splitlines() if self.metrics_file.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                if number < len(lines):
                    raise UserError(
                        f"line {number} of {self.metrics_file} must be a JSON object, and is not; "
                        "bring the file back from a copy, or remove the line"
                    ) from error

    def append_metrics(self, record: dict) -> None:
        """Adds an epoch's record."""
        try:
            with self.metrics_file.open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(
                f"an epoch's record must be written to {self.metrics_file}, and could not be "
                f"({error.strerror}); make room, then the same command resumes from the last good "
                "checkpoint"
            ) from error

    def truncate_metrics(self, epochs: int) -> None:
        """Keeps the records of the first `epochs` epochs, the ones a checkpoint vouches for."""
        kept = [record for record in self.metrics() if record["epoch"] <= epochs]
        write_text(self.metrics_file, "".join(json.dumps(record) + "\n" for record in kept))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training here as long as the block runs; makes the directory.

        The lock goes with the process that holds it. A file system without locks gives none.

        Raises:
          UserError: when another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / LOCK
        with contextlib.ExitStack() as stack:
            while True:
                file = stack.enter_context(lock.open("a"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise UserError(
                        f"--workdir must not be in use, and another process is training in "
                        f"'{self.path}'; wait for its end, or choose another"
                    ) from error
                except OSError:
                    pass
                # Whoever held it before may have removed the file after it was opened here.
                if os.path.exists(lock) and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    break
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)

    def write_document(
        self, config: dict, dataset: dict, preprocessing: Preprocessing, replicas: int = 1
    ) -> None:
        """Makes the directory, if it is new, and writes config.json, which makes it a run."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(
            self.config_file,
            {
                "format": FORMAT,
                "config": config,
                "dataset": dataset,
                "preprocessing": preprocessing.to_dict(),
                "replicas": replicas,
                "versions": package_versions(),
                "git_commit": git_commit(),
            },
        )

    def write_result(self, result: dict) -> None:
        """Writes result.json, which marks the run as finished."""
        write_json(self.result_file, result)

    def load_model(self):
        """The trained Keras model, not compiled.

        Raises:
          UserError: when its file is missing or damaged.
        """
        import keras

        try:
            return keras.models.load_model(self.model_file, compile=False)
        except (OSError, ValueError, KeyError) as error:
            state = "cannot be read" if self.model_file.exists() else "is not there"
            raise UserError(
                f"the weights of a finished run must be in '{self.model_file}', which {state} "
                f"({str(error).splitlines()[0]}); bring it back from a copy, or train again"
            ) from error


def prepare_run(path: str | os.PathLike, config: dict) -> RunDirectory:
    """Checks that `path` can take a run: new, empty, or an unfinished run of the same `config`.

    Nothing is left there yet; `RunDirectory.write_document` makes the directory.

    Raises:
      UserError: when something else is there, the run is finished, was started with other
        settings, or nothing can be written there.
    """
    run = RunDirectory(path)
    if os.path.exists(run.config_file):
        _require_same_run(run, config)
        require_writable(path, "--workdir")
    else:
        require_place(path, "--workdir")
    return run


def require_place(path: str | os.PathLike, flag: str) -> None:
    """Raises `UserError`, naming `flag`, unless `path` is new or empty and can be written.

    What a run that was killed while it began has left there, its lock, does not count.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        raise UserError(f"{flag} must be a directory, and '{path}' is a file; choose another")
    if os.path.isdir(path) and (names := sorted(set(os.listdir(path)) - {LOCK})):
        raise UserError(
            f"{flag} must be new or empty, and '{path}' holds other files ({names[0]}"
            f"{', ...' if len(names) > 1 else ''}); choose another"
        )
    require_writable(path, flag)


def require_outside_versions(path: str | os.PathLike, flag: str) -> None:
    """Raises `UserError`, naming `flag`, if `path` is a SavedModel's directory or lies in one."""
    real = pathlib.Path(os.path.realpath(path))
    for directory in (real, *real.parents):
        if os.path.lexists(directory / "saved_model.pb"):
            raise UserError(
                f"{flag} must not lie in an exported version, which stays as it was published, and "
                f"'{path}' does ('{directory}' has a saved_model.pb); choose another"
            )


def require_writable(path: str | os.PathLike, flag: str) -> None:
    """Raises `UserError`, naming `flag`, unless `path` is or can become a directory to write to.

    It must be writable, and no part of an exported version.
    """
    require_outside_versions(path, flag)
    try:
        _try_writing(pathlib.Path(path))
    except OSError as error:
        raise UserError(
            f"{flag} must be a directory that can be written, and '{path}' cannot "
            f"({error.strerror}); choose another or change its permissions"
        ) from error


def _try_writing(directory):
    # os.path's functions say no where a name is too long, pathlib's raise.
    missing = [path for path in (directory, *directory.parents) if not os.path.exists(path)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    finally:
        for path in missing:
            if os.path.isdir(path):
                path.rmdir()


def open_run(path: str | os.PathLike) -> RunDirectory:
    """Opens a finished run for reading.

    Raises:
      UserError: when there is no run at `path`, it did not finish, or its documents are damaged.
    """
    run = RunDirectory(path)
    if not run.path.is_dir():
        raise UserError(
            f"--workdir must be a finished run's directory, and there is no directory '{path}'; "
            "train one with python -m train.main --workdir=..."
        )
    _require_run(run)
    if not run.finished:
        with _as_written(run.config_file, "begun run"):
            read_json(run.config_file, BEGUN)
        epochs = len(list(run.metrics()))
        raise UserError(
            f"--workdir must be a finished run, and '{path}' stopped after {epochs} of "
            f"{run.config['epochs']} epochs without a result.json; finish it by the command that "
            "started it, which resumes it"
        )
    _require_documents(run)
    return run


def _require_documents(run):
    """Whoever opens a finished run may rely on its documents."""
    with _as_written(run.config_file):
        document = read_json(run.config_file, PARTS)
        Preprocessing.from_dict(document["preprocessing"])
    with _as_written(run.result_file):
        result = read_json(run.result_file, RESULT)
        if "converted_from" not in result:
            gated = document["config"]["gater"] != "none"
            read_json(run.result_file, MEASURED | (OF_GATES if gated else {}))


@contextlib.contextmanager
def _as_written(file, kind="finished run"):
    """Turns what is raised for a damaged document of a run into a `UserError`."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"'{file}' of a {kind} must be as train.main wrote it, and is not ({error}); bring it "
            "back from a copy, or train again"
        ) from error


def is_run(path: str | os.PathLike) -> bool:
    """Whether a directory holds a run, finished or not, of this or an earlier format."""
    return _format_of(RunDirectory(path)).startswith(FORMAT.rpartition("-")[0])


def _format_of(run):
    try:
        return read_json(run.config_file, {"format": str})["format"]
    except (OSError, ValueError):
        return ""


def _require_run(run):
    if _format_of(run) != FORMAT:
        raise UserError(
            f"--workdir must be a run directory with a config.json of format {FORMAT}, and "
            f"'{run.path}' is not one; give the directory that train.main wrote"
        )


def _require_same_run(run, config):
    _require_run(run)
    if run.finished:
        raise UserError(
            f"--workdir must be new or a run to resume, and the run in '{run.path}' is finished; "
            "choose another --workdir"
        )
    with _as_written(run.config_file, "begun run"):
        old = read_json(run.config_file, BEGUN)["config"]
    differing = [key for key in config if config[key] != old.get(key)]
    if differing:
        changes = ", ".join(f"--{key}: {old.get(key)} then, {config[key]} now" for key in differing)
        raise UserError(
            f"a run is resumed with the settings that it began with, and those of '{run.path}' "
            f"differ ({changes}); give the old ones or choose another --workdir"
        )


def package_versions() -> dict:
    """Versions of Python and of the packages that decide what a run computes."""
    import keras
    import numpy
    import tensorflow as tf
    import tensorflow_datasets as tfds

    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "tensorflow_datasets": tfds.__version__,
        "numpy": numpy.__version__,
    }


def git_commit() -> str | None:
    """Commit of this code, with "-dirty" if files differ from it; None outside a git checkout."""
    root = pathlib.Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
