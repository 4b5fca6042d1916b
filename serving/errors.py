"""Errors of the local server: a gRPC status code and TensorFlow Serving's own words for it."""

import grpc


class ServingError(Exception):
    """A request that is answered with an error status."""

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> ServingError:
    """INVALID_ARGUMENT: the request can never succeed."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServingError:
    """NOT_FOUND: no such model or version."""
    return ServingError(grpc.StatusCode.NOT_FOUND, message)
