"""What the commands of this package share: flags made of `TrainingConfig`, and one-line errors."""

import dataclasses
import os
import sys
import typing
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from train.config import TrainingConfig

# The flags below belong to the command that calls `define_settings`, in its --help too.
flags.disclaim_key_flags()


def define_settings(*names: str) -> None:
    """Defines a flag for each named setting of `TrainingConfig`, or for all of them."""
    types = typing.get_type_hints(TrainingConfig)
    for field in dataclasses.fields(TrainingConfig):
        if names and field.name not in names:
            continue
        default: Any = field.default
        limits = dict(field.metadata)
        text, minimum = limits["help"], limits.get("at_least")
        kinds = typing.get_args(types[field.name]) or (types[field.name],)
        if "choices" in limits:
            flags.DEFINE_enum(field.name, default, limits["choices"], text)
        elif bool in kinds:
            flags.DEFINE_boolean(field.name, default, text)
        elif int in kinds:
            flags.DEFINE_integer(field.name, default, text, lower_bound=minimum)
        elif float in kinds:
            flags.DEFINE_float(field.name, default, text, lower_bound=minimum)
        else:
            flags.DEFINE_string(field.name, default, text)


def run_command(name: str, argv: list[str], work: Callable[[], None]) -> int:
    """Does a command's work; returns the exit status.

    TensorFlow should be imported by `work` and not before, so that --help and a wrong flag are
    answered at once.

    Args:
      name: the command's module, for messages.
      argv: the command line without its flags, which must have no further arguments.
      work: raises `UserError` or `OSError` for what it cannot do; that is printed as one line.
    """
    if len(argv) > 1:
        raise app.UsageError(f"{name} takes flags only, got '{argv[1]}'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.ERROR)
    from gaternet_tf.errors import UserError

    try:
        work()
    except (UserError, OSError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1
    return 0
