"""Mutated, odd and enormous requests: each is answered or refused, and the server goes on."""

import base64
import io
import random
import struct
import zlib

import grpc
import numpy as np
import pytest
import tensorflow as tf
from local_servers import error_of, serving
from PIL import Image
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import classification_pb2
from toy_models import predict_request, write_toy

from serving.config import Batching
from serving.picture_limit import has_unknown_size, pixels

LIMIT = 100_000
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP")
SEED = 20190605


@pytest.fixture(scope="module")
def base_path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    write_toy(directory)
    return directory


def encoded(kind, size=(24, 17), frames=1, **options):
    noise = np.random.default_rng(1).integers(0, 256, (frames, *size[::-1], 3), np.uint8)
    first, *others = [Image.fromarray(one) for one in noise]
    if others:
        options |= {"save_all": True, "append_images": others}
    file = io.BytesIO()
    first.save(file, kind, **options)
    return file.getvalue()


def bomb(width, height):
    """A PNG of a few bytes whose header says so many pixels."""

    def chunk(name, data):
        checked = name + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b"")


def mutate(rng, picture):
    data = bytearray(picture)
    kind = rng.randrange(7)
    if kind == 0:
        del data[rng.randrange(len(data)) :]
    elif kind == 1:
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(min(64, len(data)))] = rng.randrange(256)
    elif kind == 3:
        at = rng.randrange(len(data))
        data[at:at] = rng.randbytes(rng.randrange(1, 40))
    elif kind == 4:
        at = rng.randrange(len(data))
        del data[at : at + rng.randrange(1, 40)]
    elif kind == 5:
        at = rng.randrange(len(data) - 4)
        data[at : at + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x80\0\0\0"])
    else:
        data = bytearray(rng.randbytes(rng.randrange(300)))
        data[:0] = picture[: rng.randrange(40)]
    return bytes(data)


@pytest.mark.parametrize("batching", [None, Batching(max_batch_size=4)])
def test_a_thousand_mutated_pictures(base_path, batching):
    rng = random.Random(SEED)
    good = [encoded(kind) for kind in FORMATS[:4]]
    right = [24 * 17 * 3]
    outcomes = {}
    with serving(base_path, max_picture_pixels=LIMIT, batching=batching) as calls:
        for number in range(1000):
            request = predict_request(
                {"image_bytes": [mutate(rng, good[number % 4])]}, signature="image_bytes"
            )
            try:
                calls.prediction.Predict(request, timeout=60)
                outcome = "OK"
            except grpc.RpcError as error:
                outcome = error.code().name
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        assert set(outcomes) == {"OK", "INVALID_ARGUMENT"}, outcomes
        assert min(outcomes.values()) > 100, outcomes
        for picture in good:
            request = predict_request({"image_bytes": [picture]}, signature="image_bytes")
            answer = calls.prediction.Predict(request, timeout=60)
            assert tf.make_ndarray(answer.outputs["size"]).tolist() == right


def refused(position, found, limit=LIMIT):
    return (
        "INVALID_ARGUMENT",
        f"A picture must have at most {limit} pixels (--max_picture_pixels), and picture "
        f"{position} of the request has {found}; send a smaller one",
    )


def test_an_enormous_picture_is_refused_before_it_is_decoded(base_path):
    small, large = encoded("PNG"), bomb(30_000, 30_000)
    with serving(base_path, max_picture_pixels=LIMIT) as calls:
        request = predict_request({"image_bytes": [small, large]}, signature="image_bytes")
        assert error_of(calls.prediction.Predict, request) == refused(1, 900_000_000)
        request = classification_pb2.ClassificationRequest()
        request.model_spec.name = "toy"
        request.model_spec.signature_name = "classify"
        example = request.input.example_list.examples.add()
        example.features.feature["picture"].bytes_list.value.append(large)
        assert error_of(calls.prediction.Classify, request) == refused(0, 900_000_000)
        # The same by Predict, which gets examples as strings.
        string = example.SerializeToString()
        request = predict_request({"inputs": [string]}, signature="classify")
        assert error_of(calls.prediction.Predict, request) == refused(0, 900_000_000)
        b64 = base64.b64encode(string).decode()
        document = {"signature_name": "classify", "instances": [{"b64": b64}]}
        status, answer = calls.post("toy:predict", document)
        assert (status, answer["error"]) == (400, refused(0, 900_000_000)[1])


def field(number, content):
    """A field of a message: its number, length and content."""
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(number):
    head = b""
    while number > 127:
        head += bytes([number & 127 | 128])
        number >>= 7
    return head + bytes([number])


def example_of(*features):
    """A serialized tf.Example of (name, serialized Feature)."""
    entries = [field(1, field(1, name) + field(2, feature)) for name, feature in features]
    return field(1, b"".join(entries))


def test_pictures_that_only_tensorflows_own_parser_finds_in_an_example(exported):
    large = encoded("PNG", (400, 300))
    picture = field(1, field(1, large))
    # A name that is no UTF-8 beside it; and a feature that says at last that it holds no bytes.
    hidden = [
        example_of((b"\xff\xfe", b""), (b"image/encoded", picture)),
        example_of((b"image/encoded", picture + field(2, b""))),
    ]
    spec = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
    for string in hidden:
        assert tf.io.parse_single_example(string, spec)["image/encoded"].numpy() == large
    with serving(exported, name="gaternet", max_picture_pixels=LIMIT) as calls:

        def ask(string):
            request = predict_request({"inputs": [string]}, model="gaternet", signature="classify")
            return error_of(calls.prediction.Predict, request)

        assert ask(example_of((b"image/encoded", picture))) == refused(0, 120_000)
        assert ask(hidden[0])[1].startswith("Could not parse example input 0: ")
        # What runs is what was looked at, and that has no picture.
        assert "Data type: float but expected type: string" in ask(hidden[1])[1]


def test_the_limit_is_inclusive_and_zero_is_none(base_path):
    picture = predict_request({"image_bytes": [encoded("PNG")]}, signature="image_bytes")
    for limit in (0, 24 * 17):
        with serving(base_path, max_picture_pixels=limit) as calls:
            calls.prediction.Predict(picture, timeout=60)
    with serving(base_path, max_picture_pixels=24 * 17 - 1) as calls:
        assert error_of(calls.prediction.Predict, picture) == refused(0, 24 * 17, 24 * 17 - 1)


JPEG_XL = b"\xff\n" + bytes(20)


@pytest.mark.parametrize(
    "picture",
    [JPEG_XL, b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), encoded("WEBP", frames=3)],
    ids=["JPEG XL", "JPEG XL in boxes", "animated WebP"],
)
def test_a_picture_whose_header_does_not_tell_its_size_is_refused(base_path, picture):
    request = predict_request({"image_bytes": [encoded("PNG"), picture]}, signature="image_bytes")
    with serving(base_path, max_picture_pixels=LIMIT) as calls:
        assert error_of(calls.prediction.Predict, request) == (
            "INVALID_ARGUMENT",
            "A picture must tell its size in its header (--max_picture_pixels), and picture 1 of "
            "the request is JPEG XL or an animated WebP; send a PNG or JPEG",
        )


