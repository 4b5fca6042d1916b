"""What a client does, whatever carries its requests: batches, answers, errors, waiting.

One implementation for `GaterNetClient` and `AsyncGaterNetClient`: both run these coroutines, the
first on a transport whose methods never suspend.
"""

import collections
import dataclasses
import itertools
import re
import time
from collections.abc import AsyncIterator, Iterable, Iterator

from google.protobuf.message import DecodeError

from serving import client_errors as errors
from serving import pictures, wire
from serving.client_answers import (
    Answer,
    Metadata,
    VersionStatus,
    prediction,
    signatures,
    version_status,
)
from serving.client_errors import REMEDY, TOO_LARGE, UNKNOWN_LABEL, explained
from serving.client_questions import (
    CLASSIFICATION,
    OUTPUTS,
    Choices,
    Question,
    checked_images,
    checked_outputs,
)
from serving.transport import METADATA, PREDICT, STATUS, CallError, Settings, Transport

POLL_SECONDS = 0.5
# Even who does not want to wait gives a server so many seconds to say how it is.
SHORTEST_CALL = 0.1
# INVALID_ARGUMENT for the request as such, whatever pictures are in it.
NOT_A_PICTURES = (
    *("input size does not match signature", "Signature input alias", "Expects arg["),
    *("output tensor alias not found", "duplicate output tensor alias", "Missing ModelSpec"),
    *("ModelSpec has no name", "Missing named input", "Malformed request"),
)
TOO_MANY_ROWS = re.compile(r"Task size \d+ is larger than maximum input batch size (\d+)")
# What a batch of a server's is told when requests of several callers do not fit together.
MIXED_SHAPES = "from different tasks have different shapes"
# In what an operation of a graph says.
KERNEL = "{{node "
ANSWER_TOO_LARGE = f"CLIENT: Received message {TOO_LARGE}"
MESSAGE_SIZES = re.compile(rf"{TOO_LARGE} \((\d+) vs\. (\d+)\)")
# A version may be unloaded between an answer and what is asked of it next.
VERSION_ATTEMPTS = 3
_END = object()


