"""What a client can raise. Every text says what is required, what came and what to do."""

import re

REMEDY = "serve what python -m export.main wrote"
QUEUE_FULL = "batch scheduling queue"
UNKNOWN_LABEL = "Unrecognized servable version label"
TOO_LARGE = "larger than max"


class ClientError(Exception):
    """A request that got no answer.

    `code` is the name of the gRPC status that the server or the transport gave ("UNAVAILABLE"),
    or None when the client itself refused.
    """

    def __init__(self, message: str, code: str | None = None):
        super().__init__(message)
        self.code = code


class SettingsError(ClientError, ValueError):
    """An argument that cannot be, or a call of a client that was closed."""


class PictureError(ClientError):
    """A picture that is not one, or that the server refused. It concerns no other picture."""


class UnavailableError(ClientError):
    """No server answers, or it has no room for the request, after all retries."""


class DeadlineError(UnavailableError):
    """No answer came in time."""


class UnknownModelError(ClientError):
    """The server has no such model, version or label."""


class ModelError(ClientError):
    """The model cannot answer what was asked: it is not one of ours, or is damaged."""


class ServerError(ClientError):
    """Any other status that the server answered with."""


def printable(text: str) -> str:
    """The text in one line, in which control characters are escaped: a terminal obeys them."""
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028\u2029]",
        lambda found: found[0].encode("unicode_escape").decode(),
        text,
    )


def explained(error, settings, which: str) -> ClientError:
    """What a failed call means for the caller.

    Args:
      error: the `CallError`.
      settings: the `Settings` of the transport.
      which: the model that was asked, as it is called in a message.
    """
    target, details = settings.target, error.details
    if error.code == "UNAVAILABLE" and QUEUE_FULL not in details:
        protocol = "REST" if settings.is_rest else "gRPC"
        plain = settings.tls is None and not target.lower().startswith("https:")
        hint = " (with --tls if it speaks TLS)" if plain else ""
        return UnavailableError(
            f"a model server must answer {protocol} at {target}, and none does ({details}); "
            f"start one, or give its address with --target=HOST:PORT{hint}",
            error.code,
        )
    if TOO_LARGE in details:
        return UnavailableError(
            f"a message to or from {target} must fit its limits, and one does not ({details}); "
            "ask less at once (--batch_size), or give the client a larger max_message_bytes",
            error.code,
        )
    if error.code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
        return UnavailableError(
            f"the server at {target} must have room for the request, and has none ({details}); "
            "ask less at once (--in_flight, --batch_size), or later",
            error.code,
        )
    if error.code == "DEADLINE_EXCEEDED":
        return DeadlineError(
            f"the server at {target} must answer within {settings.timeout} s, or less if it has a "
            f"limit of its own, and did not ({details}); give it longer (--timeout), or ask less "
            "at once (--batch_size)",
            error.code,
        )
    if error.code == "NOT_FOUND" or details.startswith(UNKNOWN_LABEL):
        return UnknownModelError(
            f"the server at {target} has no model {which} ({details}); check the "
            "name, the version and the label (--model, --version, --label)",
            error.code,
        )
    if error.code in ("FAILED_PRECONDITION", "INVALID_ARGUMENT"):
        return ModelError(
            f"the model {which} at {target} cannot answer this request ({details}); {REMEDY}",
            error.code,
        )
    return ServerError(f"the server at {target} answered {error.code}: {details}", error.code)
