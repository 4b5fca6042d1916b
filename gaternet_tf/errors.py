"""The errors that a command turns into a message instead of a traceback."""


class UserError(ValueError):
    """A request that cannot be met as it stands.

    Its text says what is required, what came and what to do. Commands print it and exit with
    status 1; everything that is not a `UserError` (or an `OSError`) is a bug and keeps
    its traceback.
    """


class StoppedError(UserError):
    """Work that a signal has stopped, after it was saved; a command says so without "error"."""
