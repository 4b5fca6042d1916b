"""Classify and MultiInference: tf.Examples in, classes and scores out."""

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from serving.errors import ServingError, failed_precondition, invalid
from serving.servable import DEFAULT_SIGNATURE, Servable

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"
INPUT = "inputs"
OUTPUTS = ("classes", "scores")


def find_signature(servable: Servable, name: str):
    """A signature by its name, as Classify and Regress look for it.

    Raises:
      ServingError: INVALID_ARGUMENT where there is none.
    """
    if name not in servable.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    return servable.signatures[name]


def check_classify(signature) -> None:
    """Refuses a signature that does not classify.

    Raises:
      ServingError: INVALID_ARGUMENT or FAILED_PRECONDITION, in the server's words.
    """
    if signature.method_name != CLASSIFY_METHOD or len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if INPUT not in signature.inputs:
        raise failed_precondition(f"No classification inputs found in SignatureDef: {signature}")
    if not set(OUTPUTS) & set(signature.outputs):
        raise failed_precondition(
            'Expected classification signature outputs to contain at least one of "classes" or '
            f'"scores". Signature was: {signature}'
        )


def not_regression(signature) -> ServingError:
    """What Regress says of a signature that is not one of regression, which none of ours is."""
    if len(signature.inputs) != 1:
        return invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        return invalid("Expected one output Tensor.")
    return failed_precondition(f"No regression inputs found in SignatureDef: {signature}")


def examples(request_input) -> list[tf.train.Example]:
    """The examples of an Input message, with a shared context put into each of them."""
    kind = request_input.WhichOneof("kind")
    if kind == "example_list":
        return list(request_input.example_list.examples)
    if kind != "example_list_with_context":
        return []
    with_context = request_input.example_list_with_context
    found = list(with_context.examples)
    for example in found:
        for name, feature in with_context.context.features.feature.items():
            if name not in example.features.feature:
                example.features.feature[name].CopyFrom(feature)
    return found


def parse_examples(strings: list[bytes]) -> list[tf.train.Example]:
    """Serialized examples, as the server reads them for Classify.

    Raises:
      ServingError: INVALID_ARGUMENT for a string that is none.
    """
    found = []
    for position, string in enumerate(strings):
        try:
            found.append(tf.train.Example.FromString(string))
        except DecodeError as error:
            raise invalid(f"Could not parse example input {position}: {error}") from error
    return found


def encoded_features(found: list[tf.train.Example]) -> list[bytes]:
    """All byte strings in examples: pictures, if there are any."""
    return [
        value
        for example in found
        for feature in example.features.feature.values()
        for value in feature.bytes_list.value
    ]


def run(servable: Servable, name: str, found, timeout: float | None) -> dict[str, np.ndarray]:
    """Runs a classify signature on examples, one at least.

    Returns:
      `classes` string [N, K], `scores` float32 [N, K], or one of them.

    Raises:
      ServingError: with the kernel's code and words, or where the outputs are not those.
    """
    outputs = [name_ for name_ in OUTPUTS if name_ in servable.signatures[name].outputs]
    array = np.array([example.SerializeToString() for example in found], dtype=object)
    values = servable.run(name, [INPUT], [array], outputs, timeout)
    for output, value in values.items():
        if value.ndim != 2:
            sizes = ",".join(map(str, value.shape))
            raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got [{sizes}]")
        if len(value) != len(found):
            raise invalid(f"Expected {output} output batch size of {len(found)}. Got: {len(value)}")
    return values


def fill(result, values: dict[str, np.ndarray]) -> None:
    """Fills a ClassificationResult."""
    size = len(next(iter(values.values())))
    for row in range(size):
        answer = result.classifications.add()
        columns = {name: value[row] for name, value in values.items()}
        for column in range(len(next(iter(columns.values())))):
            answer.classes.add(
                **{
                    field: columns[name][column]
                    for name, field in (("classes", "label"), ("scores", "score"))
                    if name in columns
                }
            )


def task_signatures(servable: Servable, tasks) -> list[str]:
    """The signatures that the tasks of a MultiInferenceRequest name, checked as there.

    Raises:
      ServingError: in the server's words.
    """
    names: list[str] = []
    tensors = set()
    for task in tasks:
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != tasks[0].model_spec.name:
            raise invalid(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in names:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if name not in servable.signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        signature = servable.signatures[name]
        if task.method_name == REGRESS_METHOD:
            raise not_regression(signature)
        if task.method_name != CLASSIFY_METHOD:
            raise ServingError(
                grpc.StatusCode.UNIMPLEMENTED,
                f"Unsupported signature method_name: {task.method_name}",
            )
        check_classify(signature)
        tensors.add(signature.inputs[INPUT].name)
        if len(tensors) > 1:
            raise invalid("Input tensor must be the same for all Signatures.")
        names.append(name)
    return names