class Rules:
    """A client's methods as coroutines; `GaterNetClient` documents them."""

    def __init__(self, transport: Transport, settings: Settings, choices: Choices):
        self.transport = transport
        self.settings = settings
        self.choices = choices
        # What a server takes at once; learnt from its refusals.
        self._rows = choices.batch_size
        self._bytes = choices.batch_bytes
        self._labels: dict[int, list[str]] = {}

    async def classify(self, images, top, outputs) -> AsyncIterator[Answer]:
        """An answer for every picture, in order."""
        limits = self.choices.limits
        question = Question(
            "image_bytes",
            lambda image: pictures.encoded(image, limits),
            wire.string_tensor,
            top,
            checked_outputs(outputs, top, CLASSIFICATION),
        )
        async for answer in self._answers(checked_images(images), question):
            yield answer

    async def gates(self, images, outputs) -> AsyncIterator[Answer]:
        """Likewise with gates."""
        outputs = checked_outputs(outputs, 1)
        images = iter(checked_images(images))
        first = next(images, _END)
        if first is _END:
            return
        shape = await self.input_shape()
        choices = self.choices
        question = Question(
            "gates",
            lambda image: pictures.pixels(image, shape, choices.resize, choices.limits),
            lambda batch: wire.uint8_tensor(b"".join(batch), (len(batch), *shape)),
            outputs=outputs,
        )
        async for answer in self._answers(itertools.chain([first], images), question):
            yield answer

    async def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of what the network takes."""
        found = (await self.metadata()).signatures
        if "gates" not in found:
            raise errors.ModelError(
                f"the model must have a signature 'gates', and '{self.choices.model}' at "
                f"{self.settings.target} has {sorted(found)}; {REMEDY}"
            )
        images = found["gates"].inputs.get("images")
        if images is None or images.shape is None or len(images.shape) != 4:
            raise errors.ModelError(
                f"the signature 'gates' of '{self.choices.model}' must take images of shape "
                f"[batch, height, width, channels], and takes {found['gates'].inputs}; {REMEDY}"
            )
        _, height, width, channels = images.shape
        return height, width, channels

    async def metadata(self, timeout: float | None = None) -> Metadata:
        """The signatures of the model."""
        request = wire.GetModelMetadataRequest(
            model_spec=self.model_spec(), metadata_field=["signature_def"]
        )
        answer = await self._call(METADATA, request, timeout)
        try:
            found = signatures(answer)
        except DecodeError as error:
            raise self._not_ours(f"its metadata are odd ({error})") from error
        return Metadata(self.choices.model, answer.model_spec.version.value, found)

    async def statuses(self, timeout: float | None = None) -> list[VersionStatus]:
        """Every version that the server knows, newest first."""
        request = wire.GetModelStatusRequest(model_spec=wire.ModelSpec(name=self.choices.model))
        answer = await self._call(STATUS, request, timeout)
        found = [version_status(one) for one in answer.model_version_status]
        return sorted(found, key=lambda one: -one.version)

    async def wait_ready(self, version, timeout) -> int:
        """The number of the version that is available."""
        if not timeout >= 0:
            raise errors.SettingsError(
                "the seconds to wait for a version must be 0 or above (--wait_ready), got "
                f"{timeout}"
            )
        deadline = time.monotonic() + timeout
        wanted = self.choices.version if version is None else version
        reason: object = None
        while True:
            # An answer that would come too late is not waited for.
            remaining = max(deadline - time.monotonic(), SHORTEST_CALL)
            patience = min(self.settings.timeout, remaining)
            try:
                if wanted is None and self.choices.label is not None:
                    return (await self.metadata(patience)).version
                statuses = await self.statuses(patience)
                found = [one for one in statuses if wanted in (None, one.version)]
                for one in found:
                    if one.state == "AVAILABLE":
                        return one.version
                if found and all(one.state == "END" and one.error for one in found):
                    raise errors.ModelError(
                        f"version {found[0].version} of '{self.choices.model}' failed to load at "
                        f"{self.settings.target} and is not tried again ({found[0].error}); "
                        "publish a version with a higher number"
                    )
                states = [f"version {one.version} is {one.state}" for one in found]
                reason = ", ".join(states) or "it has no such version"
            except errors.DeadlineError:
                # What it said before tells more.
                reason = reason or "the server did not answer"
            except (errors.UnavailableError, errors.UnknownModelError) as error:
                reason = error
            pause = min(POLL_SECONDS, deadline - time.monotonic())
            if pause <= 0:
                what = "a version" if wanted is None else f"version {wanted}"
                raise errors.DeadlineError(
                    f"{what} of '{self.choices.model}' must become available at "
                    f"{self.settings.target} within {timeout} s, and did not: {reason}"
                )
            await self.transport.sleep(pause)

    async def _answers(self, images: Iterable, question: Question) -> AsyncIterator[Answer]:
        """Sends batches ahead of the one whose answers are read, and keeps the order."""
        pending: collections.deque = collections.deque()
        try:
            async for batch, last in self._batches(images, question):
                handle = None
                # A batch that is alone is sent without a handle, which costs less.
                if pending or not last:
                    handle = await self._start(question, batch)
                pending.append((batch, handle))
                if len(pending) >= self.settings.in_flight:
                    for answer in await self._finish(question, *pending.popleft()):
                        yield answer
            while pending:
                for answer in await self._finish(question, *pending.popleft()):
                    yield answer
        finally:
            for _, handle in pending:
                if handle is not None:
                    self.transport.cancel(handle)

    async def _batches(self, images, question):
        """Batches that are ready to be sent, each with whether it is the last.

        Instead of pictures that cannot be sent they hold their errors.
        """
        images = iter(images)
        waiting: collections.deque = collections.deque()

        def entries():
            while waiting:
                yield _entry(waiting.popleft(), question.prepare)

        pieces = self._pieces(entries())
        while True:
            # One more than fit into a batch shows that it is not the last.
            more = max(0, self._rows + 1 - len(waiting))
            waiting.extend(itertools.islice(images, more))
            found = await self.transport.offload(next, pieces, None)
            if found is None:
                return
            yield found

    def _pieces(self, entries: Iterable) -> Iterator[tuple[list, bool]]:
        """Cuts entries into as many as may be sent at once, each time with whether it is the last.

        No piece has too many bytes, unless a single picture has. Of `entries` only one more is read
        before a piece is given: the one that has no room in it.
        """
        piece: list = []
        size = 0
        for entry in entries:
            length = len(entry) if isinstance(entry, bytes) else 0
            if piece and (len(piece) >= self._rows or size + length > self._bytes):
                yield piece, False
                piece, size = [], 0
            piece.append(entry)
            size += length
        if piece:
            yield piece, True

    async def _start(self, question, batch):
        good = _good(batch)
        return await self.transport.start(PREDICT, self._request(question, good)) if good else None

    async def _finish(self, question, batch, handle) -> list[Answer]:
        good = _good(batch)
        answers = iter(await self._ask(question, good, handle) if good else [])
        return [
            entry if isinstance(entry, errors.PictureError) else next(answers) for entry in batch
        ]

    async def _ask(self, question, good, handle=None) -> list[Answer]:
        """The answers for pictures that are sent together, or in parts if they are refused."""
        try:
            if handle is None:
                response = await self.transport.call(PREDICT, self._request(question, good))
            else:
                response = await self.transport.wait(handle)
        except CallError as error:
            return await self._ask_apart(question, good, error)
        return await self._predictions(question, good, response)

    async def _ask_alone(self, question, good) -> list[Answer]:
        """The answers for pictures that a server then does not put together with other callers'.

        A server that batches tells all requests of a batch what is wrong with one of them. It
        batches requests for all outputs of a signature, and runs those for some of them by
        themselves: the outputs are asked for in two parts, the second one of the same version.
        """
        wanted = question.outputs or question.all_outputs
        for attempt in range(1, 1 + VERSION_ATTEMPTS):
            response = None
            try:
                for part in (wanted[:1], wanted[1:]):
                    request = self._request(dataclasses.replace(question, outputs=part), good)
                    if response is None:
                        response = await self.transport.call(PREDICT, request)
                        continue
                    if response.model_spec.HasField("version"):
                        request.model_spec.version.value = response.model_spec.version.value
                    other = await self.transport.call(PREDICT, request)
                    for name, tensor in other.outputs.items():
                        response.outputs[name].CopyFrom(tensor)
            except CallError as error:
                unloaded = response is not None and error.code == "NOT_FOUND"
                if not unloaded or attempt == VERSION_ATTEMPTS:
                    return await self._ask_apart(question, good, error, alone=True)
            else:
                break
        return await self._predictions(question, good, response)

    async def _may_be_others(self, question, good, error) -> bool:
        """Whether a server refused a request for what another caller's has in the same batch.

        Only requests for all outputs, as all are over REST, are in batches. What a kernel says of a
        picture that our own decoder reads to its end was said of another.
        """
        some = question.outputs and set(question.outputs) != set(question.all_outputs)
        if some and not self.settings.is_rest:
            return False
        if MIXED_SHAPES in error.details:
            return True
        if len(good) > 1 or KERNEL not in error.details or not _concerns_pictures(error):
            return False
        if question.signature == "gates":
            return True
        return await self.transport.offload(pictures.can_be_decoded, good[0], self.choices.limits)

    async def _ask_apart(self, question, good, error, alone=False) -> list[Answer]:
        note = ""
        if not alone and await self._may_be_others(question, good, error):
            if not self.settings.is_rest:
                return await self._ask_alone(question, good)
            # REST has no output filter, and so no way to ask alone.
            note = " (perhaps for a picture of another caller's; ask again)"
        limit = TOO_MANY_ROWS.search(error.details)
        rows = max(1, int(limit[1])) if limit else len(good)
        # Later batches, too, are made as small as a server, or the largest message, wants them.
        if rows < len(good):
            self._rows = min(self._rows, rows)
        elif len(good) == 1 or not _concerns_pictures(error):
            refusal = self.refusal(error)
            if isinstance(refusal, errors.PictureError):
                return [self._refused(error, note)]
            raise refusal from error
        elif ANSWER_TOO_LARGE in error.details:
            self._rows = min(self._rows, len(good) // 2)
        elif TOO_LARGE in error.details:
            self._bytes = min(self._bytes, self._fewer_bytes(good, error))
        parts = [part for part, _ in self._pieces(good)]
        if len(parts) == 1:
            # A server does not say which picture it refuses.
            half = (len(good) + 1) // 2
            parts = [good[:half], good[half:]]
        return [answer for part in parts for answer in await self._ask(question, part)]

    def _fewer_bytes(self, good, error):
        """How many bytes of pictures to send at once, when those of `good` are too many."""
        sent = sum(map(len, good))
        sizes = MESSAGE_SIZES.search(error.details)
        # JSON is larger than the pictures in it, and a proxy may not say how much it takes.
        if sizes is None or self.settings.is_rest:
            return max(1, sent // 2)
        return max(1, sent - (int(sizes[1]) - int(sizes[2])))

    def refusal(self, error: CallError) -> errors.ClientError:
        """What it means that a request with one picture, or the same ones, is never answered."""
        if not _concerns_pictures(error) or ANSWER_TOO_LARGE in error.details:
            return self.explained(error)
        return self._refused(error)

    def _refused(self, error, note=""):
        return errors.PictureError(
            f"the server at {self.settings.target} refused the request{note}: {error.details}",
            error.code,
        )

    async def _predictions(self, question, good, response) -> list[Answer]:
        for _ in range(VERSION_ATTEMPTS):
            labels = None
            try:
                if question.top > 1:
                    labels = await self._labels_of(response.model_spec)
                return self._assembled(question, len(good), response, labels)
            except errors.UnknownModelError:
                response = await self._call(PREDICT, self._request(question, good))
        raise errors.UnknownModelError(
            f"the labels of the version of '{self.choices.model}' that answered are needed for "
            f"top, and {self.settings.target} unloaded it {VERSION_ATTEMPTS} times meanwhile; "
            "ask again"
        )

    async def _labels_of(self, spec) -> list[str]:
        """The labels of a version in the order of their numbers.

        Its signature `classify` lists them, even for "no picture".
        """
        version = spec.version.value if spec.HasField("version") else None
        if version in self._labels:
            return self._labels[version]
        asked = wire.ModelSpec(name=self.choices.model, signature_name="classify")
        if version is not None:
            asked.version.value = version
        elif self.choices.label is not None:
            asked.version_label = self.choices.label
        request = wire.PredictRequest(
            model_spec=asked,
            inputs={"inputs": wire.string_tensor([b""])},
            output_filter=["classes"],
        )
        answer = await self._call(PREDICT, request)
        try:
            (row,) = wire.tensor_rows(answer.outputs["classes"])
            labels = [label.decode() for label in row]
        except (AttributeError, TypeError, ValueError) as error:
            raise self._not_ours(f"its signature 'classify' gave no classes ({error})") from error
        if version is not None:
            self._labels[version] = labels
        return labels

    def _assembled(self, question, count, response, labels) -> list[Answer]:
        """The answers that a response has for `count` pictures."""
        wanted = question.outputs or CLASSIFICATION
        missing = sorted(set(wanted) - set(response.outputs))
        if missing:
            raise errors.ModelError(
                "the model must answer with class_ids, labels and probabilities, and "
                f"'{self.choices.model}' at {self.settings.target} gave no "
                f"{' and '.join(missing)}; {REMEDY}"
            )
        rows: dict[str, list] = {}
        for name in OUTPUTS:
            rows[name] = [None] * count
            if name in response.outputs:
                try:
                    rows[name] = wire.tensor_rows(response.outputs[name])
                except ValueError as error:
                    raise self._not_ours(f"its output {name} is odd ({error})") from error
            if len(rows[name]) != count:
                raise self._not_ours(f"it gave {len(rows[name])} {name} for {count} pictures")
        spec = response.model_spec
        version = spec.version.value if spec.HasField("version") else None
        found = zip(*(rows[name] for name in OUTPUTS), strict=True)
        try:
            return [prediction(row, version, question.top, labels) for row in found]
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise self._not_ours(f"its outputs do not fit together ({error})") from error

    def _request(self, question, good):
        return wire.PredictRequest(
            model_spec=self.model_spec(question.signature),
            inputs={question.input_name: question.tensor(good)},
            output_filter=question.outputs,
        )

    def model_spec(self, signature=""):
        """Which model a request is for."""
        spec = wire.ModelSpec(name=self.choices.model, signature_name=signature)
        if self.choices.version is not None:
            spec.version.value = self.choices.version
        elif self.choices.label is not None:
            spec.version_label = self.choices.label
        return spec

    async def _call(self, method, request, timeout=None):
        try:
            return await self.transport.call(method, request, timeout)
        except CallError as error:
            raise self.explained(error) from error

    def _not_ours(self, what):
        return errors.ModelError(
            f"the model '{self.choices.model}' at {self.settings.target} must be one of ours, and "
            f"{what}; {REMEDY}"
        )

    def explained(self, error: CallError) -> errors.ClientError:
        """What a failed call means for the caller."""
        choices, settings = self.choices, self.settings
        which = f"'{choices.model}'"
        if choices.version is not None:
            which += f" version {choices.version}"
        elif choices.label is not None:
            which += f" label '{choices.label}'"
        return explained(error, settings, which)


def _concerns_pictures(error):
    """Whether fewer pictures, or others, could have been answered."""
    if error.code == "RESOURCE_EXHAUSTED":
        return TOO_LARGE in error.details
    return error.code == "INVALID_ARGUMENT" and not error.details.startswith(
        (*NOT_A_PICTURES, UNKNOWN_LABEL)
    )


def _entry(image, prepare) -> bytes | errors.PictureError:
    """A picture that is ready to be sent, or why it cannot be."""
    try:
        return prepare(image)
    except errors.PictureError as error:
        return error


def _good(batch):
    return [entry for entry in batch if isinstance(entry, bytes)]
