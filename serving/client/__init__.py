"""Classifies pictures on a model server over gRPC, without TensorFlow.

    with GaterNetClient("localhost:8500", model="gaternet") as client:
        for answer in client.classify(["cat.png"]):
            print(answer.label, answer.probability)

The server is TensorFlow Serving or `python -m serving.server`, the model an export of
`python -m export.main`. docs/client.md describes the library and the command.
"""

import collections
import contextlib
import dataclasses
import os
import time
from collections.abc import Iterable, Iterator

import grpc

from serving import wire
from serving.client.channel import (
    ERRORS,
    REMEDY,
    ClientError,
    PictureError,
    Tls,
    UnavailableError,
    UnknownModelError,
    open_channel,
)
from serving.client.pictures import encode

__all__ = [
    "ClientError",
    "GaterNetClient",
    "PictureError",
    "Prediction",
    "Tls",
    "UnavailableError",
    "UnknownModelError",
]

BATCH_BYTES = 8 * 2**20
"""A request with so many bytes of pictures takes no further one."""
NO_PICTURE = b""
"""Every export answers it without an error, so it shows whether a model answers at all."""
POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for one picture.

    Attributes:
      label: the most probable class.
      class_id: its number.
      probability: its probability.
      version: the version of the model that answered.
      gates: 0 or 1 for each gate; None unless they were asked for.
      top: the most probable classes as (label, probability), as many as were asked for.
    """

    label: str
    class_id: int
    probability: float
    version: int
    gates: tuple[int, ...] | None = None
    top: tuple[tuple[str, float], ...] = ()


Answer = Prediction | PictureError


class GaterNetClient:
    """Classifies pictures over one channel; use it in a `with` block. Threads may share it.

    Args:
      target: HOST:PORT of the server's gRPC interface. Requests take turns among the addresses of
        HOST, and of ipv4:ADDRESS:PORT,ADDRESS:PORT.
      model: name of the model.
      version: number of the version to ask; None for the server's choice, the newest.
      label: or the label of a version, such as "stable".
      timeout: seconds that each request may take, retries included.
      batch_size: pictures in a request, at most.
      in_flight: requests under way at once, at most, in each call of `classify`, `gates`, `stream`.
      tls: `Tls(...)`, or None for plaintext.

    Raises:
      ValueError: for an argument out of range, a version and a label at once, or a wrong TLS file.
    """

    def __init__(
        self,
        target: str,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 10.0,
        batch_size: int = 32,
        in_flight: int = 4,
        tls: Tls | None = None,
    ):
        if not (timeout > 0 and batch_size > 0 and in_flight > 0):
            raise ValueError(
                "timeout, batch_size and in_flight must be above 0, got "
                f"{timeout}, {batch_size} and {in_flight}"
            )
        if version is not None and label is not None:
            raise ValueError(f"version {version} and label '{label}' exclude each other")
        self.target, self.model, self.version, self.label = target, model, version, label
        self.timeout, self.batch_size, self.in_flight = timeout, batch_size, in_flight
        self._model_spec = wire.ModelSpec(name=model, version_label=label)
        if version is not None:
            self._model_spec.version.value = version
        self._channel = open_channel(target, tls)
        self._predict = self._method("PredictionService/Predict", wire.PredictResponse)
        self._get_status = self._method("ModelService/GetModelStatus", wire.GetModelStatusResponse)
        self._labels: dict[int, list[str]] = {}

    def _method(self, name, response):
        return self._channel.unary_unary(
            f"/tensorflow.serving.{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=response.FromString,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self) -> None:
        """Closes the channel and gives up the requests under way."""
        self._channel.close()

    def classify(self, images: Iterable, top: int = 1) -> list[Answer]:
        """Classifies pictures of any size and number.

        Args:
          images: paths, encoded bytes (JPEG, PNG, GIF, BMP, WebP), PIL images and uint8 arrays
            [height, width] or [height, width, 1, 3 or 4], in any mix. EXIF orientation is ignored,
            as in training and evaluation.
          top: number of classes in `Prediction.top`. More than 1 costs one request more for each
            version of the model.

        Returns:
          For each picture, in order, a `Prediction`, or the `PictureError` of a broken picture.

        Raises:
          ClientError: when the server does not answer, or has no such model; `stream` gives the
            answers until then.
        """
        return list(self.stream(images, top))

    def gates(self, images: Iterable, top: int = 1) -> list[Answer]:
        """Like `classify`, with the state of every gate in `Prediction.gates`."""
        return list(self.stream(images, top, gates=True))

    def stream(self, images: Iterable, top: int = 1, gates: bool = False) -> Iterator[Answer]:
        """Like `classify` or `gates`, but yields one answer after another.

        Reads `images` only as far ahead as requests are in flight.
        """
        if isinstance(images, str | bytes | os.PathLike) or getattr(images, "ndim", 4) in (2, 3):
            raise TypeError("pictures must come in a list, got a single one; write [picture]")
        if top < 1:
            raise ValueError(f"top must be above 0, got {top}")
        signature = "gates_bytes" if gates else "image_bytes"
        pending: collections.deque = collections.deque()
        batch: list[bytes | PictureError] = []
        size = 0
        try:
            for image in images:
                picture = encode(image)
                batch.append(picture)
                size += len(picture) if isinstance(picture, bytes) else 0
                if len(batch) == self.batch_size or size >= BATCH_BYTES:
                    pending.append((batch, self._send(signature, batch)))
                    batch, size = [], 0
                    if len(pending) == self.in_flight:
                        yield from self._answers(signature, top, *pending.popleft())
            pending.append((batch, self._send(signature, batch)))
            while pending:
                yield from self._answers(signature, top, *pending.popleft())
        finally:
            for _, call in pending:
                if call is not None:
                    call.cancel()

    def _send(self, signature, batch, version=None, timeout=None):
        """Sends the pictures of a batch; returns gRPC's future of the response."""
        pictures = [entry for entry in batch if isinstance(entry, bytes)]
        if not pictures:
            # A request without pictures would hang in a server that batches.
            return None
        tensor = wire.Tensor(
            dtype=wire.DT_STRING,
            tensor_shape={"dim": [{"size": len(pictures)}]},
            string_val=pictures,
        )
        name = "inputs" if signature == "classify" else "image_bytes"
        request = wire.PredictRequest(model_spec=self._model_spec, inputs={name: tensor})
        request.model_spec.signature_name = signature
        if version is not None:
            request.model_spec.version.value = version
        return self._predict.future(request, timeout=timeout or self.timeout)

    def _answers(self, signature, top, batch, call) -> list[Answer]:
        """Returns the answers for a batch, whose pictures were sent in `call`."""
        if call is None:
            return batch
        try:
            response = call.result()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
                raise self._client_error(error) from error
            if len(batch) > 1:
                # The server does not say which picture it refuses.
                return [
                    answer
                    for entry in batch
                    for answer in self._answers(
                        signature, top, [entry], self._send(signature, [entry])
                    )
                ]
            # If the model refuses this too, the picture is not to blame.
            self._result(self._send(signature, [NO_PICTURE]))
            return [PictureError(f"the server refused it ({error.details()})", error.code())]
        answers = list(batch)
        places = [place for place, entry in enumerate(batch) if isinstance(entry, bytes)]
        try:
            for place, prediction in zip(places, self._predictions(response, top), strict=True):
                answers[place] = prediction
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ClientError(
                f"model '{self.model}' at {self.target} must answer with labels, class_ids and "
                f"probabilities of each picture, and does not ({error!r}); {REMEDY}"
            ) from error
        return answers

    def _predictions(self, response, top) -> Iterator[Prediction]:
        version = response.model_spec.version.value
        rows = {name: wire.tensor_rows(tensor) for name, tensor in response.outputs.items()}
        gates = rows.get("gates", [None] * len(rows["labels"]))
        for label, class_id, probabilities, on in zip(
            rows["labels"], rows["class_ids"], rows["probabilities"], gates, strict=True
        ):
            name, probability = label.decode(), probabilities[class_id]
            best = [(name, probability)]
            if top > 1:
                pairs = zip(self._labels_of(version), probabilities, strict=True)
                best = sorted(pairs, key=lambda pair: -pair[1])[:top]
            on = None if on is None else tuple(on)
            yield Prediction(name, class_id, probability, version, on, tuple(best))

    def _labels_of(self, version) -> list[str]:
        """Returns all labels of a version, which its signature `classify` lists."""
        if version not in self._labels:
            response = self._result(self._send("classify", [NO_PICTURE], version))
            (labels,) = wire.tensor_rows(response.outputs["classes"])
            self._labels[version] = [label.decode() for label in labels]
        return self._labels[version]

    def status(self) -> dict[int, str]:
        """Returns the state of each version of the model, whichever the client asks.

        For example {2: "AVAILABLE", 1: "END"}; newest first. The reason why a version failed to
        load follows its state: "END: ...".
        """
        try:
            return self._states()
        except grpc.RpcError as error:
            raise self._client_error(error) from error

    def _states(self) -> dict[int, str]:
        request = wire.GetModelStatusRequest(model_spec=wire.ModelSpec(name=self.model))
        response = self._get_status(request, timeout=self.timeout)
        states = {}
        for entry in sorted(response.model_version_status, key=lambda entry: -entry.version):
            state = wire.ModelVersionStatus.State.Name(entry.state)
            reason = entry.status.error_message
            states[entry.version] = f"{state}: {reason}" if reason else state
        return states

    def wait_ready(self, timeout: float = 60.0) -> int:
        """Waits until the model answers, while a server starts or loads a version.

        Returns:
          The number of the version that answered.

        Raises:
          UnavailableError: when it does not answer within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            remaining = deadline - time.monotonic()
            seconds = min(self.timeout, max(remaining, POLL_SECONDS))
            try:
                call = self._send("image_bytes", [NO_PICTURE], timeout=seconds)
                return self._result(call).model_spec.version.value
            except (UnavailableError, UnknownModelError) as error:
                if remaining <= POLL_SECONDS:
                    raise UnavailableError(
                        f"not ready after {timeout:g} s: {error}", error.code
                    ) from error
            time.sleep(POLL_SECONDS)

    def _result(self, call):
        """Returns the response of a call that no picture can fail."""
        try:
            return call.result()
        except grpc.RpcError as error:
            raise self._client_error(error) from error

    def _client_error(self, error) -> ClientError:
        """Returns the error to raise for a failed call."""
        code = error.code()
        if code is grpc.StatusCode.INVALID_ARGUMENT and self.label is not None:
            # What servers answer for an unknown label.
            code = grpc.StatusCode.NOT_FOUND
        kind, remedy = ERRORS.get(code, (ClientError, REMEDY))
        if code is grpc.StatusCode.NOT_FOUND:
            with contextlib.suppress(grpc.RpcError):
                states = self._states()
                if "AVAILABLE" not in states.values():
                    remedy = (
                        f"the model is configured and has no version that is loaded ({states}); "
                        "publish one with a number above all of these, or wait for one that loads"
                    )
        which = f"model '{self.model}'"
        which += f" version {self.version}" if self.version is not None else ""
        which += f" label '{self.label}'" if self.label is not None else ""
        return kind(
            f"no answer from {which} at {self.target} ({error.code().name}: {error.details()}); "
            f"{remedy}",
            error.code(),
        )