def test_without_a_limit_the_decoder_judges(base_path):
    request = predict_request({"image_bytes": [JPEG_XL]}, signature="image_bytes")
    with serving(base_path, max_picture_pixels=0) as calls:
        assert "Failed to decode JXL" in error_of(calls.prediction.Predict, request)[1]


def test_other_pictures_tell_their_size():
    for picture in (*map(encoded, FORMATS), encoded("WEBP", exif=b"Exif\0\0"), b"", b"\xff"):
        assert not has_unknown_size(picture)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (24, 17), (300, 2)])
def test_pixels_are_read_from_the_header(kind, size):
    assert pixels(encoded(kind, size)) == size[0] * size[1]


def test_more_kinds_of_headers():
    assert pixels(encoded("JPEG", progressive=True)) == 24 * 17
    assert pixels(encoded("WEBP", lossless=True)) == 24 * 17
    assert pixels(encoded("GIF", frames=3)) == 3 * 24 * 17
    assert pixels(encoded("JPEG", exif=b"Exif\0\0" + b"\xff\xc0" * 100)) == 24 * 17


def test_what_is_no_picture_has_no_pixels():
    for data in (b"", b"\xff\xd8", b"BM", b"GIF89a", b"RIFF", b"\x89PNG\r\n\x1a\n", b"text" * 9):
        assert pixels(data) == 0


def assert_alive(calls):
    answer = calls.prediction.Predict(predict_request({"x": np.float32([[1, 2]])}), timeout=60)
    assert tf.make_ndarray(answer.outputs["y"]).tolist() == [[3, 5]]


