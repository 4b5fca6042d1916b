"""The client on the local server, over a real socket, and its command."""

import concurrent.futures
import contextlib
import csv
import io
import json
import os
import pathlib
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from fake_servers import FakeModel, RefusedError, grpc_server, picture, rest_server
from helpers import ROOT, run_python, running
from local_servers import serving
from PIL import Image

from serving.client import GaterNetClient, PictureError, check_picture
from serving.client_command import format_table
from serving.config import Batching


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
    gated = client.gates(list(pictures.values()))
    assert [one.class_id for one in plain] == probabilities.argmax(-1).tolist()
    assert [one.label for one in plain] == [str(one.class_id) for one in plain]
    assert {one.version for one in plain} == {1}
    np.testing.assert_allclose([one.probability for one in plain], probabilities.max(-1), atol=1e-5)
    assert [one.gates for one in plain] == [None] * len(plain)
    np.testing.assert_array_equal([one.gates for one in gated], gates)
    for one, other in zip(plain, gated, strict=True):
        assert (one.label, one.probability) == (other.label, pytest.approx(other.probability))


def test_a_spoilt_picture_of_another_caller_in_the_servers_batch(exported, pictures):
    good = next(iter(pictures.values()))
    spoilt = bytearray(good)
    spoilt[spoilt.index(b"IDAT") + 8] ^= 0x55
    # Two are not waited for any longer; one alone is.
    batching = Batching(max_batch_size=2, timeout_seconds=20.0)
    settings = {"batching": batching, "warm_up_rounds": 0}
    with serving(exported, name="gaternet", **settings) as calls:
        execute, rows = calls.server._shared._execute, []

        def noticed(queue, tasks):
            rows.append(sum(task.rows for task in tasks))
            execute(queue, tasks)

        calls.server._shared._execute = noticed
        target = f"127.0.0.1:{calls.server.port}"
        with (
            GaterNetClient(target, "gaternet") as client,
            GaterNetClient(target, "gaternet") as two,
        ):
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                first = pool.submit(client.classify, [good])
                second = pool.submit(two.classify, [bytes(spoilt)])
                ((one,), (other,)) = first.result(), second.result()
            assert rows[0] == 2
            assert isinstance(other, PictureError)
            (again, _) = client.classify([good, good])
            assert (one.label, one.version) == (again.label, 1)
            assert one.probability == pytest.approx(again.probability, abs=1e-5)


def test_more_pictures_than_a_request_takes_come_back_in_order(client, pictures):
    (first, second) = list(pictures.values())[:2]
    answers = client.classify([first] * 40 + [second] * 3)
    (one,), (two,) = client.classify([first]), client.classify([second])
    assert [answer.label for answer in answers] == [one.label] * 40 + [two.label] * 3


def test_no_pictures_make_no_request():
    with GaterNetClient("localhost:1", "gaternet") as client:
        assert client.classify([]) == client.gates([]) == []


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
    assert done.status == 3
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
    # Only a decoder can tell that a checksum is wrong.
    (tmp_path / "sum.png").write_bytes(spoiled(pictures[good[0]]))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("not a picture")
    reasons = {
        "cut.png": "whole JPEG, PNG, BMP or GIF file (the PNG is truncated)",
        "sum.png": "refused the request: ",
        "empty.png": "it has no bytes",
        "note.txt": "begins with b'not a pi'",
        "missing.png": "cannot be read (No such file or directory)",
        "empty": "cannot be read (a directory without pictures in it",
    }
    done = command(good[0], *reasons, good[1])
    assert done.status == 3
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == good
    assert len(done.err.splitlines()) == len(reasons)
    for line, (name, reason) in zip(done.err.splitlines(), reasons.items(), strict=True):
        assert line.startswith(f"serving.client: error: {name}: ")
        assert reason in line


def spoiled(png):
    """A PNG whose pixels have the wrong checksum."""
    start = png.index(b"IDAT") - 4
    end = start + 8 + int.from_bytes(png[start : start + 4], "big")
    return png[:end] + bytes([png[end] ^ 1]) + png[end + 1 :]


