"""The client on the local server, over a real socket."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT
from PIL import Image

from serving import wire
from serving.client import (
    ClientError,
    GaterNetClient,
    PictureError,
    check_picture,
    decode,
    format_table,
)


@pytest.fixture(scope="module")
def pictures(trained):
    """The run's pictures: {path: bytes}."""
    return {str(path): path.read_bytes() for path in sorted(trained.pictures.glob("*/*.png"))}


@pytest.fixture(scope="module")
def wanted(trained, pictures):
    """What the Keras model says of them: probabilities [10, 10] and gates [10, c]."""
    pixels = np.stack([tf.io.decode_png(data) for data in pictures.values()])
    outputs = trained.load_model()(trained.preprocessing.normalize(pixels), training=False)
    return tf.nn.softmax(outputs["logits"]).numpy(), outputs["gates"].numpy()


@pytest.fixture
def client(server):
    with GaterNetClient(server, "gaternet") as client:
        yield client


@pytest.fixture
def command(server, run_module):
    """python -m serving.client with the server's address."""
    return lambda *arguments: run_module("serving.client", f"--target={server}", *arguments)


def test_classifies_as_the_keras_model_does(client, pictures, wanted):
    probabilities, gates = wanted
    plain = client.classify(list(pictures.values()))
    gated = client.classify_with_gates(list(pictures.values()))
    assert [one.class_id for one in plain] == probabilities.argmax(-1).tolist()
    assert [one.label for one in plain] == [str(one.class_id) for one in plain]
    assert {one.version for one in plain} == {1}
    np.testing.assert_allclose([one.probability for one in plain], probabilities.max(-1), atol=1e-5)
    assert [one.gates for one in plain] == [None] * len(plain)
    np.testing.assert_array_equal([one.gates for one in gated], gates)
    for one, other in zip(plain, gated, strict=True):
        assert (one.label, one.probability) == (other.label, pytest.approx(other.probability))


def test_more_pictures_than_a_request_takes_come_back_in_order(client, pictures):
    (first, second) = list(pictures.values())[:2]
    answers = client.classify([first] * 40 + [second] * 3)
    (one,), (two,) = client.classify([first]), client.classify([second])
    assert [answer.label for answer in answers] == [one.label] * 40 + [two.label] * 3


def test_no_pictures_make_no_request():
    with GaterNetClient("localhost:1", "gaternet") as client:
        assert client.classify([]) == client.classify_with_gates([]) == []


def test_status_and_input_shape(client):
    assert client.status() == {1: "AVAILABLE"}
    assert client.input_shape() == (8, 8, 1)


def test_prints_a_table(command, pictures, wanted):
    done = command("--gates", *pictures)
    assert done.status == 0, done.err
    head, *rows = done.out.splitlines()
    assert re.split(r"\s\s+", head) == ["picture", "class", "probability", "gates on"]
    probabilities, gates = wanted
    for row, path, chances, states in zip(rows, pictures, probabilities, gates, strict=True):
        cells = re.split(r"\s\s+", row)
        assert cells[:2] == [path, str(chances.argmax())]
        assert float(cells[2]) == pytest.approx(chances.max(), abs=1e-4)
        assert cells[3] == f"{states.sum():.0f} of 112"