def tensor(*sizes, dtype=tf.float32.as_datatype_enum, values=(1, 2)):
    proto = tensor_pb2.TensorProto(dtype=dtype, float_val=values)
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    return proto


def strings(size, value):
    proto = tensor_pb2.TensorProto(dtype=tf.string.as_datatype_enum, string_val=[value])
    proto.tensor_shape.dim.add(size=size)
    return proto


NO_SHAPE = tensor()
NO_SHAPE.tensor_shape.unknown_rank = True


@pytest.mark.parametrize(
    "proto",
    [
        # The last value stands for all further ones, of which there would be terabytes.
        tensor(2**20, 2**20),
        tensor(2**62, 2**62),
        strings(2**28, b"x"),
        strings(2**20, bytes(1000)),
        tensor(1, -1),
        tensor(1, 1),
        tensor(1, 2, dtype=99),
        tensor(1, 2, dtype=tf.resource.as_datatype_enum),
        NO_SHAPE,
    ],
)
def test_a_tensor_that_is_not_what_it_says(base_path, proto):
    with serving(base_path) as calls:
        found = error_of(calls.prediction.Predict, predict_request({"x": proto}))
        assert found == ("INVALID_ARGUMENT", "tensor parsing error: x")
        assert_alive(calls)


def test_a_last_value_stands_for_further_ones(base_path):
    with serving(base_path) as calls:
        request = predict_request({"x": tensor(2, 3)})
        answer = calls.prediction.Predict(request, timeout=60)
        assert tf.make_ndarray(answer.outputs["y"]).tolist() == [[3, 5, 5], [5, 5, 5]]
        request = predict_request(
            {"x": np.ones((3, 2), np.float32), "tag": strings(3, b"a")}, signature="tagged"
        )
        answer = calls.prediction.Predict(request, timeout=60)
        assert tf.make_ndarray(answer.outputs["tag"]).tolist() == [b"a"] * 3


def test_integers_are_cut_to_their_type(base_path):
    proto = tensor_pb2.TensorProto(dtype=tf.uint8.as_datatype_enum, int_val=[-1, 300])
    for size in (1, 2):
        proto.tensor_shape.dim.add(size=size)
    with serving(base_path) as calls:
        request = predict_request({"gates": proto}, signature="gates")
        answer = calls.prediction.Predict(request, timeout=60)
        assert tf.make_ndarray(answer.outputs["gates"]).tolist() == [[255, 44]]


def test_mutated_messages_over_grpc(base_path):
    rng = random.Random(SEED)
    messages = [
        predict_request({"x": np.float32([[1, 2], [3, 4]])}).SerializeToString(),
        predict_request(
            {"x": np.float32([[1, 2]]), "tag": [b"a"]}, signature="tagged"
        ).SerializeToString(),
        predict_request({"gates": np.uint8([[1, 0]])}, signature="gates").SerializeToString(),
    ]
    with serving(base_path) as calls:
        raw = calls.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        outcomes = {"OK"}
        for number in range(600):
            try:
                raw(mutate(rng, messages[number % 3]), timeout=60)
            except grpc.RpcError as error:
                # What is no message at all is gRPC's own business.
                if error.details() != "Exception deserializing request!":
                    outcomes.add(error.code().name)
        assert outcomes <= {*("OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION")}
        assert len(outcomes) > 3
        assert_alive(calls)


def test_mutated_documents_over_rest(base_path):
    rng = random.Random(SEED)
    documents = [
        b'{"instances": [[1.0, 2.0], [3.0, 4.0]]}',
        b'{"signature_name": "tagged", "inputs": {"x": [[1, 2]], "tag": [{"b64": "YWI="}]}}',
        b'{"signature_name": "whole", "instances": [1, -2, 9223372036854775807]}',
        b'{"signature_name": "classify", "examples": [{"v": [1.0, 2.0]}]}',
    ]
    with serving(base_path) as calls:
        statuses = set()
        for number in range(800):
            kind = number % 4
            path = "toy:classify" if kind == 3 else "toy:predict"
            status, answer = calls.post(path, mutate(rng, documents[kind]))
            assert status in (200, 400), answer
            statuses.add(status)
        assert statuses == {200, 400}
        assert_alive(calls)