def test_only_the_picture_that_the_server_refuses_is_lost(client, pictures):
    data = list(pictures.values())
    bad = spoiled(data[4])
    check_picture(bad)
    alone = client.classify(data)
    for answers in (client.classify([*data[:4], bad, *data[5:]]), client.classify([bad])):
        (refused,) = [answer for answer in answers if isinstance(answer, PictureError)]
        assert "refused the request" in str(refused)
        assert refused.code == "INVALID_ARGUMENT"
    answers = client.classify([*data[:4], bad, *data[5:]])
    for place, (answer, other) in enumerate(zip(answers, alone, strict=True)):
        if place != 4:
            assert (answer.label, answer.probability) == (
                other.label,
                pytest.approx(other.probability, abs=1e-5),
            )


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
    data = (tmp_path / f"picture.{suffix}").read_bytes()
    (plain,), (gated,) = client.classify([data]), client.gates([data])
    assert plain.class_id == gated.class_id
    assert plain.probability == pytest.approx(gated.probability, abs=1e-5)


def test_every_form_of_a_picture_gets_the_same_answer(client, pictures, tmp_path):
    for path, data in pictures.items():
        image = Image.open(io.BytesIO(data))
        array = np.asarray(image)
        forms = [path, pathlib.Path(path), data, image, array, array[..., None]]
        for answers in (client.classify(forms), client.gates(forms)):
            assert answers == answers[:1] * len(forms)


def test_large_arrays_and_images_are_scaled_by_the_graph(client, trained):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, [40, 31, 3], np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    answers = client.classify([file.getvalue(), image, np.asarray(image)])
    assert answers == answers[:1] * 3
    pixels = trained.preprocessing.decode(tf.constant(file.getvalue()))
    outputs = trained.load_model()(trained.preprocessing.normalize(pixels[None]), training=False)
    chances = tf.nn.softmax(outputs["logits"]).numpy()[0]
    assert answers[0].class_id == chances.argmax()
    assert answers[0].probability == pytest.approx(chances.max(), abs=1e-5)


def test_gates_of_a_picture_of_another_size(server, client, trained):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, [40, 31, 3], np.uint8))
    (refused,) = client.gates([image])
    assert "the network's size, 8 x 8, and this one has 31 x 40" in str(refused)
    with GaterNetClient(server, "gaternet", resize=0) as told:
        (answer,), (plain,) = told.gates([image]), told.classify([image])
    file = io.BytesIO()
    image.save(file, "PNG")
    pixels = trained.preprocessing.decode(tf.constant(file.getvalue()))
    outputs = trained.load_model()(trained.preprocessing.normalize(pixels[None]), training=False)
    np.testing.assert_array_equal(answer.gates, outputs["gates"].numpy()[0])
    assert answer.label == plain.label
    assert answer.probability == pytest.approx(plain.probability, abs=1e-5)


def test_exif_orientation_changes_no_answer(client, pictures):
    image = Image.open(io.BytesIO(list(pictures.values())[3]))
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, tagged = io.BytesIO(), io.BytesIO()
    image.save(plain, "JPEG", quality=95)
    image.save(tagged, "JPEG", quality=95, exif=exif)
    opened = Image.open(io.BytesIO(tagged.getvalue()))
    one, two, three, turned = client.classify(
        [plain.getvalue(), tagged.getvalue(), opened, opened.transpose(Image.Transpose.ROTATE_270)]
    )
    assert one == two == three
    assert turned.probability != one.probability


def test_the_most_probable_classes(client, pictures, wanted):
    for answer, chances in zip(client.classify(list(pictures), top=3), wanted[0], strict=True):
        order = np.argsort(-chances, kind="stable")[:3]
        assert [one.class_id for one in answer.top] == order.tolist()
        assert [one.label for one in answer.top] == [str(one) for one in order]
        np.testing.assert_allclose(
            [one.probability for one in answer.top], chances[order], atol=1e-5
        )
        assert answer.top[0].label == answer.label


