"""The local server put together: models behind a gRPC and a REST port, and their orderly end."""

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import socket
import threading
from typing import Any

import grpc
import tensorflow as tf
from absl import logging
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from serving import config as configuration
from serving import warmup
from serving.batching import BatchScheduler
from serving.errors import ServingError
from serving.inference import Inference, warm_up_answers
from serving.metrics import Metrics
from serving.models import LoadingOptions, Models
from serving.rest import RestApi, RestServer
from serving.servable import Servable
from serving.services import refuse_all_others, register

HEALTH_NAMES = ("", "ModelService", "PredictionService")
# Threads that tell callers that the others are busy.
SPARE_THREADS = 4
PER_MODEL_BATCHING = "batching_params.pbtxt"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the server runs; the flags of `serving.server` explain each.

    Attributes:
      config: a ModelServerConfig, what to serve at first.
      config_file: where it came from; read again every `config_poll_seconds` unless that is 0.
      port: of gRPC; 0 takes a free one.
      rest_port: of the REST API; 0 is off, -1 takes a free one.
      ssl: an SSLConfig for the gRPC port, or None for plain text.
      batching: or None for none.
      monitoring_path: of the metrics page on the REST port, or None.
    """

    config: Any
    config_file: str = ""
    config_poll_seconds: int = 0
    address: str = "127.0.0.1"
    port: int = 8500
    socket_path: str = ""
    rest_port: int = 0
    rest_timeout_seconds: float = 30.0
    ssl: Any = None
    loading: LoadingOptions = dataclasses.field(default_factory=LoadingOptions)
    batching: configuration.Batching | None = None
    per_model_batching: bool = False
    monitoring_path: str | None = None
    health: bool = False
    warm_up_rounds: int = 1
    max_picture_pixels: int = 0
    max_threads: int = 8
    intra_op_threads: int = 0
    inter_op_threads: int = 0


class _Health(health.HealthServicer):
    """The health service, with the server's words for a name that it does not know."""

    def Check(self, request, context):  # noqa: N802 - the service's name
        if request.service not in HEALTH_NAMES:
            context.abort(grpc.StatusCode.NOT_FOUND, "service name unknown")
        return super().Check(request, context)


