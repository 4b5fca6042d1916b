"""A local model server: python -m serving.server --model_name=gaternet --model_base_path=DIR

Speaks TensorFlow Serving's gRPC protocol, for development and tests. Production is TensorFlow
Serving itself.
"""

import concurrent.futures
import os
import pathlib
import signal
import sys
import threading

from absl import app, flags, logging

from serving.versions import ModelDirectoryError, find_versions

FLAGS = flags.FLAGS
GRACE_SECONDS = 5
THREADS = 8
HEALTH_NAMES = ("", "ModelService", "PredictionService")

flags.DEFINE_integer("port", 8500, "TCP port of the gRPC interface; 0 takes a free one.", 0, 65535)
flags.DEFINE_string("address", "127.0.0.1", "Address to listen on; 0.0.0.0 for every interface.")
flags.DEFINE_string("model_name", "default", "Name under which clients ask for the model.")
flags.DEFINE_string(
    "model_base_path",
    None,
    "Directory with numbered versions; the newest is served.",
    required=True,
)


def start(base_path: str, name: str, address: str, port: int):
    """Loads the newest version below `base_path` and serves it.

    Returns:
      (server, port, version): the running `grpc.Server`, its port, and what it serves.

    Raises:
      ModelDirectoryError: when there is nothing to serve, or it cannot be loaded.
      OSError: when the port cannot be had.
    """
    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    versions = find_versions(pathlib.Path(base_path))
    newest = max(versions)

    # TensorFlow, which takes seconds.
    from serving.servable import Servable
    from serving.services import ModelStore, register

    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(THREADS),
        options=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            # Two servers on one port would share its requests between them.
            ("grpc.so_reuseport", 0),
        ],
    )
    try:
        port = server.add_insecure_port(f"{address}:{port}")
    except RuntimeError as error:
        raise OSError(
            f"--port must be free on --address, and {address}:{port} cannot be had; stop what "
            "listens there or give another --port"
        ) from error
    register(server, ModelStore(name, Servable(versions[newest], newest)))
    servicer = health.HealthServicer()
    for service in HEALTH_NAMES:
        servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.start()
    return server, port, newest


def main(argv):
    """Serves until SIGTERM or SIGINT; returns the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"serving.server takes flags only, got '{argv[1]}'")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    try:
        server, port, version = start(
            FLAGS.model_base_path, FLAGS.model_name, FLAGS.address, FLAGS.port
        )
    except (ModelDirectoryError, OSError) as error:
        print(f"serving.server: error: {error}", file=sys.stderr)
        return 1
    print(
        f"serving {FLAGS.model_name} version {version} on {FLAGS.address}:{port} "
        "(for development and tests; production is TensorFlow Serving)",
        flush=True,
    )
    stop.wait()
    server.stop(GRACE_SECONDS).wait()
    print("server stopped", flush=True)
    return 0


if __name__ == "__main__":
    app.run(main)
