"""Classifies pictures on a model server: python -m serving.client --model=gaternet PICTURE...

Speaks gRPC with TensorFlow Serving and with our local server. Needs grpcio, protobuf and Pillow;
imports neither TensorFlow nor tensorflow-serving-api, which would take seconds and 500 MB.
"""

import argparse
import dataclasses
import io
import json
import pathlib
import sys
import warnings
from collections.abc import Iterable, Sequence

import grpc
from PIL import Image

from serving import wire

FORMATS = ("JPEG", "PNG", "BMP", "GIF")
MAX_PIXELS = 50_000_000
BATCH = 32
LOOPBACK = ("localhost", "127.", "[::1]", "ipv4:127.", "ipv6:[::1]")
PREDICT = "/tensorflow.serving.PredictionService/Predict"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
REMEDY = "serve what python -m export.main wrote"


class ClientError(Exception):
    """A request that got no answer. The text says what is required, what came and what to do."""


class PictureError(ClientError):
    """A file that is not a picture that the server could decode."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for one picture. `gates` has an entry of 0 or 1 a gate, if they were asked for."""

    label: str
    class_id: int
    probability: float
    version: int
    gates: tuple[int, ...] | None = None


class GaterNetClient:
    """Classifies pictures on a model server over one channel; use it in a `with` block.

    Args:
      target: host:port of the server's gRPC interface.
      model: name of the model.
      timeout: seconds that each request may take.
      version: number of the version to ask; None for the server's choice, the newest.
    """

    def __init__(self, target: str, model: str, timeout: float = 10.0, version: int | None = None):
        self.target = target
        self.model = model
        self.timeout = timeout
        self.version = version
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        if target.startswith(LOOPBACK):
            options.append(("grpc.enable_http_proxy", 0))
        self._channel = grpc.insecure_channel(target, options)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Closes the channel."""
        self._channel.close()

    def classify(self, pictures: Sequence[bytes]) -> list[Prediction]:
        """Classifies encoded pictures (JPEG, PNG, BMP, GIF) of any size, in order.

        Raises:
          PictureError: when the server cannot decode one; the others are then lost with it.
          ClientError: when the server does not answer, or knows no such model.
        """
        return self._in_batches(
            pictures, lambda batch: self._predict("image_bytes", wire.string_tensor(batch))
        )

    def classify_with_gates(self, pictures: Sequence[bytes]) -> list[Prediction]:
        """Like `classify`, and tells the state of every gate.

        The `gates` signature takes pixels, so pictures are decoded and resized here, by Pillow. A
        picture that already has the network's size gives what `classify` gives; one that is
        resized may differ from it by a grey level here and there.
        """
        if not pictures:
            return []
        shape = self.input_shape()

        def predict(batch):
            content = b"".join(decode(picture, shape) for picture in batch)
            return self._predict("gates", wire.uint8_tensor(content, (len(batch), *shape)))

        return self._in_batches(pictures, predict)

    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the pictures that the model takes."""
        request = wire.GetModelMetadataRequest(
            model_spec=self._spec(), metadata_field=["signature_def"]
        )
        answer = self._call(METADATA, request, wire.GetModelMetadataResponse)
        signatures = wire.SignatureDefMap.FromString(answer.metadata["signature_def"].value)
        if "gates" not in signatures.signature_def:
            raise ClientError(
                f"the model must have a signature 'gates', and '{self.model}' at {self.target} has "
                f"{sorted(signatures.signature_def)}; {REMEDY}"
            )
        images = signatures.signature_def["gates"].inputs["images"]
        _, height, width, channels = (dim.size for dim in images.tensor_shape.dim)
        return height, width, channels

    def status(self) -> dict[int, str]:
        """State of each version the server knows, for example {1: "AVAILABLE"}."""
        request = wire.GetModelStatusRequest(model_spec=self._spec())
        answer = self._call(STATUS, request, wire.GetModelStatusResponse)
        names = wire.ModelVersionStatus.State
        return {found.version: names.Name(found.state) for found in answer.model_version_status}

    def _spec(self, signature=""):
        spec = wire.ModelSpec(name=self.model, signature_name=signature)
        if self.version is not None:
            spec.version.value = self.version
        return spec

    def _in_batches(self, pictures, predict):
        return [
            prediction
            for start in range(0, len(pictures), BATCH)
            for prediction in predict(pictures[start : start + BATCH])
        ]

    def _predict(self, signature, tensor):
        name = "image_bytes" if signature == "image_bytes" else "images"
        request = wire.PredictRequest(model_spec=self._spec(signature), inputs={name: tensor})
        answer = self._call(PREDICT, request, wire.PredictResponse)
        missing = sorted({"class_ids", "labels", "probabilities"} - set(answer.outputs))
        if missing:
            raise ClientError(
                f"the model must answer with class_ids, labels and probabilities, and "
                f"'{self.model}' at {self.target} gave no {' and '.join(missing)}; {REMEDY}"
            )
        outputs = {key: wire.tensor_rows(value) for key, value in answer.outputs.items()}
        class_ids = outputs["class_ids"]
        gates = outputs.get("gates", [None] * len(class_ids))
        return [
            Prediction(
                label=outputs["labels"][row].decode(),
                class_id=class_id,
                probability=outputs["probabilities"][row][class_id],
                version=answer.model_spec.version.value,
                gates=None if gates[row] is None else tuple(gates[row]),
            )
            for row, class_id in enumerate(class_ids)
        ]

    def _call(self, method, request, response):
        call = self._channel.unary_unary(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        try:
            return call(request, timeout=self.timeout)
        except grpc.RpcError as error:
            raise self._explained(error.code(), error.details()) from error

    def _explained(self, code, details):
        details = " ".join(details.split())
        if code is grpc.StatusCode.UNAVAILABLE:
            return ClientError(
                f"a model server must answer gRPC at {self.target}, and none does ({details}); "
                "start one, or give its address with --target=HOST:PORT"
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return ClientError(
                f"the server at {self.target} must answer within {self.timeout} s, and did not; "
                "give it longer with --timeout"
            )
        if code is grpc.StatusCode.NOT_FOUND:
            version = "" if self.version is None else f" version {self.version}"
            return ClientError(
                f"the server at {self.target} has no model '{self.model}'{version} ({details}); "
                "check --model and --version"
            )
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return PictureError(f"the server at {self.target} refused the request: {details}")
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            return ClientError(
                f"the model '{self.model}' at {self.target} cannot answer this request "
                f"({details}); {REMEDY}"
            )
        return ClientError(f"the server at {self.target} answered {code.name}: {details}")


def check_picture(picture: bytes) -> None:
    """Decodes a picture to see that the server will be able to.

    Raises:
      PictureError: for anything but a whole JPEG, PNG, BMP or GIF of a sensible size.
    """
    _open(picture)


def decode(picture: bytes, shape: tuple[int, int, int]) -> bytes:
    """Pixels of an encoded picture, uint8 [height, width, channels] in row-major order."""
    height, width, channels = shape
    # First to RGB, as the exported graph does, which also drops an alpha channel as it does.
    image = _open(picture)
    if image.mode == "I;16":
        # Pillow would cut 16 bits off at 255; TensorFlow takes the upper eight.
        image = Image.frombytes("L", image.size, image.tobytes()[1::2])
    image = image.convert("RGB")
    if channels == 1:
        image = image.convert("L")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image.tobytes()


def _open(picture):
    try:
        with warnings.catch_warnings():
            # Our own limit is below the one that Pillow warns of.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(picture), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise PictureError(
                f"a picture may have {MAX_PIXELS:,} pixels, and this one has "
                f"{image.width} x {image.height}"
            )
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it has no bytes" if not picture else str(error).partition("<")[0].strip()
        raise PictureError(
            f"a picture must be a whole JPEG, PNG, BMP or GIF file ({reason})"
        ) from error
    return image


def classify_files(
    client: GaterNetClient, paths: Sequence[str], with_gates: bool
) -> list[Prediction | ClientError]:
    """Classifies files; a broken one gets its error, and costs the others nothing."""
    answers: list[Prediction | ClientError | None] = [None] * len(paths)
    good: dict[int, bytes] = {}
    for index, path in enumerate(paths):
        try:
            picture = pathlib.Path(path).read_bytes()
            check_picture(picture)
            good[index] = picture
        except OSError as error:
            answers[index] = PictureError(f"cannot be read ({error.strerror})")
        except PictureError as error:
            answers[index] = error
    ask = client.classify_with_gates if with_gates else client.classify
    try:
        for index, answer in zip(good, ask(list(good.values())), strict=True):
            answers[index] = answer
    except PictureError:
        # Ours could decode all of them and the server could not: find out which.
        for index, picture in good.items():
            try:
                (answers[index],) = ask([picture])
            except PictureError as error:
                answers[index] = error
    return [answer for answer in answers if answer is not None]


def format_table(rows: Iterable[Sequence[str]]) -> str:
    """Aligns rows of cells, the first of which are headings."""
    rows = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def gates_on(prediction: Prediction) -> str:
    """For example "143 of 336"."""
    gates = prediction.gates or ()
    return f"{sum(gates)} of {len(gates)}"


def as_table(paths, answers, with_gates):
    """The answers for a person."""
    rows = [["picture", "class", "probability", *(["gates on"] if with_gates else [])]]
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, Prediction):
            row = [path, answer.label, f"{answer.probability:.4f}"]
            rows.append(row + ([gates_on(answer)] if with_gates else []))
    return format_table(rows)


