"""JSON of TensorFlow Serving's REST API to and from request and response messages.

Codes and words of errors are the server's; so is what a value may be for a tensor of which type.
"""

import base64
import binascii
import json
import re
from typing import Any

import numpy as np
import tensorflow as tf

from serving.errors import ServingError, invalid
from serving.servable import CPP_NAMES

ROW, COLUMNAR = "predictions", "outputs"
BYTES_SUFFIX = "_bytes"
_INTEGERS: dict[Any, Any] = {
    tf.int8: np.int32,
    tf.int16: np.int32,
    tf.int32: np.int32,
    tf.uint8: np.int32,
    tf.int64: np.int64,
    tf.uint32: np.uint32,
    tf.uint64: np.uint64,
}
"""What an integer must fit into; like the server, an 8-bit tensor takes 32 bits and cuts them."""
_FLOATS = {tf.float32: 2**24 - 1, tf.float64: 2**53 - 1}
"""The largest whole number that is taken for a float without loss."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""Half a character beyond the 65,536th, which is text only beside its other half."""
_TYPES = {type(None): "Null", dict: "Object", list: "Array", str: "String", bool: "True"}


def too_deep() -> ServingError:
    """The error of a document with more levels, or digits, than can be read."""
    return invalid("JSON Parse error: Terminate parsing due to Handler error.")


def parse(body: bytes) -> dict[str, Any]:
    """Parses a request's body.

    Raises:
      ServingError: INVALID_ARGUMENT where it is not a JSON object.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        text = body.decode()
        document = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(document, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: Invalid value. at offset: {error.pos}") from error
    except UnicodeDecodeError as error:
        raise invalid(
            f"JSON Parse error: Invalid encoding in string. at offset: {error.start}"
        ) from error
    except UnicodeEncodeError as error:
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from error
    except (RecursionError, ValueError) as error:
        raise too_deep() from error
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {show(document)} Is not object")
    return document


def signature_name(document: dict[str, Any]) -> str:
    """The signature that a document names, or "".

    Raises:
      ServingError: INVALID_ARGUMENT where it is not a string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {show(document)} not formatted correctly. 'signature_name' key must be "
            "a string value."
        )
    return name


def fill_inputs(document: dict[str, Any], infos, inputs) -> str:
    """Fills a request's inputs from "instances" or "inputs".

    Args:
      document: the request.
      infos: TensorInfo by name of the signature's inputs.
      inputs: the map to fill.

    Returns:
      `ROW` or `COLUMNAR`: how the answer is to be written.

    Raises:
      ServingError: INVALID_ARGUMENT.
    """
    has_rows, has_columns = "instances" in document, "inputs" in document
    if has_rows and has_columns:
        raise invalid(
            f"JSON Value: {show(document)} Not formatted correctly expecting only one of 'inputs' "
            "or 'instances' keys to exist "
        )
    if has_rows:
        rows = document["instances"]
        if not isinstance(rows, list):
            raise invalid(f"JSON Value: {show(document)} Excepting 'instances' to be an list/array")
        if not rows:
            raise invalid(f"JSON Value: {show(document)} No values in 'instances' array")
        arrays = _from_rows(rows, infos)
    elif has_columns:
        arrays = _from_columns(document["inputs"], infos)
    else:
        raise invalid("Missing 'inputs' or 'instances' key")
    for name, array in arrays.items():
        inputs[name].CopyFrom(tf.make_tensor_proto(array, dtype=infos[name].dtype))
    return ROW if has_rows else COLUMNAR


