"""A local model server: python -m serving.server --model_name=gaternet --model_base_path=DIR

Speaks TensorFlow Serving's gRPC and REST protocols, with its configuration files, codes and words,
for development and tests; flags that it has too mean the same. Production is TensorFlow Serving
itself. docs/serving.md says why, and what differs.
"""

import os
import signal
import sys
import threading

from absl import app, flags, logging

from serving import config
from serving.errors import ServingError
from serving.versions import ModelDirectoryError

FLAGS = flags.FLAGS
ENDS = {signal.SIGTERM, signal.SIGINT}
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

flags.DEFINE_integer("port", 8500, "TCP port of the gRPC interface; 0 takes a free one.", 0, 65535)
flags.DEFINE_integer(
    "rest_api_port", 0, "TCP port of the REST interface; 0 is off, -1 takes a free one.", -1, 65535
)
flags.DEFINE_string("address", "127.0.0.1", "Address to listen on; 0.0.0.0 for every interface.")
flags.DEFINE_string("grpc_socket_path", "", "UNIX socket on which to serve gRPC too.")
flags.DEFINE_integer(
    "grpc_max_threads", 4 * CPUS, "Requests that run at once; further ones are refused.", 1
)
flags.DEFINE_integer("rest_api_timeout_in_ms", 30000, "Milliseconds for a REST request.", 1)
flags.DEFINE_string("model_name", "default", "Name under which clients ask for the model.")
flags.DEFINE_string(
    "model_base_path",
    None,
    "Directory with numbered versions; the newest is served. This or --model_config_file.",
)
flags.DEFINE_string(
    "model_config_file",
    "",
    "Text proto ModelServerConfig: several models, policies, labels. With it, --model_name and "
    "--model_base_path are ignored.",
)
flags.DEFINE_integer(
    "model_config_file_poll_wait_seconds", 0, "Seconds between two readings of it; 0 reads once.", 0
)
flags.DEFINE_float(
    "file_system_poll_wait_seconds", 1, "Seconds between two looks for versions; 0 looks once.", 0
)
flags.DEFINE_boolean(
    "allow_version_labels_for_unavailable_models",
    False,
    "Whether new labels may name versions that are not available yet.",
)
flags.DEFINE_integer(
    "max_num_load_retries",
    5,
    "Attempts to load a version after the first; at the start there is only one.",
    0,
)
flags.DEFINE_integer(
    "load_retry_interval_micros", 60_000_000, "Microseconds between two attempts.", 0
)
flags.DEFINE_integer("num_load_threads", 0, "Versions loaded at once; 0 is one after the other.", 0)
flags.DEFINE_boolean("enable_model_warmup", True, "Whether warm-up files are replayed.")
flags.DEFINE_integer("num_request_iterations_for_warmup", 1, "How often each record is.", 1)
flags.DEFINE_boolean("enable_batching", False, "Whether requests are put together into batches.")
flags.DEFINE_string("batching_parameters_file", "", "Text proto BatchingParameters.")
flags.DEFINE_boolean(
    "enable_per_model_batching_parameters",
    False,
    "Whether a version's own batching_params.pbtxt counts for it.",
)
flags.DEFINE_string("monitoring_config_file", "", "Text proto MonitoringConfig: the metrics page.")
flags.DEFINE_string("ssl_config_file", "", "Text proto SSLConfig: TLS on the gRPC port.")
flags.DEFINE_boolean("enable_grpc_healthcheck_service", False, "Whether to serve grpc.health.v1.")
flags.DEFINE_integer("tensorflow_intra_op_parallelism", 0, "Threads in an operation; 0: all.", 0)
flags.DEFINE_integer("tensorflow_inter_op_parallelism", 0, "Operations at once; 0: all.", 0)
flags.DEFINE_integer(
    "max_picture_pixels",
    25_000_000,
    "Pixels of an encoded picture, over all frames, above which a request is refused before it is "
    "decoded; 0 is no limit. TensorFlow Serving has no such flag.",
    0,
)
flags.DEFINE_float(
    "grace_period_seconds",
    30,
    "Seconds that running requests get after SIGTERM. TensorFlow Serving has no such flag: it ends "
    "at once.",
    0,
)


