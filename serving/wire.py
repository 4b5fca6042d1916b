"""The message classes of wire.proto.

They are made from a *descriptor set*, which `pip install` compiles from wire.proto: unlike a
generated `_pb2.py` it is not tied to one range of protobuf versions.
"""

import itertools
import pathlib
import struct
import tempfile

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from serving.wire_compiler import DESCRIPTOR_SET, PROTO, compile_descriptor_set


def _read_descriptor_set():
    if DESCRIPTOR_SET.exists():
        return DESCRIPTOR_SET.read_bytes()
    # A checkout that was never installed.
    try:
        with tempfile.TemporaryDirectory() as directory:
            output = pathlib.Path(directory) / DESCRIPTOR_SET.name
            compile_descriptor_set(output)
            return output.read_bytes()
    except ImportError as error:
        raise ImportError(
            f"{DESCRIPTOR_SET} is made by installing the package, and is not there; run "
            "'pip install .' in the checkout, or install grpcio-tools"
        ) from error


def _load_messages():
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(_read_descriptor_set()).file:
        pool.Add(file)
    file = pool.FindFileByName(PROTO)
    messages = {
        name: message_factory.GetMessageClass(found)
        for name, found in file.message_types_by_name.items()
    }
    enums = {
        name: {value.name: value.number for value in found.values}
        for name, found in file.enum_types_by_name.items()
    }
    return messages, enums


_MESSAGES, _ENUMS = _load_messages()
try:
    # Numbers by name.
    DATA_TYPES = _ENUMS["DataType"]
    STATUS_CODES = _ENUMS["Code"]
    Tensor = _MESSAGES["Tensor"]
    ModelSpec = _MESSAGES["ModelSpec"]
    PredictRequest = _MESSAGES["PredictRequest"]
    PredictResponse = _MESSAGES["PredictResponse"]
    GetModelStatusRequest = _MESSAGES["GetModelStatusRequest"]
    GetModelStatusResponse = _MESSAGES["GetModelStatusResponse"]
    ModelVersionStatus = _MESSAGES["ModelVersionStatus"]
    GetModelMetadataRequest = _MESSAGES["GetModelMetadataRequest"]
    GetModelMetadataResponse = _MESSAGES["GetModelMetadataResponse"]
    SignatureDefMap = _MESSAGES["SignatureDefMap"]
except KeyError as error:
    raise ImportError(
        f"{DESCRIPTOR_SET} is older than {PROTO}, and has no {error}; run 'pip install .' in the "
        "checkout again, or delete it"
    ) from error

# tensorflow/core/framework/types.proto
DT_FLOAT = 1
DT_UINT8 = 4
DT_STRING = 7
DT_INT64 = 9

_FIELDS = {
    DT_FLOAT: "float_val",
    DT_UINT8: "int_val",
    DT_STRING: "string_val",
    DT_INT64: "int64_val",
}
_CONTENT = {DT_FLOAT: "f", DT_UINT8: "B", DT_INT64: "q"}


def string_tensor(values: list[bytes]):
    """A string tensor of shape [len(values)]."""
    tensor = Tensor(dtype=DT_STRING, string_val=values)
    tensor.tensor_shape.dim.add(size=len(values))
    return tensor


def uint8_tensor(content: bytes, shape: tuple[int, ...]):
    """A uint8 tensor from its bytes in row-major order."""
    tensor = Tensor(dtype=DT_UINT8, tensor_content=content)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


def tensor_rows(tensor) -> list:
    """The elements of a tensor [n] as a list, or of a tensor [n, m] as a list of n lists.

    Raises:
      ValueError: for a dtype that our models do not use, or contents that do not fit the shape.
    """
    if tensor.dtype not in _FIELDS:
        raise ValueError(f"tensor dtype must be one of {sorted(_FIELDS)}, got {tensor.dtype}")
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    count = 1
    for size in shape:
        count *= size
    if tensor.tensor_content and tensor.dtype == DT_STRING:
        values = _strings(tensor.tensor_content, count)
    elif tensor.tensor_content:
        values = _numbers(tensor.tensor_content, _CONTENT[tensor.dtype])
    else:
        values = list(getattr(tensor, _FIELDS[tensor.dtype]))
        if values:
            # A tensor may leave out the repetitions of its last element.
            values += values[-1:] * (count - len(values))
    if len(values) != count:
        raise ValueError(f"a tensor of shape {shape} must have {count} elements, got {len(values)}")
    if len(shape) < 2:
        return values
    width = count // shape[0] if shape[0] else 0
    return [values[row * width : (row + 1) * width] for row in range(shape[0])]


def _numbers(content, code):
    """In the sender's byte order, which is little-endian wherever TensorFlow runs."""
    try:
        return [value for (value,) in struct.iter_unpack(f"<{code}", content)]
    except struct.error as error:
        raise ValueError(f"tensor_content of {len(content)} bytes ({error})") from error


def _strings(content, count):
    """The lengths of the strings, as varints, and then all their bytes."""
    lengths, position = [], 0
    for _ in range(count):
        length = shift = 0
        while True:
            if position == len(content):
                raise ValueError(f"tensor_content has fewer than {count} strings")
            byte = content[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        lengths.append(length)
    if position + sum(lengths) != len(content):
        raise ValueError(f"tensor_content has not the {sum(lengths)} bytes of its strings")
    ends = list(itertools.accumulate(lengths, initial=position))
    return [content[start:end] for start, end in itertools.pairwise(ends)]
