"""Our messages and TensorFlow Serving's have the same bytes, both ways."""

import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2
from helpers import ROOT
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow.core.protobuf import error_codes_pb2, meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
    status_pb2,
)

from serving import wire

THEIRS = {
    "Tensor": tensor_pb2.TensorProto,
    "TensorShape": tensor_shape_pb2.TensorShapeProto,
    "ModelSpec": model_pb2.ModelSpec,
    "PredictRequest": predict_pb2.PredictRequest,
    "PredictResponse": predict_pb2.PredictResponse,
    "GetModelStatusRequest": get_model_status_pb2.GetModelStatusRequest,
    "GetModelStatusResponse": get_model_status_pb2.GetModelStatusResponse,
    "ModelVersionStatus": get_model_status_pb2.ModelVersionStatus,
    "GetModelMetadataRequest": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelMetadataResponse": get_model_metadata_pb2.GetModelMetadataResponse,
    "StatusProto": status_pb2.StatusProto,
    "SignatureDefMap": get_model_metadata_pb2.SignatureDefMap,
    "SignatureDef": meta_graph_pb2.SignatureDef,
    "TensorInfo": meta_graph_pb2.TensorInfo,
}
OURS = wire.PredictRequest.DESCRIPTOR.file


def of(message) -> bytes:
    return message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", OURS.message_types_by_name)
def test_every_field_is_theirs(name):
    theirs = THEIRS[name].DESCRIPTOR
    for field in OURS.message_types_by_name[name].fields:
        other = theirs.fields_by_number[field.number]
        assert (field.name, field.type, field.is_repeated, field.is_packed) == (
            other.name,
            other.type,
            other.is_repeated,
            other.is_packed,
        )
        ours_oneof, other_oneof = field.containing_oneof, other.containing_oneof
        assert (ours_oneof and ours_oneof.name) == (other_oneof and other_oneof.name)


def test_every_number_of_an_enumeration_is_theirs():
    for name, number in OURS.enum_types_by_name["DataType"].values_by_name.items():
        assert types_pb2.DataType.Value(name) == number.number
    for name, number in wire.STATUS_CODES.items():
        assert error_codes_pb2.Code.Value(name) == number
    for name, number in wire.ModelVersionStatus.State.items():
        assert get_model_status_pb2.ModelVersionStatus.State.Value(name) == number


def test_requests_have_their_bytes():
    pictures = [b"\x89PNG", b"", b"GIF8"]
    ours = wire.PredictRequest(
        model_spec=wire.ModelSpec(name="gaternet", signature_name="image_bytes"),
        inputs={"image_bytes": wire.string_tensor(pictures)},
        output_filter=["labels"],
    )
    ours.model_spec.version.value = 7
    theirs = predict_pb2.PredictRequest(output_filter=["labels"])
    theirs.model_spec.name = "gaternet"
    theirs.model_spec.signature_name = "image_bytes"
    theirs.model_spec.version.value = 7
    theirs.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(pictures))
    assert of(ours) == of(theirs)
    assert predict_pb2.PredictRequest.FromString(of(ours)) == theirs

    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4, 1)
    ours = wire.uint8_tensor(pixels.tobytes(), pixels.shape)
    assert of(ours) == of(tf.make_tensor_proto(pixels))
    np.testing.assert_array_equal(
        tf.make_ndarray(tensor_pb2.TensorProto.FromString(of(ours))), pixels
    )

    for ours, theirs in [
        (
            wire.GetModelMetadataRequest(metadata_field=["signature_def"]),
            get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"]),
        ),
        (wire.GetModelStatusRequest(), get_model_status_pb2.GetModelStatusRequest()),
    ]:
        ours.model_spec.name = theirs.model_spec.name = "gaternet"
        assert of(ours) == of(theirs)


def test_their_answers_are_read():
    theirs = predict_pb2.PredictResponse()
    theirs.model_spec.version.value = 3
    theirs.outputs["probabilities"].CopyFrom(tf.make_tensor_proto([[0.25, 0.75], [1.0, 0.0]]))
    theirs.outputs["labels"].CopyFrom(tf.make_tensor_proto(["cat", "dog"]))
    ours = wire.PredictResponse.FromString(of(theirs))
    assert ours.model_spec.version.value == 3
    assert wire.tensor_rows(ours.outputs["probabilities"]) == [[0.25, 0.75], [1.0, 0.0]]
    assert wire.tensor_rows(ours.outputs["labels"]) == [b"cat", b"dog"]
    assert of(ours) == of(theirs)

    theirs = get_model_status_pb2.GetModelStatusResponse()
    theirs.model_version_status.add(version=9, state=30)
    ours = wire.GetModelStatusResponse.FromString(of(theirs))
    assert [(one.version, one.state) for one in ours.model_version_status] == [(9, 30)]


