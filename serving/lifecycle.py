"""The life of a model's versions: aspired, loaded, served, unloaded, as TensorFlow Serving has it.

Pure bookkeeping, without TensorFlow, threads or files; `serving.models` acts upon it. The rules:

- a version is loaded when it is aspired for the first time, the highest one first;
- one that is no longer aspired is unloaded when an aspired one is available, or none is aspired;
- one that failed is never tried again: its number is burnt as long as it is aspired, and a request
  that aspires anew to what was given up but is not unloaded yet waits (with the policy `latest` it
  waits until a higher number is published).
"""

import dataclasses
import enum
import pathlib
from typing import Any

from serving.errors import ServingError


class State(enum.IntEnum):
    """ModelVersionStatus.State, by its numbers."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass
class Version:
    """One version that is managed.

    Attributes:
      number: its number.
      path: where it is read from.
      state: where it is in its life; END here means that it failed to load.
      aspired: whether it ought to be served.
      servable: what serves it, when it is available.
      users: requests that are using it.
    """

    number: int
    path: pathlib.Path
    state: State = State.START
    aspired: bool = True
    servable: Any = None
    users: int = 0


class Lifecycle:
    """The versions of one model."""

    def __init__(self) -> None:
        self.versions: dict[int, Version] = {}
        self.history: dict[int, tuple[State, ServingError | None]] = {}
        self._pending: dict[int, pathlib.Path] | None = None

    def aspire(self, wanted: dict[int, pathlib.Path]) -> None:
        """Says which versions ought to be served; takes effect in `settle`."""
        self._pending = dict(wanted)

    def settle(self) -> tuple[list[Version], list[Version]]:
        """Applies what was aspired.

        Returns:
          (to load, to unload): versions whose work the caller must now begin. They are already in
          the states LOADING and UNLOADING.
        """
        self._forget_the_dead()
        self._accept_pending()
        self._forget_the_dead()
        return self._to_load(), self._to_unload()

    def loaded(self, version: Version, servable) -> None:
        """A version is ready."""
        version.servable = servable
        self.move(version, State.AVAILABLE)

    def failed(self, version: Version, error: ServingError) -> None:
        """A version could not be loaded, for good."""
        self.move(version, State.END, error)

    def unloaded(self, version: Version) -> None:
        """A version is gone."""
        version.servable = None
        self.move(version, State.END)
        self.versions.pop(version.number, None)

    def move(self, version: Version, state: State, error: ServingError | None = None) -> None:
        """Notes a version's new state, for those who ask about it."""
        version.state = state
        self.history[version.number] = (state, error)

    @property
    def available(self) -> list[Version]:
        """The versions that answer, the newest first, with those that wait to be unloaded."""
        found = [one for one in self.versions.values() if one.state == State.AVAILABLE]
        return sorted(found, key=lambda one: one.number, reverse=True)

    @property
    def settled(self) -> bool:
        """Whether all that is aspired is available or has failed."""
        wanted = [one for one in self.versions.values() if one.aspired]
        return bool(wanted) and all(one.state in (State.AVAILABLE, State.END) for one in wanted)

    @property
    def failures(self) -> dict[int, ServingError]:
        """Why versions that are aspired are not available."""
        return {
            number: error
            for number, (state, error) in self.history.items()
            if state == State.END and error and number in self.versions
        }

    def _accept_pending(self):
        if self._pending is None:
            return
        wanted = self._pending
        if any(not one.aspired and one.number in wanted for one in self.versions.values()):
            return
        self._pending = None
        for one in self.versions.values():
            one.aspired = one.number in wanted
        for number in sorted(set(wanted) - set(self.versions)):
            self.versions[number] = Version(number, wanted[number])
            self.history[number] = (State.START, None)

    def _forget_the_dead(self):
        for one in list(self.versions.values()):
            if not one.aspired and one.state in (State.START, State.END):
                self.history[one.number] = (State.END, self.history[one.number][1])
                del self.versions[one.number]

    def _to_load(self):
        new = [one for one in self.versions.values() if one.aspired and one.state == State.START]
        new.sort(key=lambda one: one.number, reverse=True)
        for one in new:
            self.move(one, State.LOADING)
        return new

    def _to_unload(self):
        aspired = [one for one in self.versions.values() if one.aspired]
        if aspired and not any(one.state == State.AVAILABLE for one in aspired):
            return []
        given_up = [one for one in self.available if not one.aspired]
        for one in given_up:
            self.move(one, State.UNLOADING)
        return given_up
