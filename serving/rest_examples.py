"""The REST API's classify and regress: JSON objects for tf.Examples, lists for results."""

from serving.errors import invalid
from serving.rest_json import decode_base64, dump, is_base64, kind, show, signature_name
from serving.versions import INT64


def fill_request(document, request) -> None:
    """Fills a ClassificationRequest or RegressionRequest.

    Raises:
      ServingError: INVALID_ARGUMENT, in the server's words.
    """
    request.model_spec.signature_name = signature_name(document)
    found = document.get("examples")
    if "examples" not in document:
        raise invalid(
            f"JSON Value: {show(document)} When method is classify, key 'examples' is expected "
            "and was not found"
        )
    if not isinstance(found, list):
        raise invalid(
            f"JSON Value: {show(document)} Expecting 'examples' value to be an list/array"
        )
    if "context" in document:
        listed = request.input.example_list_with_context
        _fill_example(document["context"], listed.context)
    else:
        listed = request.input.example_list
    listed.SetInParent()
    for item in found:
        _fill_example(item, listed.examples.add())


def write_classes(result) -> bytes:
    """The answer to a classification: for each example a list of [label, score]."""
    return dump(
        {
            "results": [
                [[one.label, _shortest(one.score)] for one in row.classes]
                for row in result.classifications
            ]
        }
    )


def _shortest(score):
    import numpy as np

    return float(str(np.float32(score)))


def _fill_example(value, example):
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {kind(value)}")
    for name, content in value.items():
        feature = example.features.feature[name]
        for element in content if isinstance(content, list) else [content]:
            _add(element, name, feature)


def _add(value, name, feature):
    if isinstance(value, str) or is_base64(value):
        field = "bytes_list"
        value = value.encode() if isinstance(value, str) else decode_base64(value)
    elif isinstance(value, int):
        field = "int64_list"
        if int(value) not in INT64:
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
    elif isinstance(value, float):
        field = "float_list"
    else:
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {kind(value)}")
    set_before = feature.WhichOneof("kind")
    if set_before not in (None, field):
        raise invalid(
            f"Unexpected element type in feature: {name} expecting type: "
            f"{set_before.removesuffix('_list')}"
        )
    getattr(feature, field).value.append(value)