def test_fields_that_are_not_ours_are_skipped():
    theirs = get_model_status_pb2.GetModelStatusResponse()
    status = theirs.model_version_status.add(version=1, state=50).status
    status.error_code, status.error_message = error_codes_pb2.NOT_FOUND, "no variables"
    (ours,) = wire.GetModelStatusResponse.FromString(of(theirs)).model_version_status
    assert ours.state == wire.ModelVersionStatus.END
    assert ours.status.error_code == wire.STATUS_CODES["NOT_FOUND"]
    assert ours.status.error_message == "no variables"

    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, version_number=7, float_val=[0.5])
    tensor.double_val.append(1.0)
    tensor.tensor_shape.dim.add(size=1)
    assert wire.tensor_rows(wire.Tensor.FromString(of(tensor))) == [0.5]


def string_list(strings):
    """Strings in tensor_content: all lengths as varints, and then all strings."""
    lengths = b"".join(
        bytes([len(one)]) if len(one) < 128 else bytes([len(one) % 128 + 128, len(one) // 128])
        for one in strings
    )
    return lengths + b"".join(strings)


DTYPES = st.sampled_from([np.float32, np.uint8, np.int64, object])


@hypothesis.given(
    dtype=DTYPES,
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=2),
    typed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_tensors_are_read_from_typed_fields_and_from_contents(dtype, shape, typed, seed):
    array = np.random.default_rng(seed).integers(0, 255, shape).astype(np.int64)
    if dtype is object:
        array = np.vectorize(lambda size: b"x" * size, otypes=[object])(array)
    else:
        array = array.astype(dtype)
    if typed:
        from serving.servable import typed_proto

        theirs = typed_proto(array)
    elif dtype is object:
        theirs = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING,
            tensor_shape=tf.TensorShape(array.shape).as_proto(),
            tensor_content=string_list(array.ravel()),
        )
        # TensorFlow's kernels understand what the server sends; Python's make_ndarray does not.
        assert tf.io.parse_tensor(of(theirs), tf.string).numpy().tolist() == array.tolist()
    else:
        theirs = tf.make_tensor_proto(array)
    assert wire.tensor_rows(wire.Tensor.FromString(of(theirs))) == array.tolist()


def test_a_repeated_last_element_may_be_left_out():
    theirs = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[0.5, 1.0])
    theirs.tensor_shape.dim.add(size=4)
    assert wire.tensor_rows(wire.Tensor.FromString(of(theirs))) == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (tensor_pb2.TensorProto(dtype=types_pb2.DT_HALF), "dtype must be one of"),
        (
            tensor_pb2.TensorProto(
                dtype=types_pb2.DT_INT64,
                int64_val=[1, 2, 3],
                tensor_shape=tf.TensorShape([2]).as_proto(),
            ),
            "must have 2 elements, got 3",
        ),
        (
            tensor_pb2.TensorProto(
                dtype=types_pb2.DT_INT64, tensor_shape=tf.TensorShape([2]).as_proto()
            ),
            "must have 2 elements, got 0",
        ),
        (
            tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, tensor_content=b"12345"),
            "tensor_content of 5 bytes",
        ),
        *(
            (
                tensor_pb2.TensorProto(
                    dtype=types_pb2.DT_STRING,
                    tensor_content=content,
                    tensor_shape=tf.TensorShape([2]).as_proto(),
                ),
                words,
            )
            for content, words in [
                (b"\x01", "fewer than 2 strings"),
                (b"\x01\xff", "fewer than 2 strings"),
                (b"\x01\x02ab", "not the 3 bytes"),
                (b"\x01\x00ab", "not the 1 bytes"),
            ]
        ),
    ],
)
def test_tensors_that_make_no_sense_are_refused(tensor, words):
    with pytest.raises(ValueError, match=words):
        wire.tensor_rows(wire.Tensor.FromString(of(tensor)))


def test_the_messages_live_in_a_package_of_ours():
    assert OURS.package == "gaternet.wire"
    assert wire.Tensor.DESCRIPTOR.full_name == "gaternet.wire.Tensor"


def test_messages_of_an_older_checkout_are_told(tmp_path):
    serving = tmp_path / "serving"
    serving.mkdir()
    for name in ("__init__.py", "wire.py", "wire_compiler.py"):
        (serving / name).write_bytes((ROOT / "serving" / name).read_bytes())
    old = descriptor_pb2.FileDescriptorSet()
    old.file.add(name="wire.proto", package="gaternet.wire").message_type.add(name="Tensor")
    (serving / "wire.binpb").write_bytes(of(old))
    done = subprocess.run(
        [sys.executable, "-c", "import serving.wire"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "wire.binpb is older than wire.proto, and has no 'DataType'" in done.stderr


def test_a_checkout_that_was_never_installed_compiles_the_messages_itself(tmp_path):
    serving = tmp_path / "serving"
    serving.mkdir()
    for name in ("__init__.py", "wire.py", "wire_compiler.py", "wire.proto"):
        (serving / name).write_bytes((ROOT / "serving" / name).read_bytes())
    # Beside TensorFlow, whose protobuf and the compiler's do not share a process.
    code = "import tensorflow; from serving import wire; print(wire.Tensor(dtype=4).dtype)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "4\n", done.stderr
    assert not (serving / "wire.binpb").exists()
