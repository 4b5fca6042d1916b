"""Errors of the local server: a gRPC status code and TensorFlow Serving's own words for it."""

import grpc

MAX_MESSAGE = 1024
"""The real server cuts longer error messages, over gRPC."""


class ServingError(Exception):
    """A request that is answered with an error status."""

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def cut_message(self) -> str:
        """The message as gRPC callers get it."""
        if len(self.message) <= MAX_MESSAGE:
            return self.message
        return self.message[:MAX_MESSAGE] + "...TRUNCATED"

    def __str__(self) -> str:
        """As TensorFlow Serving writes a status in its log: `NOT_FOUND: text`."""
        return f"{self.code.name}: {self.message}"


def invalid(message: str) -> ServingError:
    """INVALID_ARGUMENT: the request can never succeed."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServingError:
    """NOT_FOUND: no such model or version."""
    return ServingError(grpc.StatusCode.NOT_FOUND, message)


def failed_precondition(message: str) -> ServingError:
    """FAILED_PRECONDITION: the server is not in a state to do it."""
    return ServingError(grpc.StatusCode.FAILED_PRECONDITION, message)


def unavailable(message: str) -> ServingError:
    """UNAVAILABLE: not now; a caller may try again."""
    return ServingError(grpc.StatusCode.UNAVAILABLE, message)


def exhausted(message: str) -> ServingError:
    """RESOURCE_EXHAUSTED: too many at once; a caller may try again, later."""
    return ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED, message)


def deadline_exceeded(message: str) -> ServingError:
    """DEADLINE_EXCEEDED: the caller's time is over."""
    return ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, message)