def test_prints_json(command, pictures, wanted, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    done = command("--output=json", "--gates", "broken.png", *pictures)
    assert done.status == 1
    broken, *rows = json.loads(done.out)
    assert broken["picture"] == "broken.png"
    assert "whole JPEG, PNG, BMP or GIF" in broken["error"]
    assert [row["picture"] for row in rows] == list(pictures)
    assert [row["class_id"] for row in rows] == wanted[0].argmax(-1).tolist()
    np.testing.assert_array_equal([row["gates"] for row in rows], wanted[1])
    assert {row["version"] for row in rows} == {1}


def test_json_without_gates_has_no_gates(command, pictures):
    (row,) = json.loads(command("--output=json", next(iter(pictures))).out)
    assert set(row) == {"picture", "label", "class_id", "probability", "version"}


def test_a_broken_picture_costs_the_others_nothing(command, pictures, tmp_path):
    good = list(pictures)[:2]
    (tmp_path / "cut.png").write_bytes(pictures[good[0]][:-40])
    # Pillow is content without the last checksum, and TensorFlow is not.
    (tmp_path / "tail.png").write_bytes(pictures[good[0]][:-20])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "note.txt").write_text("not a picture")
    reasons = {
        "cut.png": "whole JPEG, PNG, BMP or GIF file (image file is truncated)",
        "tail.png": "refused the request: ",
        "empty.png": "it has no bytes",
        "note.txt": "cannot identify image file",
        "missing.png": "cannot be read (No such file or directory)",
        ".": "cannot be read (Is a directory)",
    }
    done = command(good[0], *reasons, good[1])
    assert done.status == 1
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == good
    assert len(done.err.splitlines()) == len(reasons)
    for line, (name, reason) in zip(done.err.splitlines(), reasons.items(), strict=True):
        assert line.startswith(f"serving.client: error: {name}: ")
        assert reason in line


def test_only_the_picture_that_the_server_refuses_is_lost(client, command, tmp_path, pictures):
    # Pillow reads a BMP with run-length encoding, and TensorFlow does not.
    path = tmp_path / "rle.bmp"
    path.write_bytes(run_length_bmp())
    check_picture(path.read_bytes())
    with pytest.raises(PictureError, match="refused the request"):
        client.classify([path.read_bytes()])
    good = next(iter(pictures))
    done = command(good, str(path))
    assert done.status == 1
    assert good in done.out
    assert f"error: {path}: the server at" in done.err


def run_length_bmp():
    """An 8 x 8 BMP of 8 bits a pixel with run-length encoding."""
    rows = b"\x08\x01\x00\x00" * 8 + b"\x00\x01"
    palette = bytes(4) + b"\xff\xff\xff\x00" + bytes(4 * 254)
    offset = 14 + 40 + len(palette)
    header = b"BM" + (offset + len(rows)).to_bytes(4, "little") + bytes(4)
    header += offset.to_bytes(4, "little") + (40).to_bytes(4, "little")
    header += (8).to_bytes(4, "little") * 2 + b"\x01\x00\x08\x00" + (1).to_bytes(4, "little")
    return header + len(rows).to_bytes(4, "little") + bytes(16) + palette + rows


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("png", mode) for mode in ("L", "RGB", "RGBA", "P", "LA", "1", "I;16")]
    + [("bmp", mode) for mode in ("L", "RGB", "RGBA", "P")]
    + [("gif", mode) for mode in ("L", "RGB", "P", "1")]
    + [("jpeg", mode) for mode in ("L", "RGB", "CMYK", "YCbCr")],
)
def test_gates_and_plain_answers_agree_on_every_kind_of_picture(client, tmp_path, suffix, mode):
    pixels = np.random.default_rng(0).integers(0, 255, [8, 8]).astype(np.uint8)
    image = Image.fromarray(pixels).convert("I" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 257)
    image.save(tmp_path / f"picture.{suffix}")
    picture = (tmp_path / f"picture.{suffix}").read_bytes()
    (plain,), (gated,) = client.classify([picture]), client.classify_with_gates([picture])
    assert plain.class_id == gated.class_id
    assert plain.probability == pytest.approx(gated.probability, abs=1e-5)


def test_a_picture_of_another_size_is_resized_as_the_graph_does(trained):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, [40, 31, 3], np.uint8))
    path = trained.path.parent / "large.png"
    image.save(path)
    ours = np.frombuffer(decode(path.read_bytes(), (8, 8, 1)), np.uint8).reshape(8, 8, 1)
    graph = trained.preprocessing.decode(tf.constant(path.read_bytes())).numpy()
    assert np.abs(ours.astype(int) - graph.astype(int)).max() <= 1


