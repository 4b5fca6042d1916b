"""The client library: batches, answers, errors, retries, on a model in the test's own process."""

import concurrent.futures
import contextlib
import socket
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest
from fake_servers import FakeModel, RefusedError, grpc_server, picture
from helpers import ROOT
from PIL import Image

from serving.client import (
    ClientError,
    GaterNetClient,
    Prediction,
    UnavailableError,
    UnknownModelError,
)
from serving.client.channel import CHANNEL_OPTIONS


@pytest.fixture
def connect():
    """Serves a model, and returns a client of it."""
    with contextlib.ExitStack() as stack:

        def call(model, **settings):
            target = stack.enter_context(grpc_server(model))
            settings = {"timeout": 60, **settings}
            return stack.enter_context(GaterNetClient(target, "fake", **settings))

        yield call


def labels(answers):
    """Returns the labels, and "-" for each broken picture."""
    return [answer.label if isinstance(answer, Prediction) else "-" for answer in answers]


def test_every_form_of_a_picture_is_classified_in_order_and_broken_ones_fail_alone(
    connect, tmp_path
):
    (tmp_path / "dog.png").write_bytes(picture(1))
    images = [
        str(tmp_path / "dog.png"),
        tmp_path / "missing.png",
        picture(2),
        Image.new("L", (3, 4), 1),
        picture(0, broken=True),
        np.full([2, 2, 3], 2, np.uint8),
        b"no picture",
        tmp_path / "dog.png",
        b"",
        np.zeros([2, 2]),
    ]
    client = connect(FakeModel(), batch_size=4)
    answers = client.classify(images)
    assert labels(answers) == ["dog", "-", "eel", "dog", "-", "eel", "-", "dog", "-", "-"]
    assert answers[0] == Prediction("dog", 1, 0.5, 1, None, (("dog", 0.5),))
    assert answers[1].code is None
    assert "No such file" in str(answers[1])
    assert answers[4].code is grpc.StatusCode.INVALID_ARGUMENT
    assert [answer.gates for answer in client.gates(images[2:4])] == [(1, 0, 0), (1, 1, 0)]


def test_pictures_are_asked_for_in_batches_and_never_none_at_all(connect):
    model = FakeModel()
    client = connect(model, batch_size=4)
    assert client.classify([]) == client.gates(iter([])) == []
    assert labels(client.classify([b""] * 5)) == ["-"] * 5
    assert model.rows == []
    assert labels(client.classify(picture(number) for number in range(10))) == [
        *("cat", "dog", "eel") * 3,
        "cat",
    ]
    assert sorted(model.rows) == [2, 4, 4]


def test_large_pictures_share_no_request_and_too_large_ones_are_not_sent(connect):
    model = FakeModel()
    large, enormous = picture(1, padding=9 * 2**20), picture(1, padding=49 * 2**20)
    answers = connect(model).classify([large, large, enormous, picture(2)])
    assert labels(answers) == ["dog", "dog", "-", "eel"]
    assert "50,331,648" in str(answers[2])
    assert sorted(model.rows) == [1, 1, 1]


def test_answers_may_be_larger_than_grpc_takes_by_default(connect):
    model = FakeModel()
    model.change_outputs = lambda outputs: {**outputs, "gates": np.ones([1, 5 * 2**20], np.uint8)}
    (answer,) = connect(model).gates([picture(1)])
    assert len(answer.gates) == 5 * 2**20


@pytest.mark.parametrize("images", ["cat.png", picture(0), np.zeros([2, 2, 3], np.uint8)])
def test_a_single_picture_is_not_taken_for_a_list_of_them(connect, images):
    with pytest.raises(TypeError, match=r"write \[picture\]"):
        connect(FakeModel()).classify(images)


def test_the_most_probable_classes_cost_one_request_a_version(connect):
    model = FakeModel()
    client = connect(model)
    for _ in range(2):
        (answer,) = client.gates([picture(1)], top=2)
        assert answer.top == (("dog", 0.5), ("eel", 0.25))
        assert answer.gates == (1, 1, 0)
    assert model.signatures == {"gates_bytes": 2, "classify": 1}


def test_versions_and_labels_are_asked_for(connect):
    model = FakeModel(versions={1: "AVAILABLE", 3: "AVAILABLE"}, version_labels={"stable": 1})
    assert connect(model).classify([picture(0)])[0].version == 3
    assert connect(model, version=1).classify([picture(0)])[0].version == 1
    assert connect(model, label="stable").classify([picture(0)])[0].version == 1
    for wrong in ({"version": 2}, {"label": "canary"}):
        with pytest.raises(UnknownModelError, match=r"'fake' (version 2|label 'canary')"):
            connect(model, **wrong).classify([picture(0), picture(1)])
    with pytest.raises(ValueError, match="exclude each other"):
        connect(model, version=1, label="stable")
    with grpc_server(model) as target, GaterNetClient(target, "other") as client:
        for ask in (client.status, lambda: client.classify([picture(0)])):
            with pytest.raises(UnknownModelError, match="'other'"):
                ask()


def test_a_model_without_a_loaded_version_is_told_from_an_unknown_one(connect):
    client = connect(FakeModel(versions={2: "END: disk full", 1: "END"}))
    with pytest.raises(UnknownModelError, match=r"has no version that is loaded.*END: disk full"):
        client.classify([picture(0)])
    client = connect(FakeModel(), version=2)
    with pytest.raises(UnknownModelError, match="check the name, the version"):
        client.classify([picture(0)])