def write_outputs(outputs, form: str) -> bytes:
    """The answer to a prediction.

    Raises:
      ServingError: INVALID_ARGUMENT where an output cannot be written.
    """
    columns = {name: _to_lists(name, tf.make_ndarray(proto)) for name, proto in outputs.items()}
    if form == COLUMNAR:
        single = len(columns) == 1
        return dump({form: next(iter(columns.values())) if single else columns})
    sizes = {}
    for name, proto in outputs.items():
        if not proto.tensor_shape.dim:
            raise invalid(f"Tensor name: {name} has no shape information ")
        sizes[name] = proto.tensor_shape.dim[0].size
    if len(set(sizes.values())) > 1:
        name = next(one for one in sizes if sizes[one] != next(iter(sizes.values())))
        raise invalid(
            f"Tensor name: {name} has inconsistent batch size: {sizes[name]} expecting: "
            f"{next(iter(sizes.values()))}"
        )
    if len(columns) == 1:
        return dump({form: next(iter(columns.values()))})
    names = list(columns)
    rows = zip(*columns.values(), strict=True)
    return dump({form: [dict(zip(names, row, strict=True)) for row in rows]})


def dump(document) -> bytes:
    """JSON as the server writes it; strings that are not UTF-8 go out as they are."""
    text = json.dumps(document, indent=4, ensure_ascii=False)
    return text.encode("utf-8", "surrogateescape")


def _from_rows(rows, infos):
    names = sorted(infos)
    as_objects = _is_object(rows[0])
    if not isinstance(rows[0], dict) and len(names) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    if not as_objects:
        array = _fast(rows, infos[names[0]].dtype)
        if array is not None:
            return {names[0]: array}
    arrays: dict[str, list[np.ndarray]] = {}
    for position, row in enumerate(rows):
        if _is_object(row) != as_objects:
            words = ("object", "list") if as_objects else ("value/list", "object")
            raise invalid(
                f"Expecting {words[0]} but got {words[1]} at item {position} of input list"
            )
        items = row.items() if as_objects else [(names[0], row)]
        for name, value in items:
            try:
                _add_row(arrays, name, value, infos)
            except ServingError as error:
                key = f" key: {name}" if as_objects else ""
                raise invalid(
                    f"Failed to process element: {position}{key} of 'instances' list. "
                    f"Error: {error}"
                ) from error
        if as_objects and sorted(row) != names:
            raise invalid(
                f"Failed to process element: {position} of 'instances' list. JSON object: "
                f"{show(row)} keys must be equal to: {','.join(names)}"
            )
    return {name: np.stack(found) for name, found in arrays.items()}


def _add_row(arrays, name, value, infos):
    if name not in infos:
        raise invalid(f"JSON object: does not have named input: {name}")
    array = _to_array(value, infos[name].dtype)
    known = arrays.setdefault(name, [array])
    first = known[0]
    if first is array:
        return
    if array.size != first.size:
        raise invalid(f"Expecting tensor size: {first.size} but got: {array.size}")
    if array.shape != first.shape:
        shapes = [f"[{','.join(map(str, one.shape))}]" for one in (first, array)]
        raise invalid(f"Expecting shape {shapes[0]} but got: {shapes[1]}")
    known.append(array)


def _from_columns(value, infos):
    if not _is_object(value):
        if len(infos) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        (name,) = infos
        return {name: _to_array(value, infos[name].dtype)}
    arrays = {}
    for name in sorted(infos):
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        arrays[name] = _to_array(value[name], infos[name].dtype)
    return arrays


def _fast(value, dtype):
    """Lists of numbers at once; None where a closer look is needed."""
    wanted = tf.as_dtype(dtype)
    if wanted not in _FLOATS and wanted not in _INTEGERS:
        return None
    if not isinstance(value, list):
        return None
    array = np.array(value, dtype=object)
    types = set(map(type, array.ravel()))
    if not types or not types <= ({int, float} if wanted in _FLOATS else {int}):
        return None
    try:
        array = array.astype(np.float64 if wanted in _FLOATS else np.int64)
    except OverflowError:
        return None
    if wanted in _FLOATS:
        limit = _FLOATS[wanted] if int in types else wanted.max
        finite = array[np.isfinite(array)]
        if finite.size and np.abs(finite).max() > limit:
            return None
    else:
        limits = np.iinfo(_INTEGERS[wanted])
        if array.min() < limits.min or array.max() > limits.max:
            return None
    return array.astype(wanted.as_numpy_dtype)


