"""Our messages and TensorFlow Serving's have the same bytes, both ways."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from fake_servers import FakeModel, grpc_server, picture
from google.protobuf import descriptor_pb2
from helpers import ROOT
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow_serving.apis import get_model_status_pb2, model_pb2, predict_pb2, status_pb2

from serving import wire
from serving.client import GaterNetClient

OURS = wire.PredictRequest.DESCRIPTOR.file
THEIRS = {
    "Tensor": tensor_pb2.TensorProto,
    "TensorShape": tensor_shape_pb2.TensorShapeProto,
    "ModelSpec": model_pb2.ModelSpec,
    "PredictRequest": predict_pb2.PredictRequest,
    "PredictResponse": predict_pb2.PredictResponse,
    "GetModelStatusRequest": get_model_status_pb2.GetModelStatusRequest,
    "GetModelStatusResponse": get_model_status_pb2.GetModelStatusResponse,
    "ModelVersionStatus": get_model_status_pb2.ModelVersionStatus,
    "StatusProto": status_pb2.StatusProto,
}


def serialized(message) -> bytes:
    return message.SerializeToString(deterministic=True)


def test_the_descriptor_set_is_that_of_wire_proto(tmp_path):
    # In a process of its own: the compiler and TensorFlow bring a protobuf each, which crashes.
    output = tmp_path / "wire.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iserving", "--include_imports"]
    subprocess.run([*command, f"--descriptor_set_out={output}", "wire.proto"], cwd=ROOT, check=True)
    compiled, committed = (
        descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
        for path in (output, ROOT / "serving" / "wire.binpb")
    )
    assert compiled.file[-1] == committed.file[-1], "the first lines of serving/wire.py say how"
    assert compiled.file[-1].name == "wire.proto"


@pytest.mark.parametrize("name", OURS.message_types_by_name)
def test_every_field_is_theirs(name):
    theirs = THEIRS[name].DESCRIPTOR
    for field in OURS.message_types_by_name[name].fields:
        other = theirs.fields_by_number[field.number]
        for attribute in ("name", "type", "is_repeated", "is_packed"):
            assert getattr(field, attribute) == getattr(other, attribute), field.name
        ours_oneof, other_oneof = field.containing_oneof, other.containing_oneof
        assert (ours_oneof and ours_oneof.name) == (other_oneof and other_oneof.name)


def test_every_number_of_an_enum_is_theirs():
    for name, value in OURS.enum_types_by_name["DataType"].values_by_name.items():
        assert types_pb2.DataType.Value(name) == value.number
        assert getattr(wire, name, value.number) == value.number
    states = get_model_status_pb2.ModelVersionStatus.State
    assert dict(wire.ModelVersionStatus.State.items()) == dict(states.items())


def test_requests_have_their_bytes():
    requests = []
    with (
        grpc_server(FakeModel(requests.append, versions={7: "AVAILABLE"})) as target,
        GaterNetClient(target, "fake", version=7) as client,
    ):
        client.classify([picture(0), picture(1)])
    (ours,) = requests
    theirs = predict_pb2.PredictRequest()
    theirs.model_spec.name = "fake"
    theirs.model_spec.signature_name = "image_bytes"
    theirs.model_spec.version.value = 7
    theirs.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([picture(0), picture(1)]))
    assert serialized(ours) == serialized(theirs)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int64, object])
@pytest.mark.parametrize("shape", [(0,), (3,), (2, 3), (2, 0)])
def test_tensors_are_read_from_typed_fields_and_from_contents(dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    if dtype is object:
        array = np.array([b"x" * number for number in array.ravel()], object).reshape(shape)
    theirs = tf.make_tensor_proto(array, tf.string if dtype is object else None)
    assert wire.tensor_rows(wire.Tensor.FromString(serialized(theirs))) == array.tolist()
    if dtype is not object:
        field = {np.float32: "float_val", np.uint8: "int_val", np.int64: "int64_val"}[dtype]
        theirs.tensor_content = b""
        getattr(theirs, field)[:] = array.ravel().tolist()
        assert wire.tensor_rows(wire.Tensor.FromString(serialized(theirs))) == array.tolist()


def test_a_repeated_last_element_may_be_left_out():
    tensor = wire.Tensor(dtype=wire.DT_FLOAT, float_val=[0.5, 1.0])
    tensor.tensor_shape.dim.add(size=4)
    assert wire.tensor_rows(tensor) == [0.5, 1.0, 1.0, 1.0]