def test_requests_take_turns_among_the_addresses_of_a_target():
    models = FakeModel(), FakeModel()
    with (
        grpc_server(models[0]) as first,
        grpc_server(models[1]) as second,
        GaterNetClient(f"ipv4:{first},{second}", "fake", timeout=60) as client,
    ):
        for _ in range(1000):  # The second connection may take longer than a few requests.
            assert labels(client.classify([picture(1)])) == ["dog"]
            if all(model.rows for model in models):
                return
    pytest.fail("one of the servers got no request")


def test_a_stream_gives_the_answers_before_a_failure_and_reads_no_further_than_it_must(connect):
    read = []

    def pictures():
        for number in range(100):
            read.append(number)
            yield picture(2 if number == 6 else 1)

    def before(request):
        if picture(2) in request.inputs["image_bytes"].string_val:
            raise RefusedError("INTERNAL", "out of paper")

    client = connect(FakeModel(before), batch_size=2, in_flight=2)
    stream = client.stream(pictures())
    assert next(stream).label == "dog"
    assert len(read) == 4
    assert [next(stream).label for _ in range(5)] == ["dog"] * 5
    with pytest.raises(ClientError, match=r"INTERNAL: out of paper.*export\.main") as error:
        next(stream)
    assert error.value.code is grpc.StatusCode.INTERNAL
    assert len(read) <= 10


def test_as_many_requests_as_allowed_are_in_flight(connect):
    together = threading.Barrier(3)
    model = FakeModel(lambda request: together.wait(60))
    answers = connect(model, batch_size=1, in_flight=3).classify([picture(1)] * 9)
    assert labels(answers) == ["dog"] * 9


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_a_busy_server_is_asked_again_and_then_given_up(connect, code):
    failures = 2

    def before(request):
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise RefusedError(code, "come back later")

    client = connect(FakeModel(before))
    # Larger than what gRPC keeps for a retry by default.
    assert labels(client.classify([picture(1, padding=2**20)])) == ["dog"]
    failures = 5
    with pytest.raises(UnavailableError, match="come back later") as error:
        client.classify([picture(1)])
    assert error.value.code is grpc.StatusCode[code]
    assert failures == 0


def test_a_server_that_does_not_answer_costs_the_timeout(connect):
    release = threading.Event()
    client = connect(FakeModel(lambda request: release.wait(60)), timeout=0.2)
    with pytest.raises(UnavailableError, match="--timeout"):
        client.classify([picture(1)])
    release.set()


def test_a_request_that_no_picture_suits_is_blamed_on_no_picture(connect):
    def before(request):
        raise RefusedError("INVALID_ARGUMENT", "input size does not match signature")

    model = FakeModel(before)
    with pytest.raises(ClientError, match=r"does not match.*export\.main") as error:
        connect(model).classify([picture(0)])
    assert type(error.value) is ClientError
    # The picture, then none: such a failure is not retried.
    assert model.rows == [1, 1]


def test_an_answer_of_another_kind_of_model_is_an_error(connect):
    model = FakeModel()
    model.change_outputs = lambda outputs: {"labels": outputs["labels"]}
    with pytest.raises(ClientError, match=r"must answer with.*export\.main"):
        connect(model).classify([picture(0)])


def test_waits_for_a_server_that_starts_and_a_version_that_loads():
    model = FakeModel(versions={1: "AVAILABLE", 2: "LOADING"}, version_labels={"next": 2})
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        target = f"127.0.0.1:{port}"
        clients = [
            GaterNetClient(target, "fake", **which)
            for which in ({}, {"version": 2}, {"label": "next"})
        ]
        waiting = [pool.submit(client.wait_ready) for client in clients]
        with grpc_server(model, port):
            assert waiting[0].result() == 1
            model.versions[2] = "AVAILABLE"
            assert [wait.result() for wait in waiting[1:]] == [2, 2]
            model.versions[2] = "UNLOADING"
            with pytest.raises(UnavailableError, match=r"not ready after 0\.1 s.*version 2"):
                clients[1].wait_ready(timeout=0.1)
        for client in clients:
            client.close()


def test_a_restarted_server_is_found_again():
    with grpc_server(FakeModel()) as target:
        client = GaterNetClient(target, "fake")
        assert labels(client.classify([picture(1)])) == ["dog"]
    with pytest.raises(UnavailableError, match=r"UNAVAILABLE.*--target"):
        client.classify([picture(1)])
    with grpc_server(FakeModel(), int(target.rpartition(":")[2])), client:
        assert client.wait_ready() == 1


def test_a_name_that_moved_to_another_address_is_found_within_5_seconds():
    # Tried with /etc/hosts, pinned here.
    assert CHANNEL_OPTIONS["grpc.dns_min_time_between_resolutions_ms"] == 1000
    assert CHANNEL_OPTIONS["grpc.max_reconnect_backoff_ms"] == 2000


def test_a_proxy_of_the_environment_does_not_capture_this_machine(connect, monkeypatch):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert labels(connect(FakeModel()).classify([picture(1)])) == ["dog"]


def test_neither_tensorflow_nor_pillow_nor_numpy_is_imported():
    code = "import sys, serving.client.__main__ as _; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    modules = {name.partition(".")[0] for name in eval(done.stdout)}
    assert "grpc" in modules
    assert not modules & {"tensorflow", "tensorflow_serving", "keras", "numpy", "PIL", "absl"}