def _to_array(value, dtype) -> np.ndarray:
    wanted = tf.as_dtype(dtype)
    array = _fast(value, dtype)
    if array is not None:
        return array
    shape = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    if len(shape) > 64:
        raise invalid(f"Encountered list at unexpected level: {len(shape)} expected < 64")
    flat: list = []
    _flatten(value, 0, shape, wanted, flat)
    array = np.empty(len(flat), dtype=wanted.as_numpy_dtype)
    if wanted in _INTEGERS:
        array[:] = np.array(flat, dtype=_INTEGERS[wanted]).astype(array.dtype)
    else:
        array[:] = flat
    return array.reshape(shape)


def _flatten(value, level, shape, dtype, flat):
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {show(value)} found at incorrect level: {level + 1} in the JSON "
                f"DOM. Expected at level: {len(shape)}"
            )
        flat.append(_element(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: "
            f"{shape[level]}"
        )
    for one in value:
        _flatten(one, level + 1, shape, dtype, flat)


def _element(value, dtype):
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if dtype == tf.string and isinstance(value, dict):
        return decode_base64(value)
    if dtype == tf.string and isinstance(value, str):
        return value.encode()
    if dtype == tf.bool and isinstance(value, bool):
        return value
    if dtype in _FLOATS and number:
        limit = _FLOATS[dtype] if isinstance(value, int) else dtype.max
        if abs(value) > limit and abs(value) != float("inf"):
            raise invalid(
                f"Cannot convert JSON value: {show(value)} to {_name(dtype)} without loss of "
                "precision."
            )
        return value
    if dtype in _INTEGERS and number and isinstance(value, int):
        limits = np.iinfo(_INTEGERS[dtype])
        if limits.min <= value <= limits.max:
            return value
    if dtype not in _FLOATS and dtype not in _INTEGERS and dtype not in (tf.string, tf.bool):
        raise invalid(f"Conversion of JSON Value: {show(value)} to type: {_name(dtype)}")
    raise invalid(
        f"JSON Value: {show(value)} Type: {kind(value)} is not of expected type: {_name(dtype)}"
    )


def decode_base64(value: dict[str, Any]) -> bytes:
    """The bytes of {"b64": "..."}; padding may be left out and the web-safe alphabet is refused.

    Raises:
      ServingError: INVALID_ARGUMENT where it is something else.
    """
    if not is_base64(value):
        raise invalid(f"JSON Value: {show(value)} not formatted correctly for base64 data")
    text = "".join(value["b64"].split())
    try:
        return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), None, True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def is_base64(value) -> bool:
    """Whether a JSON value stands for bytes."""
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def kind(value) -> str:
    """The server's name for the type of a JSON value."""
    return "False" if value is False else _TYPES.get(type(value), "Number")


def _is_object(value):
    return isinstance(value, dict) and not is_base64(value)


def _name(dtype):
    return CPP_NAMES.get(dtype.name, dtype.name)


def show(value) -> str:
    """A JSON value as error messages have it."""
    return json.dumps(value, indent=4)


def _to_lists(name, array):
    if array.dtype == object:
        flat = [_text(value, name.endswith(BYTES_SUFFIX)) for value in array.ravel()]
        return _nest(flat, array.shape)
    if array.dtype == np.float32:
        # The shortest digits that are this float, not those of the double beside it.
        return _nest([float(text) for text in array.ravel().astype("U32")], array.shape)
    if (array.dtype.kind in "iub" and array.dtype != np.uint16) or array.dtype == np.float64:
        return array.tolist()
    raise invalid(f"Failed to write JSON value for tensor type: {_name(array.dtype)}")


def _text(value, as_bytes):
    if as_bytes:
        return {"b64": base64.b64encode(value).decode()}
    return value.decode("utf-8", "surrogateescape")


def _nest(flat, shape):
    """A flat list in the shape of an array."""
    if not shape:
        return flat[0]
    for size in reversed(shape[1:]):
        flat = [flat[start : start + size] for start in range(0, len(flat), size)] if size else []
    return flat
