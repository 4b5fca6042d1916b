"""What a client's requests travel on, apart from how: settings, outcomes, the blocking base.

A transport has `async` methods. Those of a blocking one never suspend, so that one implementation
of the client's rules serves callers with and without an event loop (`run`).
"""

import concurrent.futures
import dataclasses
import ipaddress
import os
import pathlib
import random
import re
import threading
import time
from collections.abc import Coroutine
from typing import Any, Protocol

from serving import wire
from serving.client_errors import SettingsError, printable

# What gRPC, and a server, take for the size of a message; more than anybody waits, too.
LARGEST = 2**31 - 1
# gRPC's names of an address: those with a host and a port, and others.
HOST_SCHEMES = ("dns", "ipv4", "ipv6")
OTHER_SCHEMES = ("unix", "unix-abstract", "vsock", "xds", "google-c2p")


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of the server: its gRPC path and the class of its answers."""

    path: str
    response: Any


PREDICT = Method("/tensorflow.serving.PredictionService/Predict", wire.PredictResponse)
METADATA = Method(
    "/tensorflow.serving.PredictionService/GetModelMetadata", wire.GetModelMetadataResponse
)
STATUS = Method("/tensorflow.serving.ModelService/GetModelStatus", wire.GetModelStatusResponse)


class CallError(Exception):
    """A call that did not succeed: the name of its gRPC status, and the server's words."""

    def __init__(self, code: str, details: str):
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = printable(" ".join(details.split()))


@dataclasses.dataclass(frozen=True)
class Retries:
    """When a failed call is tried again: gRPC's own rules, which REST follows too.

    Before the n-th new attempt comes a pause of `first` * 2^(n-1) seconds, at most `longest`, give
    or take a fifth. The call's deadline covers all attempts and pauses.
    """

    attempts: int = 5
    first: float = 0.1
    longest: float = 2.0
    codes: tuple[str, ...] = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failed attempts."""
        return min(self.first * 2 ** (failures - 1), self.longest) * random.uniform(0.8, 1.2)


@dataclasses.dataclass(frozen=True)
class Tls:
    """How to speak TLS. Files are PEM.

    Attributes:
      ca: certificates of who may have signed the server's; None for the well-known ones.
      cert: the client's own certificate, which a server may ask for (mutual TLS).
      key: its private key.
      server_name: the name in the server's certificate, if it is not the target's host.

    Raises:
      SettingsError: for files that are missing or are not what they must be, and empty names.
    """

    ca: str | os.PathLike | None = None
    cert: str | os.PathLike | None = None
    key: str | os.PathLike | None = None
    server_name: str | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) == "":
                raise SettingsError(
                    f"a setting of TLS must have a value (--tls_{field.name}), got an empty one; "
                    "leave it out"
                )
        if (self.cert is None) != (self.key is None):
            raise SettingsError(
                "a client's certificate and its key must be given together (--tls_cert, "
                f"--tls_key), got {'a key' if self.cert is None else 'a certificate'} only"
            )
        self.context()

    def context(self):
        """An `ssl.SSLContext`; making it checks the files."""
        import ssl

        what, path = "certificates of authorities (--tls_ca)", self.ca
        try:
            context = ssl.create_default_context(cafile=self.ca)
            what, path = "a certificate and its key (--tls_cert, --tls_key)", self.cert
            if self.cert is not None and self.key is not None:
                context.load_cert_chain(self.cert, self.key, password="")
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"TLS needs PEM files with {what}, and '{path}' is not that ({error})"
            ) from error
        return context

    @staticmethod
    def read(path: str | os.PathLike | None) -> bytes | None:
        """A file's bytes, None for no file."""
        return None if path is None else pathlib.Path(path).read_bytes()


KIND_NAMES = {
    str: "text",
    int: "an int",
    float: "a float",
    Tls: "Tls(...), True, False",
    type(None): "None",
}


def check_type(name: str, value, *kinds: type) -> None:
    """Refuses an argument that is of none of these types.

    Raises:
      SettingsError: for it.
    """
    if isinstance(value, bool) or not isinstance(value, kinds):
        wanted = " or ".join(KIND_NAMES[kind] for kind in kinds)
        raise SettingsError(f"{name} must be {wanted}, got {value!r:.80}")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a client reaches its server; `GaterNetClient` says what each means."""

    target: str
    timeout: float = 10.0
    in_flight: int = 4
    max_message_bytes: int = 64 * 2**20
    tls: Tls | None = None
    retries: Retries = Retries()

    def __post_init__(self):
        check_type("target", self.target, str)
        check_type("timeout", self.timeout, float, int)
        check_type("in_flight", self.in_flight, int)
        check_type("max_message_bytes", self.max_message_bytes, int)
        check_type("tls", self.tls, Tls, type(None))
        if not self.target.isprintable() or not self.target:
            raise SettingsError(f"target must be HOST:PORT or a URL, got {self.target!r}")
        for name in ("timeout", "in_flight", "max_message_bytes"):
            value = getattr(self, name)
            if not 0 < value <= LARGEST:
                raise SettingsError(f"{name} must be above 0 and at most {LARGEST:,}, got {value}")
        if self.target.lower().startswith("http://") and self.tls is not None:
            raise SettingsError(
                f"TLS over REST needs a target https://HOST:PORT, got '{self.target}'"
            )
        if not self.is_rest and not is_grpc_target(self.target):
            raise SettingsError(
                "a target must be HOST:PORT with a port from 1 to 65535, http://HOST:PORT, or an "
                f"address as gRPC names it (unix:/PATH), got '{self.target}'"
            )

    @property
    def is_rest(self) -> bool:
        """Whether the target is a REST server's."""
        return self.target.lower().startswith(("http://", "https://"))


