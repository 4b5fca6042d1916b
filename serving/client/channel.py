"""The channel to a model server, TLS, and the errors that its answers become."""

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
        {
            # Requests take turns among all addresses of the target.
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [{"name": [{}], "retryPolicy": RETRY_POLICY}],
        }
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
LOOPBACK = ("localhost:", "127.", "[::1]:", "ipv4:127.", "ipv6:[::1]", "unix:")


class ClientError(Exception):
    """A request without an answer; `code` is its gRPC status, or None where there is none."""

    def __init__(self, message: str, code: grpc.StatusCode | None = None):
        super().__init__(message)
        self.code = code


class UnavailableError(ClientError):
    """No server answers, or it has no room for the request, or the time is over."""


class UnknownModelError(ClientError):
    """The server has no such model, version or label."""


class PictureError(ClientError):
    """A picture that cannot be read, or that the server refused. It concerns no other picture."""


# For a gRPC status: the error to raise, and what can be done about it.
ERRORS: dict[grpc.StatusCode, tuple[type[ClientError], str]] = {
    grpc.StatusCode.UNAVAILABLE: (
        UnavailableError,
        "start a model server there, or give the address of its gRPC interface "
        "(--target=HOST:PORT, with --tls if it speaks TLS, and with --tls_cert and --tls_key if it "
        "asks for a certificate)",
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        UnavailableError,
        "ask less at once (--in_flight, --batch_size), or later",
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        UnavailableError,
        "give it longer (--timeout), or ask less at once (--batch_size)",
    ),
    grpc.StatusCode.FAILED_PRECONDITION: (
        ClientError,
        "serve what python -m export.main wrote; for --gates a version must have the signature "
        "'gates_bytes', so export an older one again",
    ),
    grpc.StatusCode.NOT_FOUND: (
        UnknownModelError,
        "check the name, the version and the label (--model, --version, --label)",
    ),
}
REMEDY = "serve what python -m export.main wrote"


@dataclasses.dataclass(frozen=True)
class Tls:
    """Files for TLS, in PEM.

    Attributes:
      ca: certificates of the authorities that may have signed the server's; None for
        gRPC's own.
      cert: the client's own certificate, for servers that ask for one (mutual TLS).
      key: its private key.
      server_name: the name in the server's certificate, if it is not the target's host.
    """

    ca: str | os.PathLike | None = None
    cert: str | os.PathLike | None = None
    key: str | os.PathLike | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Returns the credentials of a gRPC channel.

        Raises:
          ValueError: for a file that is missing or is not PEM, and a certificate without its key.
        """
        import ssl

        try:
            # gRPC would report a wrong file as a server that cannot be reached.
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert or self.key:
                context.load_cert_chain(self.cert or "", self.key or "", password="")
        except OSError as error:
            raise ValueError(
                "TLS needs PEM files, and a certificate together with the key that fits it, "
                f"got {self} ({error})"
            ) from error
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