def test_metadata_and_readiness(client):
    found = client.metadata()
    assert (found.model, found.version) == ("gaternet", 1)
    assert sorted(found.signatures) == ["classify", "gates", "image_bytes", "serving_default"]
    assert found.signatures["gates"].outputs["gates"].dtype == "uint8"
    assert client.wait_ready(1, timeout=10) == client.wait_ready() == 1


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--model=nope"], 5, ["has no model 'nope'", "Latest(nope)", "--model"]),
        (["--model=nope", "--gates"], 5, ["has no model 'nope'", "--model"]),
        (["--version=99"], 5, ["has no model 'gaternet' version 99", "--version"]),
        (["--label=x"], 5, ["has no model 'gaternet' label 'x'", "--label"]),
        (["--target=localhost:1"], 4, ["localhost:1", "none does", "--target=HOST:PORT"]),
        (["--target=http://localhost:1"], 4, ["http://localhost:1", "REST", "none does"]),
        # No host has so long a name, which is known without asking a name server.
        ([f"--target={'x' * 64}:8500", "--timeout=5"], 4, [f"{'x' * 64}:8500", "--target"]),
        (["--timeout=1e-6"], 4, ["within 1e-06 s", "--timeout"]),
        (["--timeout=0"], 2, ["--timeout must be above 0", "0.0"]),
        (["--version=1", "--label=x"], 2, ["by version or by label"]),
        (["--in_flight=0"], 2, ["in_flight must be above 0"]),
        (["--batch_size=5000000"], 2, ["must leave room for pictures", "--batch_size", "5000000"]),
        (["--wait_ready=nan"], 2, ["--wait_ready", "0 or above", "nan"]),
        (["--wait_ready=-1"], 2, ["--wait_ready", "0 or above"]),
        (["--target=localhost:84036"], 2, ["65535", "localhost:84036"]),
        (["--target=ftp://localhost:1"], 2, ["HOST:PORT", "ftp://"]),
        (["--gates", "--resize=4"], 2, ["8 x 8", "got 4"]),
        (["--output=yaml"], 2, ["'table', 'json'", "yaml"]),
        (["--top=0"], 2, ["--top must be above 0"]),
        (["--top=2", "--gates"], 2, ["ask twice"]),
        (["--outptu=json"], 2, ["--outptu"]),
    ],
)
def test_bad_requests_are_explained(command, pictures, flags, status, words):
    done = command(*flags, next(iter(pictures)))
    assert (done.status, done.out) == (status, ""), done.err
    assert "Traceback" not in done.err
    assert status == 2 or len(done.err.splitlines()) == 1, done.err
    for word in words:
        assert word in done.err


def test_no_pictures_are_wrong_usage(command):
    done = command()
    assert done.status == 2
    assert "PICTURE" in done.err


def test_an_unreachable_server_is_told_at_once(run_module, pictures):
    started = time.monotonic()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"localhost:{taken.getsockname()[1]}"
        done = run_module(
            "serving.client", f"--target={target}", "--timeout=60", next(iter(pictures))
        )
    assert done.status == 4
    assert target in done.err
    assert time.monotonic() - started < 40


def test_a_server_that_never_answers_costs_the_timeout(run_module, pictures):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        target = f"127.0.0.1:{deaf.getsockname()[1]}"
        started = time.monotonic()
        done = run_module(
            "serving.client", f"--target={target}", "--timeout=1", next(iter(pictures))
        )
        assert done.status == 4
        assert target in done.err
        assert time.monotonic() - started < 20


@pytest.fixture
def fake(run_module):
    """Runs the command on a fake model, over gRPC."""
    model = FakeModel(versions={1: "END: disk full", 2: "AVAILABLE"})
    with grpc_server(model) as target:
        yield lambda *arguments, **options: run_module(
            "serving.client", f"--target={target}", "--model=fake", *arguments, **options
        )


@pytest.fixture
def folder(tmp_path):
    """b/1.PNG (dog), a.png (cat), b/note.txt."""
    (tmp_path / "set" / "b").mkdir(parents=True)
    (tmp_path / "set" / "b" / "1.PNG").write_bytes(picture(1))
    (tmp_path / "set" / "b" / "note.txt").write_text("no picture")
    (tmp_path / "set" / "a.png").write_bytes(picture(0))
    return tmp_path / "set"


def test_directories_are_searched(fake, folder):
    done = fake("set", "set/a.png")
    assert done.status == 0, done.err
    names = [line.split()[:2] for line in done.out.splitlines()[1:]]
    assert names == [["set/a.png", "cat"], ["set/b/1.PNG", "dog"], ["set/a.png", "cat"]]


