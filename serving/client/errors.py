"""What a client raises, or returns for a broken picture."""

import grpc


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
        "(--target=HOST:PORT, with --tls if it speaks TLS)",
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        UnavailableError,
        "ask less at once (--in_flight, --batch_size), or later",
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        UnavailableError,
        "give it longer (--timeout), or ask less at once (--batch_size)",
    ),
    grpc.StatusCode.NOT_FOUND: (
        UnknownModelError,
        "check the name, the version and the label (--model, --version, --label)",
    ),
}
REMEDY = "serve what python -m export.main wrote"
