"""Classifies pictures on a model server: python -m serving.client --model=gaternet PICTURE...

Speaks gRPC, or REST, with TensorFlow Serving and with our local server. Needs grpcio, protobuf,
numpy and Pillow; imports neither TensorFlow nor tensorflow-serving-api, which would take seconds
and 500 MB. docs/client.md shows the library and the command.
"""

if __name__ == "__main__":
    # Before the imports below: --help does without them.
    import sys

    from serving.client_command import main

    sys.exit(main())

import os
from collections.abc import AsyncIterator, Iterable, Iterator

from serving.client_answers import (
    Answer,
    Candidate,
    Metadata,
    Prediction,
    Signature,
    TensorSpec,
    VersionStatus,
)
from serving.client_errors import (
    ClientError,
    DeadlineError,
    ModelError,
    PictureError,
    ServerError,
    SettingsError,
    UnavailableError,
    UnknownModelError,
)
from serving.client_questions import Choices
from serving.client_rules import Rules
from serving.pictures import MAX_PIXELS, Limits, check_picture, decode
from serving.transport import (
    Retries,
    Settings,
    Tls,
    Transport,
    async_transport,
    blocking_transport,
    check_type,
    run,
)

__all__ = [
    "AsyncGaterNetClient",
    "Candidate",
    "ClientError",
    "DeadlineError",
    "GaterNetClient",
    "Metadata",
    "ModelError",
    "PictureError",
    "Prediction",
    "ServerError",
    "SettingsError",
    "Signature",
    "TensorSpec",
    "Tls",
    "UnavailableError",
    "UnknownModelError",
    "VersionStatus",
    "check_picture",
    "decode",
]

Picture = str | os.PathLike | bytes | object
"""A path, encoded bytes, a PIL image, or a uint8 array [height, width] or [height, width, c]."""


class _Client:
    """What both clients are made of; `GaterNetClient` documents the arguments."""

    def __init__(
        self,
        target: str,
        model: str,
        timeout: float = 10.0,
        version: int | None = None,
        *,
        label: str | None = None,
        tls: Tls | bool | None = None,
        attempts: int = 5,
        in_flight: int = 4,
        batch_size: int = 32,
        batch_bytes: int = 8 * 2**20,
        max_message_bytes: int = 64 * 2**20,
        max_pixels: int = MAX_PIXELS,
        resize: int | None = None,
    ):
        check_type("attempts", attempts, int)
        check_type("batch_size", batch_size, int)
        check_type("batch_bytes", batch_bytes, int)
        if not 1 <= attempts <= 5:
            raise SettingsError(f"attempts must be 1 to 5, as gRPC has it, got {attempts}")
        tls = Tls() if tls is True else tls or None
        settings = Settings(
            target, timeout, in_flight, max_message_bytes, tls, Retries(attempts=attempts)
        )
        # A request is a picture and some names around it; in JSON, base64 makes it larger.
        room = max_message_bytes * 3 // 4 if settings.is_rest else max_message_bytes
        names = 2**10 + 16 * batch_size
        if room <= names:
            raise SettingsError(
                f"max_message_bytes must leave room for pictures beside {names:,} bytes for the "
                f"names around {batch_size} of them, got {max_message_bytes}; ask less at once "
                "(--batch_size)"
            )
        limits = Limits(pixels=max_pixels, bytes=room - names)
        choices = Choices(
            model, version, label, batch_size, min(batch_bytes, limits.bytes), resize, limits
        )
        self.target = target
        self.model = model
        self._rules = Rules(self._transport(settings), settings, choices)

    @staticmethod
    def _transport(settings: Settings) -> Transport:
        raise NotImplementedError


