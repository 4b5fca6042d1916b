"""What a client returns, and how it is read from the server's messages."""

import dataclasses
import heapq

from serving import wire
from serving.client_errors import PictureError

# What our models answer for "no picture", an empty string.
NO_PICTURE = -1


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A class, and how probable the model thinks it."""

    label: str
    class_id: int
    probability: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The answer for one picture.

    Attributes:
      label: the most probable class.
      class_id: its number.
      probability: how probable the model thinks it.
      version: of the model; None over REST with a version label, which does not tell.
      gates: 0 or 1 for each gate, if they were asked for.
      top: the most probable classes, the first of which is the above, as many as asked for.

    What an output filter left out is None.
    """

    label: str | None
    class_id: int | None
    probability: float | None
    version: int | None
    gates: tuple[int, ...] | None = None
    top: tuple[Candidate, ...] = ()


Answer = Prediction | PictureError


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """The state of a version (START, LOADING, AVAILABLE, UNLOADING, END), and why it failed."""

    version: int
    state: str
    error: str = ""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Type and shape of an input or output; -1 for any size, None for any shape."""

    dtype: str
    shape: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a signature of the model takes and gives."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    method: str


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What the server tells of a model."""

    model: str
    version: int
    signatures: dict[str, Signature]


def prediction(row, version: int | None, top: int, labels: list[str] | None) -> Answer:
    """The answer in one row of the outputs.

    Args:
      row: label, class number, probabilities and gates; None for what was left out.
      version: of the model.
      top: how many classes are wanted.
      labels: in the order of the class numbers; needed if that is above 1.

    Raises:
      AttributeError, IndexError, TypeError, ValueError: for a row that makes no sense.
    """
    label, class_id, probabilities, gates = row
    if class_id == NO_PICTURE:
        return PictureError("the model took it for no picture at all")
    if class_id is not None and class_id < 0:
        raise ValueError(f"class_id {class_id}")
    label = None if label is None else label.decode()
    probability = None
    candidates: tuple[Candidate, ...] = ()
    if probabilities is not None:
        probability = max(probabilities) if class_id is None else probabilities[class_id]
        if labels is not None:
            best = heapq.nlargest(top, range(len(probabilities)), key=probabilities.__getitem__)
            candidates = tuple(Candidate(labels[one], one, probabilities[one]) for one in best)
        elif label is not None and class_id is not None:
            candidates = (Candidate(label, class_id, probabilities[class_id]),)
    gates = None if gates is None else tuple(gates)
    return Prediction(label, class_id, probability, version, gates, candidates)


def signatures(answer) -> dict[str, Signature]:
    """The signatures in an answer to GetModelMetadata.

    Raises:
      google.protobuf.message.DecodeError: for bytes that are none.
    """
    found = wire.SignatureDefMap.FromString(answer.metadata["signature_def"].value)
    return {
        name: Signature(_specs(one.inputs), _specs(one.outputs), one.method_name)
        for name, one in sorted(found.signature_def.items())
        # Nor is the initialisation of the model one.
        if not name.startswith("__saved_model")
    }


def version_status(message) -> VersionStatus:
    """The state of a version in an answer to GetModelStatus."""
    states = {number: name for name, number in wire.ModelVersionStatus.State.items()}
    return VersionStatus(
        message.version,
        states.get(message.state, str(message.state)),
        message.status.error_message if message.status.error_code else "",
    )


def _specs(infos):
    names = {number: name for name, number in wire.DATA_TYPES.items()}
    return {
        name: TensorSpec(
            names.get(info.dtype, f"DT_{info.dtype}").removeprefix("DT_").lower(),
            None
            if info.tensor_shape.unknown_rank
            else tuple(dim.size for dim in info.tensor_shape.dim),
        )
        for name, info in sorted(infos.items())
    }