def is_grpc_target(target: str) -> bool:
    """Whether a target is a kind of address that gRPC has, and its ports, if any, are ports.

    gRPC would take a larger port modulo 65536, and the scheme of a URL for the name of a host.
    """
    if target.startswith(tuple(f"{scheme}:" for scheme in OTHER_SCHEMES)):
        return True
    scheme = re.match("([^/]*):/", target)
    if scheme and scheme[1] not in HOST_SCHEMES:
        return False
    ports = [_host_and_port(address)[1] for address in target.split(",")]
    return all(
        port is None or (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16)
        for port in ports
    )


def _host_and_port(target):
    target = re.sub(rf"^({'|'.join(HOST_SCHEMES)}):(//[^/]*/)?", "", target)
    bracketed = re.fullmatch(r"\[(.*)\](?::(.*))?", target)
    if bracketed:
        return bracketed[1], bracketed[2]
    host, colon, port = target.partition(":")
    # An IPv6 address without a port may come without brackets.
    return (host, port) if colon and ":" not in port else (target, None)


def is_loopback(target: str) -> bool:
    """Whether a gRPC target is this machine itself, which no proxy can reach."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = _host_and_port(target)[0].rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


class Transport(Protocol):
    """What the rules of a client need."""

    async def call(self, method: Method, request, timeout: float | None = None) -> Any:
        """The answer, within `timeout` seconds instead of the settings'.

        Raises:
          CallError: when there is none.
        """

    async def start(self, method: Method, request) -> Any:
        """Begins a request, which is sent when fewer are in flight; returns a handle of it."""

    async def wait(self, handle) -> Any:
        """The answer of a started request.

        Raises:
          CallError: when there is none.
        """

    def cancel(self, handle) -> None:
        """Gives up a started request."""

    async def offload(self, function, *arguments) -> Any:
        """Calls a function that computes or reads files."""

    async def sleep(self, seconds: float) -> None:
        """Waits."""

    async def close(self) -> None:
        """Gives up what is under way, and frees what the transport holds; once is enough."""


def run(coroutine: Coroutine) -> Any:
    """Runs a coroutine that only awaits methods of a blocking transport."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("a blocking transport must not suspend")


def closed_error() -> SettingsError:
    """The error of a call after `close`."""
    return SettingsError("the client is closed; make another")


class BlockingTransport:
    """Bounds the requests in flight, over all threads, and starts anew in a forked process.

    Subclasses open their connections in `open`, end them in `end`, send in `send` and `send_later`.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self._closed = False
        # A connection is not usable in a forked process, and closing it there would end it here.
        self._inherited: list[Any] = []
        self._start_anew()

    def _start_anew(self):
        self._process = os.getpid()
        self._slots = threading.BoundedSemaphore(self.settings.in_flight)
        self._connection = self.open()

    def open(self) -> Any:
        """The connection to the server."""
        raise NotImplementedError

    def end(self, connection) -> None:
        """Ends the connection, and with it the requests under way."""
        raise NotImplementedError

    def send(self, connection, method: Method, request, timeout: float) -> Any:
        """Sends a request and waits for its answer."""
        raise NotImplementedError

    def send_later(self, connection, method: Method, request) -> concurrent.futures.Future:
        """Sends a request; returns a future of its answer."""
        raise NotImplementedError

    def _current(self):
        if self._closed:
            raise closed_error()
        if self._process != os.getpid():
            self._inherited.append(self._connection)
            self._start_anew()
        return self._connection, self._slots

    async def call(self, method, request, timeout=None):
        """The answer."""
        connection, slots = self._current()
        with slots:
            return self.send(connection, method, request, timeout or self.settings.timeout)

    async def start(self, method, request):
        """Sends a request as soon as fewer are in flight; returns a handle of it."""
        connection, slots = self._current()
        slots.acquire()
        try:
            handle = self.send_later(connection, method, request)
        except BaseException:
            slots.release()
            raise
        handle.add_done_callback(lambda _: slots.release())
        return handle

    def cancel(self, handle):
        """Gives up a started request."""
        handle.cancel()

    async def offload(self, function, *arguments):
        """Calls the function."""
        return function(*arguments)

    async def sleep(self, seconds):
        """Waits."""
        time.sleep(seconds)

    async def close(self):
        """Ends the connection."""
        if not self._closed:
            connection, _ = self._current()
            self._closed = True
            self.end(connection)


def blocking_transport(settings: Settings) -> Transport:
    """The transport of the target for callers without an event loop."""
    # Only the library that is needed is imported.
    if settings.is_rest:
        from serving.rest_transport import RestTransport

        return RestTransport(settings)
    from serving.grpc_transport import GrpcTransport

    return GrpcTransport(settings)


def async_transport(settings: Settings) -> Transport:
    """The transport of the target for callers in an event loop."""
    if settings.is_rest:
        from serving.rest_transport import AsyncRestTransport

        return AsyncRestTransport(settings)
    from serving.grpc_transport import AsyncGrpcTransport

    return AsyncGrpcTransport(settings)
