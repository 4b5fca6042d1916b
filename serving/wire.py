"""The message classes of wire.proto.

They are made from the *descriptor set* wire.binpb, which the protocol compiler writes. Unlike a
generated `_pb2.py` it is not tied to a range of protobuf versions. After a change of wire.proto,
`python -m grpc_tools.protoc -Iserving --include_imports --descriptor_set_out=serving/wire.binpb
wire.proto` makes it anew.
"""

import array
import math
import pathlib

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_POOL = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(
    pathlib.Path(__file__).with_name("wire.binpb").read_bytes()
).file:
    _POOL.Add(_file)


def _message(name):
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"gaternet.wire.{name}"))


Tensor = _message("Tensor")
ModelSpec = _message("ModelSpec")
PredictRequest = _message("PredictRequest")
PredictResponse = _message("PredictResponse")
GetModelStatusRequest = _message("GetModelStatusRequest")
GetModelStatusResponse = _message("GetModelStatusResponse")
ModelVersionStatus = _message("ModelVersionStatus")

# tensorflow/core/framework/types.proto
DT_FLOAT = 1
DT_UINT8 = 4
DT_STRING = 7
DT_INT64 = 9

# The field of each type's values, and the `array` type of its contents.
_FIELDS = {
    DT_FLOAT: ("float_val", "f"),
    DT_UINT8: ("int_val", "B"),
    DT_STRING: ("string_val", None),
    DT_INT64: ("int64_val", "q"),
}


def tensor_rows(tensor) -> list:
    """Returns the elements of a tensor [n] as a list, or of a tensor [n, m] as a list of n lists.

    Raises:
      ValueError: for a dtype that our models do not use, or contents that do not fit the shape.
    """
    if tensor.dtype not in _FIELDS:
        raise ValueError(f"tensor dtype must be one of {sorted(_FIELDS)}, got {tensor.dtype}")
    field, array_type = _FIELDS[tensor.dtype]
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    count = math.prod(shape)
    if tensor.tensor_content and array_type:
        # In the sender's byte order, which is little-endian wherever TensorFlow runs.
        values = array.array(array_type, tensor.tensor_content).tolist()
    else:
        values = list(getattr(tensor, field))
        # A tensor may leave out the repetitions of its last element.
        values += values[-1:] * (count - len(values))
    if len(values) != count:
        raise ValueError(f"a tensor of shape {shape} must have {count} elements, got {len(values)}")
    if len(shape) < 2:
        return values
    width = math.prod(shape[1:])
    return [values[row * width : (row + 1) * width] for row in range(shape[0])]
