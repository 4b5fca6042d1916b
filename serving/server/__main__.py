"""A local model server: python -m serving.server --model_name=gaternet --model_base_path=DIR

Serves the newest version of one model over TensorFlow Serving's gRPC protocol, for development and
tests. Production is TensorFlow Serving itself; see docs/serving.md.
"""

import pathlib
import signal
import threading

from absl import flags, logging

from gaternet_tf.command import define_path, run, run_command
from gaternet_tf.errors import UserError

FLAGS = flags.FLAGS
GRACE_SECONDS = 30
"""How long running requests may take after SIGTERM."""

flags.DEFINE_integer("port", 8500, "TCP port; 0 takes a free one.", 0, 65535)
flags.DEFINE_string("address", "127.0.0.1", "Address to listen on; 0.0.0.0 for every interface.")
flags.DEFINE_string("model_name", "default", "Name under which clients ask for the model.")
define_path("model_base_path", None, "Directory with numbered versions below it.", required=True)
flags.DEFINE_float(
    "file_system_poll_wait_seconds", 1, "Seconds between two looks for a newer version.", 0.01
)


def main(argv):
    """Serves until SIGTERM or SIGINT; returns the exit status."""
    return run_command("serving.server", argv, serve)


def serve():
    """Serves the model of the flags until a signal ends it."""
    import tensorflow as tf

    from serving.server.services import start_server
    from serving.server.versions import NewestVersion

    tf.get_logger().setLevel("ERROR")  # The v1 loader logs that it is deprecated.
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        model = NewestVersion(FLAGS.model_name, pathlib.Path(FLAGS.model_base_path))
        server, port = start_server(model, FLAGS.address, FLAGS.port)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(
        f"serving {model.name} version {model.loaded.number} on {FLAGS.address}:{port} "
        "(for development and tests; production is TensorFlow Serving)",
        flush=True,
    )
    last_error = ""
    while not stop.wait(FLAGS.file_system_poll_wait_seconds):
        try:
            model.poll()
        except ValueError as error:
            if str(error) != last_error:
                logging.error("version %d goes on serving: %s", model.loaded.number, error)
            last_error = str(error)
    server.stop(GRACE_SECONDS).wait()
    print("server stopped", flush=True)


if __name__ == "__main__":
    run(main)
