"""The channel to a model server: message sizes, retries, reconnecting, TLS."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import grpc

MAX_MESSAGE = 64 * 2**20
"""The largest request and the largest answer, in bytes. gRPC's own limit for answers is 4 MiB."""
RETRY_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}
CHANNEL_OPTIONS = {
    "grpc.service_config": json.dumps(
        {"methodConfig": [{"name": [{}], "retryPolicy": RETRY_POLICY}]}
    ),
    # A request above this size, 256 KiB by default, is not retried.
    "grpc.per_rpc_retry_buffer_size": MAX_MESSAGE,
    "grpc.max_send_message_length": MAX_MESSAGE,
    "grpc.max_receive_message_length": MAX_MESSAGE,
    # A server that was restarted, or whose name moved to another address, is found again within
    # 5 seconds. gRPC's defaults are 2 minutes between attempts and 30 seconds between look-ups.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 2_000,
    "grpc.max_reconnect_backoff_ms": 2_000,
    "grpc.dns_min_time_between_resolutions_ms": 1_000,
    # A connection to a host that vanished is given up after 20 seconds. Servers close connections
    # that are pinged more often than every 5 minutes.
    "grpc.keepalive_time_ms": 300_000,
    "grpc.keepalive_timeout_ms": 20_000,
}
LOOPBACK = ("localhost:", "127.", "[::1]:", "unix:")


@dataclasses.dataclass(frozen=True)
class Tls:
    """Files for TLS, in PEM.

    Attributes:
      ca: certificates of the authorities that may have signed the server's; None for those that
        gRPC brings.
      cert: the client's own certificate, for servers that ask for one (mutual TLS).
      key: its private key.
      server_name: the name in the server's certificate, if it is not the target's host.

    Raises:
      ValueError: for a file that is missing or is not PEM, and for a certificate without its key.
    """

    ca: str | os.PathLike | None = None
    cert: str | os.PathLike | None = None
    key: str | os.PathLike | None = None
    server_name: str | None = None

    def __post_init__(self):
        import ssl

        if (self.cert is None) != (self.key is None):
            raise ValueError(f"a certificate and its key must be given together, got {self}")
        try:
            # gRPC would report a wrong file as a server that cannot be reached.
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert is not None and self.key is not None:
                context.load_cert_chain(self.cert, self.key, password="")
        except OSError as error:
            raise ValueError(
                f"TLS needs PEM files, and a key that fits its certificate, got {self} ({error})"
            ) from error

    def credentials(self) -> grpc.ChannelCredentials:
        """Returns the credentials of a gRPC channel."""
        files = (self.ca, self.key, self.cert)
        return grpc.ssl_channel_credentials(
            *(None if file is None else pathlib.Path(file).read_bytes() for file in files)
        )


def open_channel(target: str, tls: Tls | None) -> grpc.Channel:
    """Returns a channel to a server's gRPC interface at HOST:PORT; plaintext without `tls`."""
    options = dict[str, Any](CHANNEL_OPTIONS)
    if target.startswith(LOOPBACK):
        # A proxy of the environment cannot reach this machine.
        options["grpc.enable_http_proxy"] = 0
    if tls is None:
        return grpc.insecure_channel(target, list(options.items()))
    if tls.server_name is not None:
        options["grpc.ssl_target_name_override"] = tls.server_name
    return grpc.secure_channel(target, tls.credentials(), list(options.items()))