def test_a_picture_with_too_many_pixels_is_refused_unread(tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    started = time.monotonic()
    with pytest.raises(PictureError, match=r"50,000,000 pixels.*10000 x 10000"):
        check_picture((tmp_path / "bomb.png").read_bytes())
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model=nope"], ["has no model 'nope'", "Latest(nope)", "--model"]),
        (["--model=nope", "--gates"], ["has no model 'nope'", "--model"]),
        (["--version=99"], ["has no model 'gaternet' version 99", "--version"]),
        (["--target=localhost:1"], ["localhost:1", "none does", "--target=HOST:PORT"]),
        (["--target=nowhere.invalid:8500"], ["nowhere.invalid:8500", "--target=HOST:PORT"]),
        (["--timeout=1e-6"], ["within 1e-06 s", "--timeout"]),
        (["--timeout=0"], ["--timeout must be above 0", "0.0"]),
        (["--output=yaml"], ["'table', 'json'", "yaml"]),
        (["--outptu=json"], ["--outptu"]),
    ],
)
def test_bad_requests_are_explained(command, pictures, flags, words):
    command(*flags, next(iter(pictures))).assert_refused(*words)


def test_no_pictures_are_wrong_usage(command):
    done = command()
    done.assert_refused("PICTURE")
    assert done.status == 2


def test_an_unreachable_server_is_told_at_once(run_module, pictures):
    started = time.monotonic()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"localhost:{taken.getsockname()[1]}"
        done = run_module("serving.client", f"--target={target}", next(iter(pictures)))
    done.assert_refused(target)
    assert time.monotonic() - started < 8


def test_a_server_that_never_answers_costs_the_timeout(run_module, pictures):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        target = f"127.0.0.1:{deaf.getsockname()[1]}"
        started = time.monotonic()
        done = run_module(
            "serving.client", f"--target={target}", "--timeout=1", next(iter(pictures))
        )
        done.assert_refused(target)
        assert time.monotonic() - started < 8


class Foreign(grpc.GenericRpcHandler):
    """A server whose model is not one of ours."""

    def __init__(self, signatures, outputs):
        self.answers = {
            "GetModelMetadata": wire.GetModelMetadataResponse(),
            "Predict": wire.PredictResponse(outputs=outputs),
        }
        signature_map = wire.SignatureDefMap()
        for name in signatures:
            signature_map.signature_def[name].SetInParent()
        self.answers["GetModelMetadata"].metadata[
            "signature_def"
        ].value = signature_map.SerializeToString()

    def service(self, handler_call_details):
        answer = self.answers[handler_call_details.method.rpartition("/")[2]]
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: answer.SerializeToString()
        )


@pytest.fixture
def foreign_client():
    server = grpc.server(thread_pool())
    outputs = {"output_0": wire.string_tensor([b"x"])}
    server.add_generic_rpc_handlers([Foreign(["serve"], outputs)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with GaterNetClient(f"127.0.0.1:{port}", "theirs") as client:
        yield client
    server.stop(None).wait()


def thread_pool():
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1)


def test_a_model_that_is_not_ours_is_told(foreign_client, pictures):
    picture = next(iter(pictures.values()))
    with pytest.raises(ClientError, match=r"class_ids, labels and probabilities.*export\.main"):
        foreign_client.classify([picture])
    with pytest.raises(ClientError, match=r"signature 'gates'.*\['serve'\].*export\.main"):
        foreign_client.classify_with_gates([picture])


def test_one_client_serves_many_threads(client, pictures):
    (first, *_) = pictures.values()
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.extend(client.classify([first]))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 16
    assert len({(answer.label, answer.class_id) for answer in answers}) == 1


def test_imports_neither_tensorflow_nor_its_serving_api():
    code = (
        "import sys, serving.client\n"
        "print([name for name in sys.modules if name.startswith(('tensorflow', 'keras', 'numpy'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_a_table_is_aligned():
    assert format_table([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc  d"
