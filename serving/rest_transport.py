"""The same requests over TensorFlow Serving's REST interface, by the standard library's HTTP.

Messages are those of gRPC: requests become JSON here, and answers become messages again, so that
the rest of a client does not know the difference. Proxies from the environment are not used.
"""

import asyncio
import base64
import collections
import concurrent.futures
import contextlib
import http.client
import json
import math
import socket
import struct
import threading
import time
import urllib.parse

from serving import wire
from serving.async_transport import AsyncTransport
from serving.client_errors import TOO_LARGE, SettingsError
from serving.transport import (
    METADATA,
    PREDICT,
    STATUS,
    BlockingTransport,
    CallError,
    Settings,
    Tls,
)

CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# What is FAILED_PRECONDITION over gRPC has REST's 400 too; these are its words.
PRECONDITIONS = ("Serving signature name:", "Could not find variable", "Error while reading")
RESOLVED_SECONDS = 1.0


class RestServer:
    """A REST interface: requests as messages, one at a time for each thread.

    A REST answer does not say which version gave it. When none is asked for, the newest available
    one is, by its number, which is what the server would choose; it is looked up each second.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        address = urllib.parse.urlsplit(settings.target)
        try:
            port = address.port
        except ValueError:
            port = 0
        if not address.hostname or port == 0 or address.path.strip("/") or address.query:
            raise SettingsError(
                f"a REST target must be http://HOST:PORT or https://HOST:PORT, got "
                f"'{settings.target}'"
            )
        self._host, self._port = address.hostname, port
        secure = address.scheme == "https"
        tls = settings.tls or Tls()
        self._name = tls.server_name
        self._context = tls.context() if secure else None
        # Idle connections, the one used last first.
        self._idle: collections.deque = collections.deque(maxlen=settings.in_flight)
        self._busy: set[http.client.HTTPConnection] = set()
        self._closed = threading.Event()
        self._newest: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    def call(self, method, request, timeout=None):
        """The answer, after retries.

        Raises:
          CallError: when there is none before the deadline.
        """
        deadline = time.monotonic() + (timeout or self._settings.timeout)
        calls = {PREDICT: self._predict, STATUS: self._status, METADATA: self._metadata}
        retries, failures = self._settings.retries, 0
        while True:
            try:
                return self._answer(calls[method], request, deadline)
            except CallError as error:
                failures += 1
                pause = retries.pause(failures)
                if (
                    error.code not in retries.codes
                    or TOO_LARGE in error.details
                    or failures >= retries.attempts
                    or time.monotonic() + pause >= deadline
                ):
                    raise
                self._closed.wait(pause)

    @staticmethod
    def _answer(ask, request, deadline):
        try:
            return ask(request, deadline)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CallError(
                "UNKNOWN",
                "an answer must be what TensorFlow Serving's REST interface gives, and is not "
                f"({error!r})",
            ) from error

    def close(self):
        """Closes all connections; requests under way fail at once."""
        self._closed.set()
        for connection in [*self._busy]:
            # The thread that uses it may close it meanwhile.
            sock = connection.sock
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self._close_idle()

    def _close_idle(self):
        # Other threads may take one meanwhile.
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _predict(self, request, deadline):
        spec = wire.ModelSpec()
        spec.CopyFrom(request.model_spec)
        resolved = not spec.WhichOneof("version_choice")
        if resolved:
            spec.version.value = self._newest_version(spec, deadline)
        body = {"inputs": {name: to_json(value) for name, value in request.inputs.items()}}
        if spec.signature_name:
            body["signature_name"] = spec.signature_name
        try:
            answer = self._exchange("POST", _path(spec) + ":predict", body, deadline)
        except CallError as error:
            if resolved and error.code == "NOT_FOUND":
                # It was unloaded since; whoever asks again finds its successor.
                with self._lock:
                    known = self._newest.pop(spec.name, None)
                if known is not None:
                    return self._predict(request, deadline)
            raise
        outputs = answer.get("outputs")
        if not isinstance(outputs, dict):
            # A model with one output: its bare value.
            outputs = {(list(request.output_filter) or ["outputs"])[0]: outputs}
        response = wire.PredictResponse(model_spec=spec)
        for name, value in outputs.items():
            if not request.output_filter or name in request.output_filter:
                response.outputs[name].CopyFrom(from_json(value))
        return response

    def _newest_version(self, spec, deadline):
        with self._lock:
            version, until = self._newest.get(spec.name, (0, 0.0))
        if time.monotonic() < until:
            return version
        request = wire.GetModelStatusRequest(model_spec=wire.ModelSpec(name=spec.name))
        statuses = self._status(request, deadline).model_version_status
        available = [
            one.version for one in statuses if one.state == wire.ModelVersionStatus.AVAILABLE
        ]
        if not available:
            raise CallError("NOT_FOUND", f"Servable not found for request: Latest({spec.name})")
        with self._lock:
            self._newest[spec.name] = max(available), time.monotonic() + RESOLVED_SECONDS
        return max(available)

    def _status(self, request, deadline):
        answer = self._exchange("GET", _path(request.model_spec), None, deadline)
        response = wire.GetModelStatusResponse()
        for one in answer["model_version_status"]:
            found = response.model_version_status.add(version=int(one["version"]))
            found.state = wire.ModelVersionStatus.State.Value(one["state"])
            status = one.get("status", {})
            found.status.error_code = wire.STATUS_CODES.get(status.get("error_code"), 0)
            found.status.error_message = status.get("error_message", "")
        return response

    def _metadata(self, request, deadline):
        answer = self._exchange("GET", _path(request.model_spec) + "/metadata", None, deadline)
        signatures = wire.SignatureDefMap()
        for name, one in answer["metadata"]["signature_def"]["signature_def"].items():
            signature = signatures.signature_def[name]
            signature.method_name = one.get("method_name", "")
            for theirs, ours in (("inputs", signature.inputs), ("outputs", signature.outputs)):
                for key, info in one.get(theirs, {}).items():
                    _tensor_info(info, ours[key])
        response = wire.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = int(answer["model_spec"].get("version") or 0)
        response.metadata["signature_def"].value = signatures.SerializeToString()
        return response

    def _exchange(self, verb, path, body, deadline):
        """The JSON that a request is answered with."""
        content = None if body is None else json.dumps(body).encode()
        limit = self._settings.max_message_bytes
        if content is not None and len(content) > limit:
            raise CallError(
                "RESOURCE_EXHAUSTED",
                f"CLIENT: Sent message {TOO_LARGE} ({len(content)} vs. {limit})",
            )
        try:
            status, data = self._send(verb, path, content, deadline)
        except TimeoutError as error:
            raise CallError("DEADLINE_EXCEEDED", "Deadline Exceeded") from error
        except (OSError, http.client.HTTPException) as error:
            raise CallError("UNAVAILABLE", str(error) or type(error).__name__) from error
        if len(data) > limit:
            raise CallError("RESOURCE_EXHAUSTED", f"CLIENT: Received message {TOO_LARGE} ({limit})")
        try:
            answer = json.loads(data)
        except ValueError:
            answer = data[:200].decode(errors="replace")
        told = isinstance(answer, dict)
        if status == 200 and told and "error" not in answer:
            return answer
        details = str(answer.get("error", answer) if told else answer)
        code = CODES.get(status, "UNKNOWN")
        if status == 400 and not told:
            # Not from a model server, which says in JSON what is wrong with a request.
            code, details = "UNKNOWN", f"HTTP 400, {details}"
        elif status == 400 and details.startswith(PRECONDITIONS):
            code = "FAILED_PRECONDITION"
        elif status == 413:
            details = f"SERVER: Received message {TOO_LARGE} ({details})"
        raise CallError(code, details)

    def _send(self, verb, path, content, deadline):
        while True:
            try:
                connection, used = self._idle.pop(), True
            except IndexError:
                connection, used = self._connect(), False
            self._busy.add(connection)
            try:
                return self._exchange_on(connection, verb, path, content, deadline)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                # A server may end a connection that it kept, for example because it was restarted.
                if not used or isinstance(error, TimeoutError):
                    raise
            finally:
                self._busy.discard(connection)

    def _exchange_on(self, connection, verb, path, content, deadline):
        """The status and the body of an answer."""
        if connection.sock is None:
            connection.timeout = _remaining(deadline)
            connection.connect()
        if self._closed.is_set():
            connection.close()
            raise CallError("CANCELLED", "the client was closed")
        connection.sock.settimeout(_remaining(deadline))
        # Whoever refuses a large body may answer, and stop reading, before it has come.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(verb, path, content, {"Content-Type": "application/json"})
        # The response closes the connection's socket when it is the last on it.
        sock = connection.sock
        sock.settimeout(_remaining(deadline))
        response = connection.getresponse()
        data = self._read(response, sock, deadline)
        if response.isclosed():
            self._idle.append(connection)
            if self._closed.is_set():
                # `close` may have looked before.
                self._close_idle()
        else:
            connection.close()
        return response.status, data

    def _read(self, response, sock, deadline):
        """The body, at most one byte more than a message may have."""
        room = self._settings.max_message_bytes + 1
        parts = []
        # Piece by piece: a socket's timeout begins anew with each.
        while room and (part := response.read1(min(room, 2**20))):
            parts.append(part)
            room -= len(part)
            if not response.isclosed():
                sock.settimeout(_remaining(deadline))
        if room and response.length:
            raise http.client.IncompleteRead(b"", response.length)
        if response.length == 0:
            # read1 does not end a response, without which its connection takes no other.
            response.close()
        return b"".join(parts)

    def _connect(self):
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port)
        if self._name is not None:
            return _NamedHTTPSConnection(self._host, self._port, self._context, self._name)
        return http.client.HTTPSConnection(self._host, self._port, context=self._context)


class _NamedHTTPSConnection(http.client.HTTPConnection):
    """HTTPS to a server whose certificate has another name than its host."""

    def __init__(self, host, port, context, name):
        super().__init__(host, port or 443)
        self._context, self._name = context, name

    def connect(self):
        super().connect()
        self.sock = self._context.wrap_socket(self.sock, server_hostname=self._name)


def _remaining(deadline):
    """Seconds until then.

    Raises:
      TimeoutError: when there are none.
    """
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


def _path(spec):
    path = f"/v1/models/{urllib.parse.quote(spec.name, safe='')}"
    if spec.HasField("version"):
        return f"{path}/versions/{spec.version.value}"
    if spec.version_label:
        return f"{path}/labels/{urllib.parse.quote(spec.version_label, safe='')}"
    return path


def _tensor_info(info, ours):
    ours.name = info.get("name", "")
    ours.dtype = wire.DATA_TYPES.get(info.get("dtype"), 0)
    shape = info.get("tensor_shape", {})
    ours.tensor_shape.unknown_rank = bool(shape.get("unknown_rank"))
    for dim in shape.get("dim", []):
        ours.tensor_shape.dim.add(size=int(dim["size"]))


def to_json(tensor):
    """A tensor of `wire.string_tensor` or `wire.uint8_tensor` as REST takes it."""
    if tensor.dtype == wire.DT_STRING:
        return [{"b64": base64.b64encode(value).decode()} for value in tensor.string_val]
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    return _nested(list(tensor.tensor_content), shape)


def _nested(values, shape):
    if len(shape) == 1:
        return values
    width = math.prod(shape[1:])
    return [_nested(values[row * width : (row + 1) * width], shape[1:]) for row in range(shape[0])]


def from_json(value):
    """An output [n] or [n, m], as the message that gRPC brings: floats are 32 bits wide.

    Raises:
      CallError: for what is neither.
    """
    if not isinstance(value, list):
        raise CallError("UNKNOWN", f"an output must be a tensor [n] or [n, m], got {value!r:.40}")
    shape, items = [len(value)], value
    if value and all(isinstance(row, list) for row in value):
        shape.append(len(value[0]))
        items = [item for row in value for item in row]
    tensor = wire.Tensor()
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    kinds = {type(item) for item in items}
    try:
        if kinds <= {int}:
            tensor.dtype = wire.DT_INT64
            tensor.int64_val.extend(items)
        elif kinds <= {int, float}:
            tensor.dtype = wire.DT_FLOAT
            tensor.tensor_content = struct.pack(f"<{len(items)}f", *items)
        else:
            tensor.dtype = wire.DT_STRING
            tensor.string_val.extend(_bytes(item) for item in items)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        raise CallError("UNKNOWN", f"an output must be a tensor [n] or [n, m] ({error})") from error
    return tensor


def _bytes(item):
    if isinstance(item, dict):
        return base64.b64decode(item["b64"])
    return item.encode()


class RestTransport(BlockingTransport):
    """For callers without an event loop; several requests at once are sent by threads."""

    def open(self):
        """The server, and threads for requests that are not waited for at once."""
        server = RestServer(self.settings)
        return server, concurrent.futures.ThreadPoolExecutor(self.settings.in_flight)

    def send(self, connection, method, request, timeout):
        """Sends a request and waits for its answer."""
        return connection[0].call(method, request, timeout)

    def send_later(self, connection, method, request):
        """Sends a request; returns a future of its answer."""
        return connection[1].submit(connection[0].call, method, request)

    async def wait(self, handle):
        """The answer of a started request."""
        return handle.result()

    def end(self, connection):
        """Closes connections, which ends the threads."""
        server, threads = connection
        server.close()
        threads.shutdown(cancel_futures=True)


class AsyncRestTransport(AsyncTransport):
    """For callers in an event loop: each request in a thread."""

    def __init__(self, settings: Settings):
        self._server = RestServer(settings)
        self._threads = concurrent.futures.ThreadPoolExecutor(settings.in_flight)

    async def call(self, method, request, timeout=None):
        """The answer."""
        return await self._begin(method, request, timeout)

    async def start(self, method, request):
        """Begins a request, which waits for a free thread; returns a future of it."""
        return self._begin(method, request, None)

    def _begin(self, method, request, timeout):
        self.check_open()
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._threads, self._server.call, method, request, timeout)

    async def close(self):
        """Closes connections, which ends the threads."""
        self._closed = True
        self._server.close()
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