def settings_from_flags():
    """Reads all configuration files and puts the flags together.

    Raises:
      ConfigError: when flags contradict each other, or a file cannot be used.
    """
    if not FLAGS.model_base_path and not FLAGS.model_config_file:
        raise config.ConfigError("--model_base_path or --model_config_file is required")
    if FLAGS.port and FLAGS.port == FLAGS.rest_api_port:
        raise config.ConfigError(
            f"--rest_api_port cannot be same as --port, and both are {FLAGS.port}"
        )
    batching = None
    if FLAGS.enable_batching:
        batching = config.Batching()
        if FLAGS.batching_parameters_file:
            batching = config.read_batching(FLAGS.batching_parameters_file)
    elif FLAGS.batching_parameters_file:
        raise config.ConfigError("--batching_parameters_file requires --enable_batching")
    monitoring = FLAGS.monitoring_config_file
    path = config.read_monitoring(monitoring) if monitoring else None
    if path and not FLAGS.rest_api_port:
        raise config.ConfigError(
            "--monitoring_config_file requires --rest_api_port, where the metrics are served"
        )
    ssl = config.read_ssl(FLAGS.ssl_config_file) if FLAGS.ssl_config_file else None
    if FLAGS.model_config_file:
        models = config.read_models(FLAGS.model_config_file)
    else:
        models = config.single_model(FLAGS.model_name, FLAGS.model_base_path)

    # TensorFlow, which takes seconds.
    from serving.hosting import Settings
    from serving.models import LoadingOptions

    return Settings(
        config=models,
        config_file=FLAGS.model_config_file,
        config_poll_seconds=FLAGS.model_config_file_poll_wait_seconds,
        address=FLAGS.address,
        port=FLAGS.port,
        socket_path=FLAGS.grpc_socket_path,
        rest_port=FLAGS.rest_api_port,
        rest_timeout_seconds=FLAGS.rest_api_timeout_in_ms / 1000,
        ssl=ssl,
        loading=LoadingOptions(
            poll_seconds=FLAGS.file_system_poll_wait_seconds,
            max_num_load_retries=FLAGS.max_num_load_retries,
            load_retry_interval_seconds=FLAGS.load_retry_interval_micros / 1e6,
            num_load_threads=FLAGS.num_load_threads,
            labels_for_unavailable=FLAGS.allow_version_labels_for_unavailable_models,
        ),
        batching=batching,
        per_model_batching=FLAGS.enable_per_model_batching_parameters,
        monitoring_path=path,
        health=FLAGS.enable_grpc_healthcheck_service,
        warm_up_rounds=FLAGS.enable_model_warmup * FLAGS.num_request_iterations_for_warmup,
        max_picture_pixels=FLAGS.max_picture_pixels,
        max_threads=FLAGS.grpc_max_threads,
        intra_op_threads=FLAGS.tensorflow_intra_op_parallelism,
        inter_op_threads=FLAGS.tensorflow_inter_op_parallelism,
    )


def start_up_line(server) -> str:
    """What is served where, and what it is for."""
    served = ", ".join(
        f"{name} version {' and '.join(map(str, versions))}"
        for name, versions in server.models.available().items()
    )
    rest = f"and REST on {FLAGS.address}:{server.rest_port} " if server.rest_port else ""
    return (
        f"serving {served or 'no model'} on {FLAGS.address}:{server.port} {rest}"
        "(for development and tests; production is TensorFlow Serving)"
    )


def _wait_for_end(started, ended):
    """Sets `ended` at the first of `ENDS`; before `started`, nobody waits for an orderly end."""
    number = signal.sigwait(ENDS)
    if not started.is_set():
        os._exit(128 + number)
    ended.set()


def main(argv):
    """Serves until SIGTERM or SIGINT; returns the exit status."""
    if len(argv) > 1:
        raise app.UsageError(f"serving.server takes flags only, got '{argv[1]}'")
    started, ended = threading.Event(), threading.Event()
    # Kept back before there are other threads, and taken by sigwait: a handler runs in this thread
    # only, while the signal may come to another one and leave this one asleep.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    threading.Thread(target=_wait_for_end, args=[started, ended], daemon=True).start()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # absl's own default, once it has read the flags, is INFO.
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        settings = settings_from_flags()
        import tensorflow as tf

        from serving.hosting import LocalServer

        # It warns of its own functions' age.
        tf.get_logger().setLevel("ERROR")
        server = LocalServer(settings)
        server.start()
    except (config.ConfigError, ModelDirectoryError, OSError) as error:
        print(f"serving.server: error: {error}", file=sys.stderr)
        return 1
    except ServingError as error:
        print(f"serving.server: error: Failed to start server. Error: {error}", file=sys.stderr)
        return 1
    started.set()
    print(start_up_line(server), flush=True)
    ended.wait()
    stopping = threading.Thread(target=server.stop, args=[FLAGS.grace_period_seconds], daemon=True)
    stopping.start()
    stopping.join(FLAGS.grace_period_seconds + 1)
    print("server stopped", flush=True)
    if stopping.is_alive():
        # A graph that does not end would keep the process for ever.
        os._exit(0)
    return 0


if __name__ == "__main__":
    app.run(main)