class LocalServer:
    """A server that runs from `start` to `stop`.

    Args:
      settings: see there.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self.metrics = Metrics()
        self._shared = (
            BatchScheduler(settings.batching, self.metrics) if settings.batching else None
        )
        self.models = Models(self._load, settings.loading)
        self._inference = Inference(
            self.models, self.metrics, settings.max_picture_pixels, settings.max_threads
        )
        self._health = _Health()
        self._grpc = grpc.server(
            concurrent.futures.ThreadPoolExecutor(settings.max_threads + SPARE_THREADS),
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                # Two servers on one port would share its requests between them.
                ("grpc.so_reuseport", 0),
            ],
        )
        self._rest: RestServer | None = None
        self._stopping = threading.Event()
        self.port = settings.port
        self.rest_port = 0

    def start(self) -> None:
        """Takes the ports, loads the models, and only then begins to listen and to answer.

        Raises:
          OSError: when a port cannot be had; a TCP port's is raised before models load.
          ModelDirectoryError: when a base path holds nothing to serve.
          ServingError: when a model cannot be loaded or labels are refused.
        """
        settings = self._settings
        try:
            with self._reserved_port():
                if settings.rest_port:
                    self._rest = self._bind_rest()
                    self.rest_port = self._rest.server_address[1]
                self.models.start(settings.config)
            address = settings.address
            host = f"[{address}]" if ":" in address and "[" not in address else address
            self.port = self._listen(f"{host}:{settings.port}", "--port")
            if settings.socket_path:
                self._listen(f"unix:{settings.socket_path}", "--grpc_socket_path")
        except BaseException:
            self._give_up()
            raise
        register(self._grpc, self._inference)
        if settings.health:
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
            for name in HEALTH_NAMES:
                self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        refuse_all_others(self._grpc)
        self._grpc.start()
        if self._rest:
            self._rest.start()
        if settings.config_file and settings.config_poll_seconds:
            threading.Thread(target=self._poll_config, name="config", daemon=True).start()

    def stop(self, grace_seconds: float) -> None:
        """Refuses new requests, waits for the running ones, and frees the models.

        Args:
          grace_seconds: after which requests that still run are cancelled.
        """
        self._stopping.set()
        self._health.enter_graceful_shutdown()
        stopped = self._grpc.stop(grace_seconds)
        if self._rest:
            self._rest.stop()
        stopped.wait()
        self.models.close()
        if self._shared:
            self._shared.close()

    def _give_up(self):
        """Frees ports and threads of a server that could not be started."""
        self._grpc.stop(0)
        if self._rest:
            self._rest.server_close()
        self.models.close()
        if self._shared:
            self._shared.close()

    @contextlib.contextmanager
    def _reserved_port(self):
        """Holds the gRPC port, on which gRPC itself would listen at once, without listening."""
        address, port = self._settings.address, self._settings.port
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as holder:
            # As gRPC has it: connections of a server that ended do not count.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind((address.strip("[]"), port))
            except OSError as error:
                raise _port_taken("--port", f"{address}:{port}", error.strerror) from error
            yield

    def _listen(self, address, flag):
        ssl = self._settings.ssl
        try:
            if ssl is None:
                return self._grpc.add_insecure_port(address)
            credentials = grpc.ssl_server_credentials(
                [(ssl.server_key.encode(), ssl.server_cert.encode())],
                root_certificates=ssl.custom_ca.encode() or None,
                require_client_auth=ssl.client_verify,
            )
            return self._grpc.add_secure_port(address, credentials)
        except RuntimeError as error:
            reason = str(error).partition(";")[0]
            if ssl is not None:
                reason += "; perhaps --ssl_config_file has no key with its certificate"
            raise _port_taken(flag, address, reason) from error

    def _bind_rest(self):
        settings = self._settings
        pages = {}
        if settings.monitoring_path:
            pages[settings.monitoring_path] = self.metrics.page
        address = (settings.address.strip("[]"), max(settings.rest_port, 0))
        try:
            api = RestApi(self._inference, settings.rest_timeout_seconds)
            return RestServer(address, api, pages)
        except OSError as error:
            where = f"{address[0]}:{address[1]}"
            raise _port_taken("--rest_api_port", where, error.strerror) from error

    def _load(self, name: str, directory: pathlib.Path, version: int) -> Servable:
        """Loads and warms up a version."""
        own = self._own_scheduler(directory)
        try:
            servable = Servable(
                directory,
                version,
                own or self._shared,
                tf.compat.v1.ConfigProto(
                    intra_op_parallelism_threads=self._settings.intra_op_threads,
                    inter_op_parallelism_threads=self._settings.inter_op_threads,
                ),
                owns_scheduler=own is not None,
            )
        except Exception:
            if own is not None:
                own.close()
            raise
        try:
            rounds = self._settings.warm_up_rounds
            if rounds:
                count = warmup.replay(directory, warm_up_answers(servable), rounds)
                logging.info("model %s version %d: %d warm-up records", name, version, count)
        except Exception:
            servable.close()
            raise
        return servable

    def _own_scheduler(self, directory):
        """With a version's own batching parameters, or None."""
        file = directory / PER_MODEL_BATCHING
        if not (self._settings.per_model_batching and self._shared and file.exists()):
            return None
        parameters = configuration.read_batching(str(file), PER_MODEL_BATCHING)
        return BatchScheduler(parameters, self.metrics)

    def _poll_config(self):
        """Reads the list of models again and again; a bad one is logged and changes nothing.

        Models that are new in it are not waited for: the next list may be the one that mends them.
        """
        while not self._stopping.wait(self._settings.config_poll_seconds):
            try:
                config = configuration.read_models(self._settings.config_file)
                self.models.reload(config, wait=False)
            except (configuration.ConfigError, ServingError) as error:
                logging.error("The list of models was not taken: %s", error)
            except Exception:  # The next look may succeed.
                logging.exception("The list of models was not taken")


def _port_taken(flag, address, reason):
    return OSError(
        f"{flag} must be free on --address, and {address} cannot be had ({reason}); stop what "
        f"listens there or give another {flag}"
    )