class GaterNetClient(_Client):
    """Classifies pictures on a model server over one channel; use it in a `with` block.

    Threads may share it. A forked process may go on using it, if no call was under way when it was
    forked.

    Args:
      target: HOST:PORT of the server's gRPC interface, or an address as gRPC names it, or
        http://HOST:PORT of its REST interface (https:// behind something that speaks TLS).
      model: name of the model.
      timeout: seconds that each request may take, its retries included.
      version: number of the version to ask; None for the server's choice, the newest.
      label: or the label of one, such as "stable".
      tls: `Tls(...)`, or True for TLS with the well-known authorities; None for plaintext.
      attempts: how often a request is sent at most, if the server is unavailable or exhausted.
      in_flight: requests under way at once, over all threads or tasks that use the client.
      batch_size: pictures in a request.
      batch_bytes: bytes of pictures in a request, unless a single one has more. Times `in_flight`,
        and one picture more, are held at once.
      max_message_bytes: the largest request and the largest answer.
      max_pixels: a picture with more is refused before it is decoded or sent.
      resize: for `gates` of pictures of any size: the model's `preprocessing.resize` (in the
        version's assets.extra/gaternet.json), which a server does not tell. None takes pictures of
        the network's size only, and as they are.

    Raises:
      SettingsError: for an argument that cannot be.
    """

    @staticmethod
    def _transport(settings):
        return blocking_transport(settings)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self) -> None:
        """Closes the channel, and gives up what is under way; no call can be made after."""
        run(self._rules.transport.close())

    def classify(
        self, images: Iterable[Picture], top: int = 1, outputs: Iterable[str] | None = None
    ) -> list[Answer]:
        """Classifies pictures of any size and number.

        Args:
          images: paths, encoded bytes (JPEG, PNG, BMP, GIF), PIL images and uint8 arrays, in any
            mix. Images and arrays are sent as PNG, so that the server preprocesses all alike, as
            evaluation does. EXIF orientation is ignored, as there.
          top: how many of the most probable classes `Prediction.top` has. More than one costs a
            request more for each version, for the labels.
          outputs: which of labels, class_ids and probabilities the server shall send; all.

        Returns:
          A `Prediction` for each picture, in order, or the `PictureError` of one that is broken.

        Raises:
          ClientError: when the server does not answer, or knows no such model; `stream` gives what
            was answered until then.
        """
        return list(self.stream(images, top, outputs))

    def stream(
        self, images: Iterable[Picture], top: int = 1, outputs: Iterable[str] | None = None
    ) -> Iterator[Answer]:
        """Like `classify`, one answer after another; reads `images` not far ahead of them."""
        return _iterate(self._rules.classify(images, top, outputs))

    def gates(
        self, images: Iterable[Picture], outputs: Iterable[str] | None = None
    ) -> list[Answer]:
        """Like `classify`, with the state of every gate in `Prediction.gates`.

        The server takes pixels of the network's size for that, so pictures are decoded here. If the
        client was told `resize`, all are scaled as evaluation does it, but for one grey level in a
        few hundredths of the pixels where both round; otherwise they must have that size, and are
        taken as they are.
        """
        return list(self.stream_gates(images, outputs))

    def stream_gates(
        self, images: Iterable[Picture], outputs: Iterable[str] | None = None
    ) -> Iterator[Answer]:
        """Like `gates`, one answer after another."""
        return _iterate(self._rules.gates(images, outputs))

    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the pictures that the network takes."""
        return run(self._rules.input_shape())

    def status(self) -> dict[int, str]:
        """State of each version the server knows, for example {1: "AVAILABLE"}.

        Those are all of them, also if the client asks one version only.
        """
        return {one.version: one.state for one in self.statuses()}

    def statuses(self) -> list[VersionStatus]:
        """The same with the reasons of versions that failed; newest first."""
        return run(self._rules.statuses())

    def metadata(self) -> Metadata:
        """The model's signatures with their inputs and outputs."""
        return run(self._rules.metadata())

    def wait_ready(self, version: int | None = None, timeout: float = 60.0) -> int:
        """Waits until a version is AVAILABLE, while a server starts or a version is rolled out.

        Args:
          version: which, also if the client asks another; None for the one that it asks, or any.
          timeout: seconds, 0 or more.

        Returns:
          Its number.

        Raises:
          DeadlineError: when it is not in time.
          ModelError: when it failed to load, after which the server does not try it again.
        """
        return run(self._rules.wait_ready(version, timeout))


class AsyncGaterNetClient(_Client):
    """`GaterNetClient` for asyncio, in an `async with` block: the same methods, to be awaited.

    `stream` and `stream_gates` are asynchronous iterators. Files are read and pictures encoded in
    threads.
    """

    @staticmethod
    def _transport(settings):
        return async_transport(settings)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exception):
        await self.close()

    async def close(self) -> None:
        """See `GaterNetClient.close`."""
        await self._rules.transport.close()

    async def classify(
        self, images: Iterable[Picture], top: int = 1, outputs: Iterable[str] | None = None
    ) -> list[Answer]:
        """See `GaterNetClient.classify`."""
        return [answer async for answer in self.stream(images, top, outputs)]

    def stream(
        self, images: Iterable[Picture], top: int = 1, outputs: Iterable[str] | None = None
    ) -> AsyncIterator[Answer]:
        """See `GaterNetClient.stream`."""
        return self._rules.classify(images, top, outputs)

    async def gates(
        self, images: Iterable[Picture], outputs: Iterable[str] | None = None
    ) -> list[Answer]:
        """See `GaterNetClient.gates`."""
        return [answer async for answer in self.stream_gates(images, outputs)]

    def stream_gates(
        self, images: Iterable[Picture], outputs: Iterable[str] | None = None
    ) -> AsyncIterator[Answer]:
        """See `GaterNetClient.stream_gates`."""
        return self._rules.gates(images, outputs)

    async def input_shape(self) -> tuple[int, int, int]:
        """See `GaterNetClient.input_shape`."""
        return await self._rules.input_shape()

    async def status(self) -> dict[int, str]:
        """See `GaterNetClient.status`."""
        return {one.version: one.state for one in await self.statuses()}

    async def statuses(self) -> list[VersionStatus]:
        """See `GaterNetClient.statuses`."""
        return await self._rules.statuses()

    async def metadata(self) -> Metadata:
        """See `GaterNetClient.metadata`."""
        return await self._rules.metadata()

    async def wait_ready(self, version: int | None = None, timeout: float = 60.0) -> int:
        """See `GaterNetClient.wait_ready`."""
        return await self._rules.wait_ready(version, timeout)


def _iterate(answers):
    """A blocking iterator over an asynchronous one of a blocking transport."""
    try:
        while True:
            try:
                yield run(answers.__anext__())
            except StopAsyncIteration:
                return
    finally:
        run(answers.aclose())
