"""What a client asks: which model, with which pictures in a request, for which outputs."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import Any

from serving.client_errors import SettingsError
from serving.pictures import DEFAULT_LIMITS, Limits
from serving.transport import check_type

CLASSIFICATION = ("labels", "class_ids", "probabilities")
OUTPUTS = (*CLASSIFICATION, "gates")


@dataclasses.dataclass(frozen=True)
class Choices:
    """Which model is asked, and how pictures are put into requests; see `GaterNetClient`."""

    model: str
    version: int | None = None
    label: str | None = None
    batch_size: int = 32
    batch_bytes: int = 8 * 2**20
    resize: int | None = None
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self):
        check_type("model", self.model, str)
        check_type("label", self.label, str, type(None))
        check_type("version", self.version, int, type(None))
        check_type("resize", self.resize, int, type(None))
        check_type("max_pixels", self.limits.pixels, int)
        for what, name in (("model", self.model), ("label", self.label)):
            if name is not None and not (name and name.isprintable()):
                raise SettingsError(
                    f"a {what} must be named by printable text (--{what}), got {name!r}"
                )
        if self.version is not None and not -(2**63) <= self.version < 2**63:
            raise SettingsError(f"a version must be a number of 64 bits, got {self.version}")
        if self.version is not None and self.label is not None:
            raise SettingsError(
                "a model is asked for by version or by label, got version "
                f"{self.version} and label '{self.label}'; leave one out"
            )
        for name in ("batch_size", "batch_bytes"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.resize is not None and self.resize < 0:
            raise SettingsError(f"resize must be 0 or above, got {self.resize}")
        if min(self.limits.pixels, self.limits.bytes) < 1:
            raise SettingsError(f"limits of pictures must be above 0, got {self.limits}")


@dataclasses.dataclass(frozen=True)
class Question:
    """What one call asks of every picture."""

    signature: str
    prepare: Callable[[Any], bytes]
    tensor: Callable[[list[bytes]], Any]
    top: int = 1
    outputs: tuple[str, ...] = ()

    @property
    def all_outputs(self):
        """The signature's outputs."""
        return OUTPUTS if self.signature == "gates" else CLASSIFICATION

    @property
    def input_name(self):
        """The signature's input."""
        return "images" if self.signature == "gates" else "image_bytes"


def checked_images(images) -> Iterable:
    """Several pictures, not one by mistake, which can be iterated over too.

    Raises:
      SettingsError: for one.
    """
    single = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike)
    shape = getattr(images, "shape", None)
    if single or hasattr(images, "getpixel") or (shape is not None and len(shape) != 4):
        raise SettingsError(
            "pictures must come in a list (or an array [n, height, width, channels]), got one "
            f"{type(images).__name__}; write [picture]"
        )
    return images


def checked_outputs(outputs, top: int, known=OUTPUTS) -> tuple[str, ...]:
    """An output filter for a signature that has the `known` outputs; empty for all of them.

    Raises:
      SettingsError: for outputs that there are not, or that `top` cannot do without.
    """
    if top < 1:
        raise SettingsError(f"top must be above 0, got {top}")
    if outputs is None:
        return ()
    outputs = tuple(dict.fromkeys(outputs))
    unknown = sorted(set(outputs) - set(known))
    if unknown or not outputs:
        raise SettingsError(f"outputs must be some of {known}, got {unknown or 'none'}")
    missing = sorted({"labels", "class_ids", "probabilities"} - set(outputs))
    if top > 1 and missing:
        raise SettingsError(f"top above 1 needs the outputs {missing}, which are left out")
    return outputs
