"""The models of the local server: found, loaded, replaced and unloaded while requests run."""

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Callable, Iterator

import grpc
from absl import logging
from tensorflow_serving.config import model_server_config_pb2

from serving.config import check_models
from serving.errors import (
    ServingError,
    deadline_exceeded,
    failed_precondition,
    invalid,
    not_found,
)
from serving.lifecycle import Lifecycle, State, Version
from serving.versions import ModelDirectoryError, NoVersionError, aspired_versions, find_versions

MAX_RELOAD_SECONDS = 600.0


@dataclasses.dataclass(frozen=True)
class LoadingOptions:
    """How versions are found and loaded; named as the server's flags.

    Attributes:
      poll_seconds: between two looks at the base paths; 0 looks once.
      max_num_load_retries: after a failure, not counting the first attempt.
      load_retry_interval_seconds: between two attempts.
      num_load_threads: versions that are loaded at once; 0 is 1.
      labels_for_unavailable: whether a new label may name a version that is not available.
    """

    poll_seconds: float = 1.0
    max_num_load_retries: int = 5
    load_retry_interval_seconds: float = 60.0
    num_load_threads: int = 0
    labels_for_unavailable: bool = False


class Models:
    """All models by name.

    Args:
      load: makes a servable of (model name, directory, version); raises `ModelDirectoryError`,
        with the server's words in `status` if it has them.
      options: see there.
    """

    def __init__(self, load: Callable[[str, pathlib.Path, int], object], options: LoadingOptions):
        self._load = load
        self._options = options
        self._changed = threading.Condition(threading.RLock())
        self._reloading = threading.Lock()
        self._configs: dict[str, model_server_config_pb2.ModelConfig] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._lives: dict[str, Lifecycle] = {}
        self._stopping = threading.Event()
        self._started = False
        self._loaders = concurrent.futures.ThreadPoolExecutor(
            max(1, options.num_load_threads), "load"
        )
        self._poller = threading.Thread(target=self._poll_for_ever, name="poll", daemon=True)

    # What requests ask.

    @contextlib.contextmanager
    def servable(self, spec) -> Iterator:
        """Lends the servable that a ModelSpec names; it is not unloaded before the block ends.

        Raises:
          ServingError: NOT_FOUND or INVALID_ARGUMENT.
        """
        with self._changed:
            version = self._find(spec)
            version.users += 1
        try:
            yield version.servable
        finally:
            with self._changed:
                version.users -= 1
                self._changed.notify_all()

    def _find(self, spec) -> Version:
        life = self._lives.get(spec.name)
        available = life.available if life else []
        number = None
        if spec.version_label:
            number = self._labels.get(spec.name, {}).get(spec.version_label)
            if number is None:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        elif spec.HasField("version"):
            number = spec.version.value
        for version in available:
            if number in (None, version.number):
                return version
        asked = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
        raise not_found(f"Servable not found for request: {asked}")

    def statuses(self, name: str, number: int | None = None):
        """The states of a model's versions, the newest first.

        Returns:
          A list of (number, state, error or None); versions long gone are in it.

        Raises:
          ServingError: NOT_FOUND.
        """
        with self._changed:
            life = self._lives.get(name)
            history = dict(life.history) if life else {}
        if number is not None:
            if number not in history:
                raise not_found(f"Could not find version {number} of model {name}")
            history = {number: history[number]}
        if not history:
            raise not_found(f"Could not find any versions of model {name}")
        return [(one, *history[one]) for one in sorted(history, reverse=True)]

    def known(self, name: str) -> bool:
        """Whether a model of this name is configured."""
        return name in self._configs

    def available(self) -> dict[str, list[int]]:
        """The versions that answer, the newest first, by model."""
        with self._changed:
            return {
                name: [version.number for version in self._lives[name].available]
                for name in self._configs
            }

    # What the operator says.

    def start(self, config) -> None:
        """Loads all models once, without retries, and begins to look for new versions.

        Raises:
          ServingError: when labels are refused, or a model does not become available.
          ModelDirectoryError: when a base path holds nothing.
        """
        self._apply(config, None)
        self._started = True
        self._poller.start()

    def reload(self, config, timeout: float | None = None, wait: bool = True) -> None:
        """Replaces the configuration as a whole; models that are not in it are unloaded.

        Args:
          config: a ModelServerConfig.
          timeout: seconds to wait for models that are new in it.
          wait: whether to wait for them at all.

        Raises:
          ServingError: when it is refused, after which all is as it was; or when a new model does
            not become available.
        """
        check_models(config, self._configs)
        self._apply(config, MAX_RELOAD_SECONDS if timeout is None else timeout, wait)

    def _apply(self, config, timeout, wait=True):
        if config.WhichOneof("config") is None:
            logging.info("Taking no action for empty config.")
            return
        models = {model.name: model for model in config.model_config_list.config}
        with self._reloading:
            with self._changed:
                self._labels = self._checked_labels(models)
                new = [name for name in models if name not in self._configs]
                self._configs = models
                for name in models:
                    self._lives.setdefault(name, Lifecycle())
            self.poll(complain=not self._started)
            if wait:
                self._wait_for(new, timeout)

    def _wait_for(self, names, timeout):
        """Until every one of these models has loaded, or failed to."""
        with self._changed:
            done = self._changed.wait_for(
                lambda: self._stopping.is_set() or all(self._lives[name].settled for name in names),
                timeout,
            )
            failed = [
                f"{{{{name: {name} version: {number}}} due to error: {error}}}, "
                for name in names
                if not self._lives[name].available
                for number, error in self._lives[name].failures.items()
            ]
        if failed:
            raise ServingError(
                grpc.StatusCode.UNKNOWN,
                f"{len(failed)} servable(s) did not become available: {{{''.join(failed)}}}",
            )
        if not done:
            raise deadline_exceeded("Deadline Exceeded")

    def _checked_labels(self, models):
        """Labels by model; as on the real server, checked before anything is loaded for them."""
        labels: dict[str, dict[str, int]] = {}
        for name, model in models.items():
            life = self._lives.get(name)
            available = {one.number for one in life.available} if life else set()
            for label, number in model.version_labels.items():
                unused = self._labels.get(name, {}).get(label) in (None, number)
                if number not in available and not (
                    self._options.labels_for_unavailable and unused
                ):
                    raise failed_precondition(
                        f"Request to assign label to version {number} of model {name}, which is "
                        "not currently available for inference"
                    )
                labels.setdefault(name, {})[label] = number
        return labels

    # Versions.

    def poll(self, complain: bool = False) -> None:
        """Looks at the base paths, and begins to load and unload accordingly.

        Args:
          complain: raises where a base path holds nothing to serve, instead of logging it.

        Raises:
          ModelDirectoryError: if it is to complain.
        """
        for name, model in list(self._configs.items()):
            base_path = pathlib.Path(model.base_path)
            try:
                found = find_versions(base_path)
            except NoVersionError as error:
                if complain:
                    raise
                logging.warning("model %s: %s", name, error)
                found = {}
            except ModelDirectoryError as error:
                if complain:
                    raise
                logging.error("model %s stays as it is: %s", name, error)
                continue
            wanted, absent = aspired_versions(found, model.model_version_policy)
            if complain and not wanted:
                raise ModelDirectoryError(
                    f"One of the versions {absent} of model {name}, which its policy names, must "
                    f"be below '{base_path}', and none is"
                )
            for number in absent:
                logging.warning(
                    "Version %d of servable %s, which was requested to be served as a 'specific' "
                    "version in the servable's version policy, was not found in the file system",
                    number,
                    name,
                )
            with self._changed:
                if name in self._configs:
                    self._lives[name].aspire(wanted)
        self._settle()

    def _settle(self):
        with self._changed:
            if self._stopping.is_set():
                # There is nobody left to load, and `close` frees what there is.
                self._changed.notify_all()
                return
            for name, life in self._lives.items():
                if name not in self._configs:
                    life.aspire({})
                to_load, to_unload = life.settle()
                for version in to_load:
                    self._loaders.submit(self._load_version, name, life, version)
                for version in to_unload:
                    threading.Thread(
                        target=self._unload_version, args=(life, version), daemon=True
                    ).start()
            self._changed.notify_all()

    def _load_version(self, name, life, version):
        retries = self._options.max_num_load_retries if self._started else 0
        for attempt in range(1 + retries):
            try:
                servable = self._load(name, version.path, version.number)
            except Exception as error:  # Whatever a version does, the others must go on.
                status = _status(error)
                logging.error("model %s: %s", name, error)
            else:
                with self._changed:
                    life.loaded(version, servable)
                break
            if attempt == retries or self._given_up_within_retry_interval(version):
                with self._changed:
                    life.failed(version, status)
                break
        self._settle()

    def _given_up_within_retry_interval(self, version):
        with self._changed:
            return self._changed.wait_for(
                lambda: self._stopping.is_set() or not version.aspired,
                self._options.load_retry_interval_seconds,
            )

    def _unload_version(self, life, version):
        with self._changed:
            self._changed.wait_for(lambda: not version.users)
            servable = version.servable
        servable.close()
        with self._changed:
            life.unloaded(version)
        self._settle()

    def _poll_for_ever(self):
        seconds = self._options.poll_seconds
        while seconds > 0 and not self._stopping.wait(seconds):
            try:
                self.poll()
            except Exception:  # The next look may succeed.
                logging.exception("Looking for versions failed")

    def close(self) -> None:
        """Ends the threads and frees all sessions; no request may be running."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        if self._poller.is_alive():
            self._poller.join()
        self._loaders.shutdown(cancel_futures=True)
        with self._changed:
            for life in self._lives.values():
                for version in life.available:
                    life.move(version, State.UNLOADING)
                    version.servable.close()
                    life.unloaded(version)


def _status(error: Exception) -> ServingError:
    status = getattr(error, "status", None)
    if isinstance(error, ServingError):
        return error
    if isinstance(status, ServingError):
        return status
    return ServingError(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}")