def as_json(paths, answers):
    """The answers for a program: a list with an object a picture, in order."""
    documents = []
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, Prediction):
            fields = {k: v for k, v in dataclasses.asdict(answer).items() if v is not None}
        else:
            fields = {"error": str(answer)}
        documents.append({"picture": path, **fields})
    return json.dumps(documents, indent=2)


def parse_arguments(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.client",
        description="Classifies pictures on a model server over gRPC.",
        epilog="Exit status: 0 all classified, 1 something was not, 2 wrong usage.",
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="JPEG, PNG, BMP or GIF file")
    parser.add_argument("--target", default="localhost:8500", help="server (%(default)s)")
    parser.add_argument("--model", default="gaternet", help="name of the model (%(default)s)")
    parser.add_argument("--version", type=int, help="its version (the server's newest)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds (%(default)s)")
    parser.add_argument("--gates", action="store_true", help="also ask which gates are on")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    options = parser.parse_args(arguments)
    if not options.timeout > 0:
        parser.error(f"--timeout must be above 0, got {options.timeout}")
    return options


def main(arguments=None):
    """Classifies the files of the command line; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        with GaterNetClient(
            options.target, options.model, options.timeout, options.version
        ) as client:
            answers = classify_files(client, options.pictures, options.gates)
    except ClientError as error:
        print(f"serving.client: error: {error}", file=sys.stderr)
        return 1
    if options.output == "json":
        print(as_json(options.pictures, answers))
    elif any(isinstance(answer, Prediction) for answer in answers):
        print(as_table(options.pictures, answers, options.gates))
    status = 0
    for path, answer in zip(options.pictures, answers, strict=True):
        if isinstance(answer, ClientError):
            print(f"serving.client: error: {path}: {answer}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
