"""The run directory: training writes it, and everything else reads it.

config.json     every resolved setting, the dataset, versions, git commit   (written first)
checkpoints/    what a stopped run resumes from
metrics.jsonl   one line per epoch
tensorboard/    the same for TensorBoard
model.keras     the final weights
pictures/       a few test pictures, CLASS/NUMBER.png: for warm-up, demos and first requests
result.json     test accuracy and gate statistics                           (written last)
"""

import contextlib
import fcntl
import importlib
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gaternet_tf.documents import read_json, write_json, write_text
from gaternet_tf.errors import UserError

if TYPE_CHECKING:
    from gaternet_tf.data import Preprocessing

FORMAT = "gaternet-run-2"


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
        """Whether training ran to its end: the result is written last."""
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
    def preprocessing(self) -> "Preprocessing":
        """Size and normalisation of the run's input."""
        from gaternet_tf.data import Preprocessing

        return Preprocessing.from_dict(self.document["preprocessing"])

    @property
    def labels(self) -> list[str]:
        """Class names in the order of the logits."""
        return self.document["dataset"]["labels"]

    @property
    def result(self) -> dict:
        """What result.json holds."""
        return read_json(self.result_file)

    def metrics(self) -> list[dict]:
        """Returns the records of the epochs so far; a last line that was cut off does not count."""
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def append_metrics(self, record: dict) -> None:
        """Adds the record of an epoch."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def truncate_metrics(self, epochs: int) -> None:
        """Keeps the records of the first `epochs` epochs, those that a checkpoint includes."""
        kept = [record for record in self.metrics() if record["epoch"] <= epochs]
        write_text(self.metrics_file, "".join(json.dumps(record) + "\n" for record in kept))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training here during the block; makes the directory.

        Raises:
          UserError: when another process holds the lock, which ends with the process.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        directory = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(directory)
            raise UserError(
                f"--workdir must not be in use, and another process is training in '{self.path}'; "
                "wait for its end, or choose another"
            ) from error
        except OSError:
            pass  # A file system without locks.
        try:
            yield
        finally:
            os.close(directory)

    def write_document(
        self, config: dict, dataset: dict, preprocessing: "Preprocessing", replicas: int = 1
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

    def save_model(self, model) -> None:
        """Writes model.keras, not compiled, whole or not at all."""
        import keras

        beside = self.path / ".model.keras"
        # A compiled model brings its learning rate schedule, which the library alone cannot load.
        keras.Model(model.input, model.output, name=model.name).save(beside)
        os.replace(beside, self.model_file)

    def load_model(self):
        """Returns the trained Keras model, not compiled."""
        import keras

        import gaternet_tf.models  # noqa: F401  Its layers are registered with Keras then.

        return keras.models.load_model(self.model_file, compile=False)


def prepare_run(
    path: str | os.PathLike, config: dict, defaults: dict | None = None
) -> RunDirectory:
    """Checks that `path` is new, empty, or an unfinished run of the same `config`; writes nothing.

    A setting that is newer than the run had its value in `defaults`.

    Raises:
      UserError: when it is none of these, or nothing can be written there.
    """
    run = RunDirectory(path)
    if not run.config_file.exists():
        require_new(path, "--workdir")
        return run
    _require_run(run, "--workdir")
    if run.finished:
        raise UserError(
            f"--workdir must be new or a run to resume, and the run in '{path}' is finished; to "
            f"train on from its weights give --init_from={path} and another --workdir"
        )
    old = (defaults or {}) | run.config
    if differing := [key for key in config if config[key] != old.get(key)]:
        changes = ", ".join(f"--{key}: {old.get(key)} then, {config[key]} now" for key in differing)
        raise UserError(
            f"a run is resumed with the settings that it began with, and those of '{path}' "
            f"differ ({changes}); give the old ones or choose another --workdir"
        )
    return run


def open_run(path: str | os.PathLike, flag: str = "--workdir") -> RunDirectory:
    """Opens a finished run for reading; `flag` is where its path came from.

    Raises:
      UserError: when there is no run at `path`, or it did not finish.
    """
    run = RunDirectory(path)
    _require_run(run, flag)
    if not run.finished:
        raise UserError(
            f"{flag} must be a finished run, and '{path}' stopped after {len(run.metrics())} of "
            f"{run.config['epochs']} epochs without a result.json; the command that started it "
            "resumes it"
        )
    return run


def _require_run(run, flag):
    if not is_run(run.path):
        raise UserError(
            f"{flag} must be a directory that train.main wrote, with a config.json of format "
            f"{FORMAT}, and '{run.path}' is none; runs of earlier versions must be trained again"
        )


def is_run(path: str | os.PathLike) -> bool:
    """Returns whether a directory holds a run, finished or not."""
    try:
        return read_json(RunDirectory(path).config_file)["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def require_new(path: str | os.PathLike, flag: str) -> None:
    """Raises `UserError`, naming `flag`, unless `path` is new or empty and can be written."""
    require_writable(path, flag)
    if os.path.isdir(path) and (names := sorted(os.listdir(path))):
        raise UserError(
            f"{flag} must be new or empty, and '{path}' holds other files ({names[0]}"
            f"{', ...' if len(names) > 1 else ''}); choose another"
        )


def require_writable(path: str | os.PathLike, flag: str) -> None:
    """Raises `UserError`, naming `flag`, unless `path` is or can become a directory to write to.

    It must not lie in an exported version, which stays as it was published.
    """
    real = pathlib.Path(os.path.realpath(path))
    for directory in (real, *real.parents):
        if (directory / "saved_model.pb").exists():
            raise UserError(
                f"{flag} must not lie in an exported version, and '{path}' does ('{directory}' has "
                "a saved_model.pb); choose another"
            )
    existing = next(each for each in (real, *real.parents) if each.exists())
    if not existing.is_dir():
        raise UserError(f"{flag} must be a directory, and '{existing}' is a file; choose another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"{flag} must be a directory that can be written, and '{existing}' cannot; choose "
            "another or change its permissions"
        )


def package_versions() -> dict:
    """Returns the versions of Python and of the packages that decide what a run computes."""
    packages = ("tensorflow", "keras", "tensorflow_datasets", "numpy")
    versions = {package: importlib.import_module(package).__version__ for package in packages}
    return {"python": platform.python_version(), **versions}


def git_commit() -> str | None:
    """Returns the commit of this code, with "-dirty" if files differ; None outside a checkout."""
    root = pathlib.Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.SubprocessError):
        return None
