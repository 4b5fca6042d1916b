"""Flags made of `TrainingConfig`, and the groups in which --help shows them."""

import dataclasses
import typing
from typing import Any

from absl import flags

from gaternet_tf.command import define_path
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
        elif suffixes := limits.get("path"):
            define_path(field.name, default, text, suffixes=suffixes)
        else:
            flags.DEFINE_string(field.name, default, text)


def settings_by_group() -> dict[str, list[str]]:
    """Returns the names of all settings by their group, in the order in which one reads them."""
    groups: dict[str, list[str]] = {}
    for field in dataclasses.fields(TrainingConfig):
        groups.setdefault(field.metadata["group"], []).append(field.name)
    return groups