def test_a_list_on_the_standard_input(fake, folder, monkeypatch):
    command = [sys.executable, "-m", "serving.client", "--model=fake", "--output=json", "-"]
    with grpc_server(FakeModel()) as target:
        done = subprocess.run(
            [*command, f"--target={target}"],
            input="set/b/1.PNG\n\nset/a.png",
            cwd=folder.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert [row["label"] for row in json.loads(done.stdout)] == ["dog", "cat"]


@pytest.mark.parametrize("output", ["table", "csv", "json"])
def test_names_that_are_no_text_are_printed_as_they_are(folder, output):
    name = b"set/\xff.png"
    path = os.path.join(os.fsencode(folder), b"\xff.png")
    with open(path, "wb") as file:
        file.write(picture(1))
    command = ["-m", "serving.client", "--model=fake", f"--output={output}", "-"]
    with grpc_server(FakeModel()) as target:
        done = subprocess.run(
            [sys.executable, *command, f"--target={target}"],
            input=name + b"\nset/\xfe.png",
            cwd=folder.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
        )
    assert done.returncode == 3, done.stderr
    assert b"dog" in done.stdout
    assert (rb"set/\udcff.png" if output == "json" else name) in done.stdout
    assert rb"error: set/\udcfe.png: cannot be read" in done.stderr


def test_prints_csv(fake, folder):
    (folder / "z.png").write_bytes(picture(2)[:-9])
    done = fake("--output=csv", "--top=2", "set")
    assert done.status == 3
    head, *rows = csv.reader(io.StringIO(done.out))
    assert head == [
        *("picture", "label", "class_id", "probability", "version", "label_2", "probability_2"),
        "error",
    ]
    assert [row[:3] for row in rows] == [
        ["set/a.png", "cat", "0"],
        ["set/b/1.PNG", "dog", "1"],
        ["set/z.png", "", ""],
    ]
    assert [row[5] for row in rows] == ["dog", "eel", ""]
    assert float(rows[0][6]) == pytest.approx(0.2)
    assert [len(row) for row in rows] == [8] * 3
    assert rows[2][7].endswith("(the PNG is truncated)")
    done = fake("--output=csv", "--gates", "set/a.png")
    assert done.out.splitlines()[1].split(",")[5:7] == ["1", "100"]


def test_prints_the_most_probable_classes(fake, folder):
    done = fake("--top=3", "set/a.png")
    assert re.split(r"\s\s+", done.out.splitlines()[1])[3] == "dog 0.2000, eel 0.1000"
    (row,) = json.loads(fake("--top=3", "--output=json", "set/a.png").out)
    assert [one["label"] for one in row["top"]] == ["cat", "dog", "eel"]


def test_prints_the_status_of_the_versions(fake):
    done = fake("--status", "--wait_ready=10")
    assert (done.status, done.err) == (0, "")
    rows = [re.split(r"\s\s+", line) for line in done.out.splitlines()]
    assert rows == [["version", "state", "error"], ["2", "AVAILABLE"], ["1", "END", "disk full"]]
    assert fake("--wait_ready=0.1", "--version=9").status == 4
    assert fake("--status", "--output=csv").out == (
        "version,state,error\n2,AVAILABLE,\n1,END,disk full\n"
    )
    assert json.loads(fake("--status", "--output=json").out) == [
        {"version": 2, "state": "AVAILABLE", "error": ""},
        {"version": 1, "state": "END", "error": "disk full"},
    ]


def test_rest_prints_what_grpc_prints(run_module, folder):
    with grpc_server(FakeModel()) as one, rest_server(FakeModel()) as two:
        done = [
            run_module("serving.client", f"--target={target}", "--model=fake", *flags, "set")
            for flags in (["--output=json", "--top=2"], ["--gates"])
            for target in (one, two)
        ]
    assert [one.status for one in done] == [0] * 4
    assert done[0].out == done[1].out
    assert done[2].out == done[3].out


@pytest.mark.parametrize("output", ["table", "json"])
def test_what_was_answered_before_the_server_failed_is_printed(run_module, folder, output):
    def before(method, request):
        if model.calls["Predict"] > 1:
            raise RefusedError("FAILED_PRECONDITION", "Could not find variable o/bias")

    model = FakeModel(before)
    with grpc_server(model) as target:
        done = run_module(
            *("serving.client", f"--target={target}", "--model=fake", f"--output={output}"),
            *("--batch_size=1", "--in_flight=1", "set"),
        )
    assert done.status == 1
    assert "cat" in done.out
    assert "dog" not in done.out
    assert re.match("serving.client: error: set/b/1.PNG: .*o/bias", done.err)


def test_a_progress_bar_for_many_pictures_on_a_terminal_only(folder):
    many = ["set/a.png"] * 30

    def terminal_output(pictures):
        ours, theirs = pty.openpty()
        with grpc_server(FakeModel()) as target:
            command = ["-m", "serving.client", f"--target={target}", "--model=fake", *pictures]
            done = subprocess.run(
                [sys.executable, *command],
                cwd=folder.parent,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=theirs,
            )
        assert done.returncode == 0
        assert b"[" not in done.stdout
        os.close(theirs)
        shown = b""
        with os.fdopen(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):
            # Its end is an error, since nobody has the other side open.
            while part := terminal.read(100_000):
                shown += part
        return shown.decode()

    assert "] 30 of 30" in terminal_output(many)
    assert terminal_output(many[:5]) == ""


@pytest.mark.parametrize("flags", [["set"], ["--output=csv", "set"], ["--status"]])
def test_output_that_cannot_be_written_is_told(folder, flags):
    with grpc_server(FakeModel()) as target, open("/dev/full", "w") as full:
        command = ["-m", "serving.client", f"--target={target}", "--model=fake"]
        done = subprocess.run(
            [sys.executable, *command, *flags],
            cwd=folder.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("serve", [grpc_server, rest_server])
def test_ctrl_c_ends_the_command_at_once(serve, folder):
    def before(method, request):
        if method == "Predict":
            begun.release()
            release.wait(30)

    begun, release = threading.Semaphore(0), threading.Event()
    with serve(FakeModel(before)) as target:
        flags = [f"--target={target}", "--model=fake", "--batch_size=1", "--timeout=25"]
        pictures = ["set/a.png"] * 3
        with running("serving.client", *flags, *pictures, cwd=folder.parent) as process:
            for _ in pictures:
                assert begun.acquire(timeout=30)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=15)
        release.set()
    assert (process.returncode, out, err) == (130, "", "")


def test_control_characters_of_names_stay_in_their_line(fake, folder):
    name = "set/a\nb\x1b[1m.png"
    (folder.parent / name).write_bytes(picture(1))
    done = fake(name, f"{name}.gone")
    assert done.status == 3
    assert done.out.splitlines()[1].split()[:2] == [r"set/a\nb\x1b[1m.png", "dog"]
    (line,) = done.err.splitlines()
    assert r"error: set/a\nb\x1b[1m.png.gone: cannot be read" in line
    # For programs names stay what they are.
    (row,) = json.loads(fake("--output=json", name).out)
    assert row["picture"] == name
    _, row = csv.reader(io.StringIO(fake("--output=csv", name).out))
    assert row[0] == name


def test_a_reader_that_has_seen_enough_is_no_traceback(folder):
    with grpc_server(FakeModel()) as target:
        flags = f"--target={target} --model=fake --output=json"
        done = subprocess.run(
            f"{sys.executable} -m serving.client {flags} {'set/a.png ' * 2000} | head -c 1",
            shell=True,
            cwd=folder.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    assert (done.stdout, done.stderr) == ("[", "")


def best_of(times, command, yardstick):
    """The shortest wall times, in turns, of a command and of a Python program; what it printed.

    The machine may be slow, and then is so for both.
    """

    def timed(*arguments):
        started = time.monotonic()
        done = run_python(*arguments, cwd=ROOT)
        assert done.status == 0, done.err
        return time.monotonic() - started, done.out

    turns = [
        (timed("-m", "serving.client", *command), timed("-c", yardstick)) for _ in range(times)
    ]
    return min(ours[0] for ours, _ in turns), min(other[0] for _, other in turns), turns[0][0][1]


def test_help_is_quick_and_tells_the_exit_statuses():
    seconds, nothing, out = best_of(3, ["--help"], "pass")
    assert seconds < max(0.5, 10 * nothing)
    for words in ("0  every picture", "3  some pictures", "4  the server", "5  the server"):
        assert words in out


def test_one_picture_takes_less_than_a_second(server, pictures):
    flags = [f"--target={server}", "--model=gaternet"]
    command, imports = [*flags, next(iter(pictures))], "import grpc, numpy, PIL.Image"
    seconds, importing, out = best_of(5, command, imports)
    assert len(out.splitlines()) == 2
    assert seconds < max(1, 5 * importing)


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
        "import sys, serving.client as client\n"
        "client.GaterNetClient('localhost:1', 'm').close()\n"
        "client.GaterNetClient('http://localhost:1', 'm').close()\n"
        "import serving.client_command, serving.loadtest\n"
        "heavy = ('tensorflow', 'keras', 'numpy', 'PIL', 'absl')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    done = run_python("-c", code, cwd=ROOT)
    assert (done.status, done.out) == (0, "[]\n"), done.err


def test_a_table_is_aligned():
    assert format_table([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc  d"
