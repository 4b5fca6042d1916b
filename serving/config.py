"""Reads the configuration files of TensorFlow Serving: text protos, checked as the server does."""

import dataclasses
import os
import pathlib
import re

from google.protobuf import text_format

from serving.config_messages import BatchingParameters, MonitoringConfig, SSLConfig
from serving.errors import ServingError, failed_precondition, invalid

PLATFORM = "tensorflow"
PROMETHEUS_PATH = "/monitoring/prometheus/metrics"


class ConfigError(Exception):
    """A configuration file that cannot be used. The text says what is required and what came."""


@dataclasses.dataclass(frozen=True)
class Batching:
    """How requests are put together into batches; the defaults are the server's.

    Attributes:
      max_batch_size: rows of a batch, and of a request unless it is split.
      timeout_seconds: how long an incomplete batch waits for more rows.
      max_enqueued_batches: batches that may wait; further requests are refused.
      threads: batches that run at once.
      allowed_batch_sizes: sizes to which batches are filled up; empty: any.
      pad: whether rows of different shapes are filled up to the largest.
      split: whether a request may be larger than a batch.
      max_execution_batch_size: rows that run together, when requests are split.
    """

    max_batch_size: int = 1000
    timeout_seconds: float = 0.0
    max_enqueued_batches: int = 10
    threads: int = os.cpu_count() or 1
    allowed_batch_sizes: tuple[int, ...] = ()
    pad: bool = False
    split: bool = False
    max_execution_batch_size: int = 1000

    @property
    def rows_at_once(self) -> int:
        """Rows that run together at most."""
        return self.max_execution_batch_size if self.split else self.max_batch_size


def read_text(path: str, message, flag: str):
    """Parses a text proto.

    Raises:
      ConfigError: when there is no such file, or it does not parse.
    """
    try:
        return text_format.Parse(pathlib.Path(path).read_text(), message)
    except OSError as error:
        raise ConfigError(
            f"{flag} must be a file, and '{path}' cannot be read: {error.strerror}"
        ) from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{flag} must be a text proto {message.DESCRIPTOR.name}, and '{path}' is not one: "
            f"{error}"
        ) from error


def read_batching(path: str, flag: str = "--batching_parameters_file") -> Batching:
    """Batching parameters from a file.

    Raises:
      ConfigError: when it does not parse or its sizes contradict each other.
    """
    found = read_text(path, BatchingParameters(), flag)
    given = {name.name: value for name, value in found.ListFields()}
    known = Batching()

    def number(name, default):
        if name not in given:
            return default
        least = 0 if name == "batch_timeout_micros" else 1
        if given[name].value < least:
            raise ConfigError(
                f"{flag}: {name} must be at least {least}, '{path}' says {given[name].value}"
            )
        return given[name].value

    largest = number("max_batch_size", known.max_batch_size)
    split = found.enable_large_batch_splitting.value
    execution = number("max_execution_batch_size", largest) if split else largest
    sizes = tuple(found.allowed_batch_sizes)
    if sizes and (sizes[0] < 1 or list(sizes) != sorted(set(sizes))):
        raise ConfigError(
            f"{flag}: allowed_batch_sizes entries must be positive and monotonically increasing, "
            f"'{path}' says {list(sizes)}"
        )
    if sizes and sizes[-1] != execution:
        name = "max_execution_batch_size" if split else "max_batch_size"
        raise ConfigError(
            f"{flag}: Last entry in allowed_batch_sizes must match {name}; last entry was "
            f"{sizes[-1]}; expected {execution}"
        )
    return Batching(
        max_batch_size=largest,
        timeout_seconds=number("batch_timeout_micros", 0) / 1e6,
        max_enqueued_batches=number("max_enqueued_batches", known.max_enqueued_batches),
        threads=number("num_batch_threads", known.threads),
        allowed_batch_sizes=sizes,
        pad=found.pad_variable_length_inputs,
        split=split,
        max_execution_batch_size=min(execution, largest),
    )


def read_monitoring(path: str) -> str | None:
    """The path at which metrics are served, or None where the file does not enable them.

    Raises:
      ConfigError: when the file does not parse.
    """
    found = read_text(path, MonitoringConfig(), "--monitoring_config_file").prometheus_config
    return (found.path or PROMETHEUS_PATH) if found.enable else None


def read_ssl(path: str):
    """Keys and certificates for the gRPC port.

    Raises:
      ConfigError: when the file does not parse, or lacks a key, a certificate, or the authority
        by which clients are verified.
    """
    found = read_text(path, SSLConfig(), "--ssl_config_file")
    needed = ["server_key", "server_cert"] + ["custom_ca"] * found.client_verify
    for name in needed:
        if "-----BEGIN " not in getattr(found, name):
            raise ConfigError(
                f"--ssl_config_file must have PEM text as {name}, and '{path}' has none; put the "
                "text itself there, with \\n for the ends of lines"
            )
    return found


def read_models(path: str):
    """A ModelServerConfig from a file; see `check_models` for what it may say.

    Raises:
      ConfigError: when it does not parse or is refused.
    """
    from tensorflow_serving.config import model_server_config_pb2

    flag = "--model_config_file"
    config = read_text(path, model_server_config_pb2.ModelServerConfig(), flag)
    try:
        check_models(config)
    except ServingError as error:
        raise ConfigError(f"{flag} '{path}' cannot be used: {error.message}") from error
    return config


def single_model(name: str, base_path: str):
    """The ModelServerConfig that --model_name and --model_base_path stand for."""
    from tensorflow_serving.config import model_server_config_pb2

    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(name=name, base_path=base_path, model_platform=PLATFORM)
    return config


def check_models(config, served=None) -> None:
    """Refuses what the server refuses in a list of models, in its words.

    Args:
      config: a ModelServerConfig.
      served: the ModelConfigs by name that it would replace.

    Raises:
      ServingError: INVALID_ARGUMENT or FAILED_PRECONDITION.
    """
    if config.WhichOneof("config") == "custom_model_config":
        raise failed_precondition(
            "Cannot transition to requested config. It is only legal to transition from one "
            "ModelConfigList to another."
        )
    names = set()
    for model in config.model_config_list.config:
        if model.name in names:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        names.add(model.name)
        absolute = model.base_path.startswith("/") or re.match(r"[a-z]\w*://", model.base_path)
        if not absolute:
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got "
                f"base_path()={model.base_path}"
            )
    for model in config.model_config_list.config:
        if model.model_type and model.model_platform:
            raise invalid(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and "
                "ModelServerConfig::model_platform."
            )
        if not model.model_type and not model.model_platform:
            raise invalid(
                "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
                "ModelServerConfig::model_platform."
            )
        old, new = (_platform(one) for one in ((served or {}).get(model.name, model), model))
        if old != new:
            raise invalid(
                f"Illegal to change a model's platform. For model {model.name} platform was {old} "
                f"and new platform requested is {new}"
            )
        if new != PLATFORM:
            raise invalid(f"Unknown platform: {new}")


def _platform(model):
    """The platform of a ModelConfig, which may name it by the type that came before platforms."""
    if model.model_platform:
        return model.model_platform
    types = model.DESCRIPTOR.fields_by_name["model_type"].enum_type.values_by_name
    return "other" if model.model_type == types["OTHER"].number else PLATFORM
