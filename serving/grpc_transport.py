"""Requests over gRPC, with and without an event loop: one channel with one set of options."""

import asyncio
import json
import threading

import grpc

from serving.async_transport import AsyncTransport
from serving.client_errors import SettingsError
from serving.transport import (
    METADATA,
    PREDICT,
    STATUS,
    BlockingTransport,
    CallError,
    Settings,
    is_loopback,
)

METHODS = (PREDICT, METADATA, STATUS)
CLOSE_SECONDS = 2.0


def channel_options(settings: Settings) -> list[tuple[str, object]]:
    """The options of a channel, blocking or not."""
    retries = settings.retries
    config: dict = {"name": [{}]}
    if retries.attempts > 1:
        config["retryPolicy"] = {
            "maxAttempts": retries.attempts,
            "initialBackoff": f"{retries.first}s",
            "maxBackoff": f"{retries.longest}s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": list(retries.codes),
        }
    options: list[tuple[str, object]] = [
        ("grpc.service_config", json.dumps({"methodConfig": [config]})),
        # A name server must not be able to set another.
        ("grpc.service_config_disable_resolution", 1),
        # gRPC forgets a request that is larger than this, 256 KiB unless told, and then cannot
        # send it again.
        ("grpc.per_rpc_retry_buffer_size", settings.max_message_bytes + 2**20),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        # A server that was restarted is found again at once, and after a long absence in seconds.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # Servers close connections that are pinged more often than every five minutes, or at all
        # without a call. The timeout also bounds how long sent bytes may stay unacknowledged.
        ("grpc.keepalive_time_ms", 300_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 0),
    ]
    if is_loopback(settings.target):
        options.append(("grpc.enable_http_proxy", 0))
    if settings.tls is not None and settings.tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", settings.tls.server_name))
    return options


def _open_channel(module, settings):
    """A channel of `grpc` or of `grpc.aio`."""
    options = channel_options(settings)
    if settings.tls is None:
        return module.insecure_channel(settings.target, options)
    tls = settings.tls
    try:
        credentials = grpc.ssl_channel_credentials(
            tls.read(tls.ca), tls.read(tls.key), tls.read(tls.cert)
        )
    except OSError as error:
        raise SettingsError(f"a file of the TLS settings cannot be read ({error})") from error
    return module.secure_channel(settings.target, credentials, options)


def _calls(channel):
    """The callable of each method, made once."""
    return {
        method: channel.unary_unary(
            method.path,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=method.response.FromString,
        )
        for method in METHODS
    }


def _call_error(error):
    return CallError(error.code().name, error.details() or "")


class GrpcTransport(BlockingTransport):
    """For callers without an event loop."""

    def open(self):
        """The channel and the callables of its methods."""
        channel = _open_channel(grpc, self.settings)
        return channel, _calls(channel)

    def send(self, connection, method, request, timeout):
        """Sends a request and waits for its answer."""
        try:
            return connection[1][method](request, timeout=timeout)
        except grpc.RpcError as error:
            raise _call_error(error) from error

    def send_later(self, connection, method, request):
        """Sends a request; returns a future of its answer."""
        return connection[1][method].future(request, timeout=self.settings.timeout)

    async def wait(self, handle):
        """The answer of a started request."""
        try:
            return handle.result()
        except grpc.RpcError as error:
            raise _call_error(error) from error

    def end(self, connection):
        """Closes the channel.

        A Ctrl-C in the moment in which a request begins leaves gRPC with a call that nothing
        finishes any more, and closing would wait for it for ever.
        """
        closing = threading.Thread(target=connection[0].close, name="close", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class AsyncGrpcTransport(AsyncTransport):
    """For callers in an event loop; the channel belongs to the one that sends first."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self._slots = asyncio.Semaphore(settings.in_flight)
        self._channel = None
        self._methods: dict = {}

    async def call(self, method, request, timeout=None):
        """The answer."""
        self.check_open()
        if self._channel is None:
            self._channel = _open_channel(grpc.aio, self.settings)
            self._methods = _calls(self._channel)
        async with self._slots:
            try:
                return await self._methods[method](
                    request, timeout=timeout or self.settings.timeout
                )
            except grpc.RpcError as error:
                raise _call_error(error) from error

    async def start(self, method, request):
        """Begins a request, which waits in a task for its turn; returns the task."""
        return asyncio.create_task(self.call(method, request))

    async def close(self):
        """Closes the channel."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()
