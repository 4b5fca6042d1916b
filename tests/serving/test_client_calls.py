"""The client's calls on small servers: order, errors, retries, deadlines, restarts; both forms."""

import asyncio
import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time

import pytest
from fake_servers import (
    LABELS,
    FakeModel,
    RefusedError,
    grpc_server,
    picture,
    rest_server,
)
from helpers import ROOT
from PIL import Image

from serving import wire
from serving.client import (
    AsyncGaterNetClient,
    Candidate,
    ClientError,
    DeadlineError,
    GaterNetClient,
    ModelError,
    PictureError,
    Prediction,
    ServerError,
    SettingsError,
    UnavailableError,
    UnknownModelError,
    VersionStatus,
)
from serving.grpc_transport import GrpcTransport
from serving.transport import Settings

SERVERS = {"grpc": grpc_server, "rest": rest_server}
FORMS = [(kind, form) for kind in SERVERS for form in ("sync", "asyncio")]


def call(target, method, *arguments, form="sync", **settings):
    """One call of a client of either form."""
    model = settings.pop("model", "fake")
    if form == "sync":
        with GaterNetClient(target, model, **settings) as client:
            return getattr(client, method)(*arguments)

    async def one_call():
        async with AsyncGaterNetClient(target, model, **settings) as client:
            return await getattr(client, method)(*arguments)

    return asyncio.run(one_call())


@pytest.fixture
def served(request):
    """Starts a fake model over the transport that a test is parametrised with."""
    with contextlib.ExitStack() as stack:
        yield lambda kind, model, **options: stack.enter_context(SERVERS[kind](model, **options))


def labels_of(answers):
    return [one.label if isinstance(one, Prediction) else type(one).__name__ for one in answers]


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_all_kinds_of_pictures_come_back_in_order_and_broken_ones_alone_fail(
    kind, form, served, tmp_path
):
    model = FakeModel()
    path = tmp_path / "dog.png"
    path.write_bytes(picture(1))
    images = [
        *(picture(0), path, str(path), memoryview(picture(2)), bytearray(picture(1))),
        *(b"", b"no picture", picture(2)[:-5], picture(0, broken=True), tmp_path / "missing.png"),
        *(Image.new("L", (2, 2), 2), Image.new("RGB", (3, 1), (1, 1, 1)), 7, picture(2)),
    ]
    answers = call(served(kind, model), "classify", images, form=form, batch_size=5)
    failed = ["PictureError"] * 5
    expected = ["cat", "dog", "dog", "eel", "dog", *failed, "eel", "dog", "PictureError", "eel"]
    assert labels_of(answers) == expected
    words = [
        "no bytes",
        "begins with b'no pictu'",
        "PNG is truncated",
        "Invalid PNG data",
        "No such",
    ]
    for answer, word in zip(answers[5:10], words, strict=True):
        assert word in str(answer)
    assert "a path, bytes, a PIL image or a uint8 array, got int" in str(answers[12])
    assert answers[0] == Prediction("cat", 0, answers[0].probability, 1, None, answers[0].top)
    assert answers[0].probability == pytest.approx(0.7)
    assert answers[0].top == (Candidate("cat", 0, answers[0].probability),)


def test_every_transport_and_form_gives_equal_answers(served):
    images = [picture(value) for value in range(7)]
    results, gates, metadata = [], [], []
    for kind in SERVERS:
        target = served(kind, FakeModel(versions={3: "AVAILABLE", 4: "END: no variables"}))
        for form in ("sync", "asyncio"):
            results.append(call(target, "classify", images, 3, form=form))
            gates.append(call(target, "gates", images, form=form))
            metadata.append(call(target, "metadata", form=form))
            assert call(target, "status", form=form) == {3: "AVAILABLE", 4: "END"}
            assert call(target, "statuses", form=form)[0] == VersionStatus(4, "END", "no variables")
            assert call(target, "input_shape", form=form) == (2, 2, 1)
    assert results == results[:1] * 4
    assert gates == gates[:1] * 4
    assert metadata == metadata[:1] * 4
    assert [one.label for one in results[0][1].top] == ["dog", "eel", "cat"]
    assert {one.version for one in results[0]} == {3}
    assert [one.gates for one in gates[0]] == [(1, value % 2, 0) for value in range(7)]
    assert sorted(metadata[0].signatures) == ["classify", "gates", "image_bytes"]
    assert metadata[0].signatures["gates"].inputs["images"].dtype == "uint8"
    assert metadata[0].signatures["gates"].inputs["images"].shape == (-1, 2, 2, 1)


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_versions_and_labels_are_asked_for(kind, form, served):
    versions = {5: "AVAILABLE", 6: "AVAILABLE"}
    target = served(kind, FakeModel(versions=versions, labels={"stable": 5}))

    def version(**choice):
        (answer,) = call(target, "classify", [picture(1)], form=form, **choice)
        return answer.version

    assert version() == 6
    assert version(version=5) == 5
    # A REST answer does not say which version the label stood for.
    assert version(label="stable") == (5 if kind == "grpc" else None)
    for choice, words in [
        ({"version": 7}, "version 7 .*--version"),
        ({"label": "canary"}, "label 'canary' .*Unrecognized servable version label"),
        ({"model": "nope"}, "no model 'nope' "),
    ]:
        with pytest.raises(UnknownModelError, match=words):
            version(**choice)
    with pytest.raises(UnknownModelError):
        call(target, "status", form=form, model="nope")


@pytest.mark.parametrize("kind", SERVERS)
def test_an_output_filter_leaves_out_the_rest(kind, served):
    target = served(kind, FakeModel())
    (answer,) = call(target, "classify", [picture(1)], 1, ["labels"])
    assert answer == Prediction("dog", None, None, 1)
    (answer,) = call(target, "classify", [picture(1)], 1, ["probabilities"])
    assert (answer.label, answer.probability) == (None, pytest.approx(0.7))
    (answer,) = call(target, "gates", [picture(1)], ["gates"])
    assert answer == Prediction(None, None, None, 1, (1, 1, 0))
    for name in ("scores", "gates"):
        with pytest.raises(SettingsError, match=rf"outputs must be some of.*\['{name}'\]"):
            call(target, "classify", [picture(1)], 1, [name])
    with pytest.raises(SettingsError, match="top above 1 needs"):
        call(target, "classify", [picture(1)], 2, ["labels"])


def test_labels_are_asked_once_a_version(served):
    model = FakeModel()
    with GaterNetClient(served("grpc", model), "fake") as client:
        for _ in range(3):
            assert [one.label for one in client.classify([picture(2)], top=9)[0].top] == [
                *("eel", "cat", "dog")
            ]
    assert model.calls["Predict"] == 4


def test_a_version_that_is_unloaded_before_its_labels_are_asked_is_asked_no_more(served):
    def before(method, request):
        if request.model_spec.signature_name == "classify" and 1 in model.versions:
            model.versions = {2: "AVAILABLE"}

    model = FakeModel(before)
    (answer,) = call(served("grpc", model), "classify", [picture(2)], 2)
    assert answer.version == 2
    assert len(answer.top) == 2


@pytest.mark.parametrize("kind", SERVERS)
def test_a_refused_batch_is_asked_in_halves(kind, served):
    model = FakeModel()
    images = [picture(value, broken=value == 11) for value in range(16)]
    answers = call(served(kind, model), "classify", images)
    assert labels_of(answers) == [
        "PictureError" if value == 11 else LABELS[value % 3] for value in range(16)
    ]
    # A search, not a request for each; over gRPC the one that it finds is asked by itself.
    alone = [1] if kind == "grpc" else []
    assert model.rows == [16, 8, 8, 4, 2, 2, 1, 1, *alone, 4]


def test_a_server_that_batches_gets_what_it_takes(served):
    model = FakeModel(max_rows=3)
    images = [picture(value) for value in range(20)]
    answers = call(served("grpc", model), "classify", images, batch_size=8, in_flight=1)
    assert labels_of(answers) == [LABELS[value % 3] for value in range(20)]
    assert model.rows == [8, 3, 3, 2, 3, 3, 3, 3]


def test_batches_are_cut_by_count_and_by_bytes(served):
    model = FakeModel()
    small, large = picture(0), picture(1, padding=3000)
    images = [small] * 5 + [large] * 3 + [small] * 2
    answers = call(
        served("grpc", model), "classify", images, batch_size=4, batch_bytes=4000, in_flight=1
    )
    assert labels_of(answers) == ["cat"] * 5 + ["dog"] * 3 + ["cat"] * 2
    assert model.rows == [4, 2, 1, 3]


@pytest.mark.parametrize("form", ["sync", "asyncio"])
def test_no_more_files_are_read_than_are_sent(form, served, tmp_path):
    class LargeFile(os.PathLike):
        def __fspath__(self):
            answered.append(model.calls["Predict"])
            return str(tmp_path / "large.png")

    (tmp_path / "large.png").write_bytes(picture(1, padding=3000))
    answered = []
    model = FakeModel()
    settings = {"form": form, "batch_bytes": 4000, "in_flight": 1}
    answers = call(served("grpc", model), "classify", [LargeFile() for _ in range(6)], **settings)
    assert labels_of(answers) == ["dog"] * 6
    # The next one shows that there is no room for it, and is kept.
    assert answered == [0, 0, 1, 2, 3, 4]


INVALID = ("INVALID_ARGUMENT", "Invalid PNG data, size 9 [[{{node x}}]]")
MIXED = (
    "FAILED_PRECONDITION",
    "Tensors with name 'x' from different tasks have different shapes and padding is turned off.",
)


@pytest.mark.parametrize("form", ["sync", "asyncio"])
@pytest.mark.parametrize("refusal", [INVALID, MIXED])
@pytest.mark.parametrize("method", ["classify", "gates"])
def test_what_other_callers_sent_in_the_same_batch_costs_nobody_else_an_answer(
    form, refusal, method, served
):
    def before(called, request):
        # A request for some of the outputs is in no batch.
        if called == "Predict" and not request.output_filter:
            raise RefusedError(*refusal)

    model = FakeModel(before)
    (answer,) = call(served("grpc", model), method, [picture(1)], form=form)
    assert (answer.label, answer.class_id, answer.version) == ("dog", 1, 1)
    assert answer.probability == pytest.approx(0.7)
    assert answer.gates == ((1, 1, 0) if method == "gates" else None)
    assert model.calls["Predict"] == 3


@pytest.mark.parametrize("kind", SERVERS)
def test_a_picture_that_is_refused_by_itself_is_blamed(kind, served):
    def before(called, request):
        if called == "Predict":
            raise RefusedError(*INVALID)

    model = FakeModel(before)
    target = served(kind, model)
    (answer,) = call(target, "classify", [picture(1)])
    assert isinstance(answer, PictureError)
    assert ("perhaps for a picture of another caller's" in str(answer)) == (kind == "rest")
    asked = 2 if kind == "grpc" else 1
    assert model.calls["Predict"] == asked
    # Nor is it asked again where its own decoder agrees, or it was asked for some outputs.
    spoilt = bytearray(picture(1))
    spoilt[spoilt.index(b"IDAT") + 5] ^= 0x55
    for images, outputs in (([bytes(spoilt)], None), ([picture(1)], ["labels"])):
        (answer,) = call(target, "classify", images, 1, outputs)
        assert isinstance(answer, PictureError)
        # REST filters what it was told, and asks for all.
        assert ("another caller" in str(answer)) == (kind == "rest" and outputs is not None)
        asked += 1
        assert model.calls["Predict"] == asked


def test_both_parts_of_an_answer_are_of_one_version(served):
    def before(called, request):
        if called != "Predict" or request.output_filter == ["labels"]:
            return
        if not request.output_filter:
            raise RefusedError(*INVALID)
        if model.calls["Predict"] == 3:
            # The version of the first part has gone.
            model.versions = {2: "AVAILABLE"}

    model = FakeModel(before)
    (answer,) = call(served("grpc", model), "classify", [picture(1)])
    assert (answer.label, answer.version) == ("dog", 2)
    assert model.calls["Predict"] == 5


def test_nothing_and_a_generator_of_pictures(served):
    model = FakeModel()
    target = served("grpc", model)
    assert call(target, "classify", []) == call(target, "gates", []) == []
    assert not model.calls
    assert labels_of(call(target, "classify", (picture(one) for one in range(2)))) == ["cat", "dog"]
    for single in (picture(0), "a.png", Image.new("L", (2, 2))):
        with pytest.raises(SettingsError, match=r"write \[picture\]"):
            call(target, "classify", single)


def test_stream_gives_what_was_answered_before_the_server_failed(served):
    def before(method, request):
        if model.calls["Predict"] > 2:
            raise RefusedError("FAILED_PRECONDITION", "Could not find variable o/bias")

    model = FakeModel(before)
    answers = []
    with (
        GaterNetClient(served("grpc", model), "fake", batch_size=2, in_flight=1) as client,
        pytest.raises(ModelError, match=r"variable o/bias.*export\.main"),
    ):
        answers.extend(client.stream([picture(1)] * 9))  # extend keeps what came
    assert labels_of(answers) == ["dog"] * 4


def test_stream_reads_no_further_than_it_must(served):
    read = []

    def images():
        for number in range(1000):
            read.append(number)
            yield picture(number % 3)

    target = served("grpc", FakeModel())
    with GaterNetClient(target, "fake", batch_size=4, in_flight=2) as client:
        answers = client.stream(images())
        assert next(answers).label == "cat"
        answers.close()
    assert len(read) <= 4 * 3


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_requests_in_flight_are_bounded_and_the_bound_is_used(kind, form, served):
    three, release = threading.Semaphore(0), threading.Event()

    def before(method, request):
        if method == "Predict":
            three.release()
            release.wait(20)

    model = FakeModel(before)
    target = served(kind, model)
    results = queue.Queue()
    images = [picture(value) for value in range(9)]
    settings = {"batch_size": 1, "in_flight": 3, "form": form, "timeout": 30}
    thread = threading.Thread(
        target=lambda: results.put(call(target, "classify", images, **settings))
    )
    thread.start()
    for _ in range(3):
        assert three.acquire(timeout=20)
    assert not three.acquire(timeout=0.3)
    release.set()
    thread.join()
    assert labels_of(results.get()) == [LABELS[value % 3] for value in range(9)]
    assert model.most_running == 3


def test_threads_share_the_bound(served):
    barrier, release = threading.Semaphore(0), threading.Event()

    def before(method, request):
        barrier.release()
        release.wait(20)

    model = FakeModel(before)
    with GaterNetClient(served("grpc", model), "fake", in_flight=2, timeout=30) as client:
        threads = [threading.Thread(target=client.classify, args=[[picture(1)]]) for _ in range(6)]
        for thread in threads:
            thread.start()
        assert barrier.acquire(timeout=20)
        assert barrier.acquire(timeout=20)
        assert not barrier.acquire(timeout=0.3)
        release.set()
        for thread in threads:
            thread.join()
    assert model.calls["Predict"] == 6
    assert model.most_running == 2


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_busy_servers_are_asked_again(kind, form, code, served):
    def before(method, request):
        if model.calls[method] <= 2:
            raise RefusedError(code, "Server Threadpool Exhausted")

    model = FakeModel(before)
    # More than gRPC keeps for retries unless told.
    images = [picture(value, padding=200_000) for value in range(4)]
    started = time.monotonic()
    answers = call(served(kind, model), "classify", images, form=form, version=1)
    assert labels_of(answers) == ["cat", "dog", "eel", "cat"]
    assert model.calls["Predict"] == 3
    # Pauses of 0.1 and 0.2 seconds, a fifth less at least.
    assert time.monotonic() - started >= 0.24


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "DEADLINE_EXCEEDED"])
@pytest.mark.parametrize("kind", SERVERS)
def test_other_failures_are_not_asked_again(kind, code, served):
    def before(method, request):
        raise RefusedError(code, "nothing to be done")

    model = FakeModel(before)
    try:
        (answer,) = call(served(kind, model), "classify", [picture(1)], version=1)
    except ClientError as error:
        answer = error
    assert isinstance(answer, PictureError) == (code == "INVALID_ARGUMENT")
    assert model.calls["Predict"] == 1


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_retries_end_with_their_number_and_with_the_deadline(kind, form, served):
    def before(method, request):
        raise RefusedError("UNAVAILABLE", "not now")

    model = FakeModel(before)
    target = served(kind, model)
    with pytest.raises(UnavailableError, match=r"must answer.*not now.*--target") as failure:
        call(target, "status", form=form)
    assert failure.value.code == "UNAVAILABLE"
    assert model.calls["GetModelStatus"] == 5
    started = time.monotonic()
    with pytest.raises(UnavailableError):
        call(target, "status", form=form, timeout=0.25)
    assert time.monotonic() - started < 5
    # The pauses are 0.08, 0.16 and 0.32 seconds at least.
    assert model.calls["GetModelStatus"] <= 5 + 3


def test_a_full_queue_is_not_called_an_absent_server(served):
    def before(method, request):
        raise RefusedError(
            "UNAVAILABLE", "The batch scheduling queue to which this task was submitted is full"
        )

    with pytest.raises(UnavailableError, match=r"must have room.*--in_flight"):
        call(served("grpc", FakeModel(before)), "classify", [picture(1)], attempts=1)


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_a_slow_server_costs_the_deadline_and_no_more(kind, form, served):
    release = threading.Event()
    model = FakeModel(lambda method, request: release.wait(30) and None)
    target = served(kind, model)
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"within 2\.0 s.*--timeout"):
        call(target, "classify", [picture(1)], form=form, timeout=2.0, version=1)
    assert 1.9 < time.monotonic() - started < 10
    release.set()
    assert model.calls["Predict"] == 1


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_restarted_between_two_calls(kind):
    serve, model = SERVERS[kind], FakeModel()
    with serve(model) as target:
        port = int(target.rpartition(":")[2])
        client = GaterNetClient(target, "fake")
        assert labels_of(client.classify([picture(1)])) == ["dog"]
    with client:
        with pytest.raises(UnavailableError):
            client.classify([picture(1)])
        with serve(model, port=port):
            assert labels_of(client.classify([picture(1)])) == ["dog"]
    assert model.calls["Predict"] == 2


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_that_comes_back_while_a_call_retries(kind):
    serve, model = SERVERS[kind], FakeModel()
    with serve(model) as target:
        port = int(target.rpartition(":")[2])
        client = GaterNetClient(target, "fake")
        client.status()
    results = queue.Queue()
    with client:
        thread = threading.Thread(target=lambda: results.put(client.classify([picture(1)])))
        thread.start()
        with serve(model, port=port):
            assert labels_of(results.get(timeout=20)) == ["dog"]
            thread.join()


FORK = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
from fake_servers import picture
from serving.client import GaterNetClient
client = GaterNetClient({target!r}, "fake", batch_size=1)
images = [picture(value) for value in range(4)]
print([one.label for one in client.classify(images)], flush=True)
child = os.fork()
print([one.label for one in client.classify(images)], flush=True)
if child:
    assert os.waitpid(child, 0)[1] == 0
    print([one.label for one in client.classify(images)], flush=True)
client.close()
"""


@pytest.mark.parametrize("kind", SERVERS)
def test_a_forked_process_goes_on_and_so_does_its_parent(kind, served):
    target = served(kind, FakeModel())
    code = FORK.format(root=str(ROOT), tests=str(ROOT / "tests"), target=target)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(["cat", "dog", "eel", "cat"])] * 4


PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_proxies_of_the_environment_do_not_capture_loopback(kind, host, served, monkeypatch):
    target = served(kind, FakeModel()).replace("127.0.0.1", host)
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert call(target, "status", attempts=1) == {1: "AVAILABLE"}


def test_proxies_hold_for_other_hosts(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy", "grpc_proxy", "https_proxy"):
            monkeypatch.delenv(name, raising=False)
        results = queue.Queue()

        def ask():
            try:
                call("models.invalid:8500", "status", attempts=1, timeout=20)
            except UnavailableError as error:
                results.put(error)

        thread = threading.Thread(target=ask)
        thread.start()
        proxy.settimeout(60)
        connection, _ = proxy.accept()
        with connection:
            assert connection.recv(1000).startswith(b"CONNECT models.invalid:8500 ")
        thread.join()
    assert "models.invalid:8500" in str(results.get())


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_waits_until_a_version_is_available(kind, form, served):
    states = iter(
        [
            {1: "AVAILABLE"},
            {2: "LOADING", 1: "AVAILABLE"},
            {2: "AVAILABLE", 1: "UNLOADING"},
        ]
    )
    seen = []

    def before(method, request):
        if len(seen) == 1:
            seen.append("unknown")
            raise RefusedError("NOT_FOUND", "Could not find any versions of model fake")
        model.versions = next(states)
        seen.append(model.versions)

    model = FakeModel(before)
    assert call(served(kind, model), "wait_ready", 2, 20.0, form=form) == 2
    assert len(seen) == 4


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_a_client_of_one_version_sees_and_awaits_others(kind, form, served):
    target = served(kind, FakeModel(versions={1: "AVAILABLE", 2: "AVAILABLE"}))
    for own, other in ((1, 2), (2, 1)):
        assert call(target, "wait_ready", other, 5.0, form=form, version=own) == other
        assert call(target, "wait_ready", None, 5.0, form=form, version=own) == own
        found = call(target, "status", form=form, version=own)
        assert found == {2: "AVAILABLE", 1: "AVAILABLE"}


def test_waiting_for_ever_or_less_than_nothing_is_refused(served):
    for seconds in (float("nan"), -1):
        with pytest.raises(SettingsError, match=f"0 or above.*{seconds}"):
            call("localhost:1", "wait_ready", None, seconds)


def test_waiting_tells_the_last_reason_that_there_was(served):
    def before(method, request):
        if model.calls[method] > 1:
            release.wait(20)

    release = threading.Event()
    model = FakeModel(before, versions={1: "LOADING"})
    with pytest.raises(DeadlineError, match="version 1 is LOADING"):
        call(served("grpc", model), "wait_ready", None, 3.0)
    release.set()


def test_waiting_for_what_failed_to_load_ends_at_once(served):
    model = FakeModel(versions={3: "END: no saved_model.pb", 2: "AVAILABLE"})
    target = served("grpc", model)
    assert call(target, "wait_ready") == 2
    with pytest.raises(ModelError, match=r"version 3 .*failed to load.*no saved_model\.pb"):
        call(target, "wait_ready", 3, 20.0)
    assert model.calls["GetModelStatus"] == 2


def test_waiting_ends_in_time_and_says_what_it_saw(served):
    target = served("grpc", FakeModel(versions={1: "LOADING"}))
    with pytest.raises(DeadlineError, match=r"within 1\.5 s.*version 1 is LOADING"):
        call(target, "wait_ready", None, 1.5)
    with pytest.raises(DeadlineError, match=r"version 9 .*no such version"):
        call(target, "wait_ready", 9, 1.5)


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_waiting_for_a_server_that_does_not_answer_ends_in_time(kind, form, served):
    release = threading.Event()
    target = served(kind, FakeModel(lambda method, request: release.wait(30) and None))
    started = time.monotonic()
    with pytest.raises(DeadlineError, match=r"within 0\.3 s.*did not answer"):
        call(target, "wait_ready", None, 0.3, form=form, timeout=25)
    release.set()
    assert time.monotonic() - started < 15


def test_waiting_for_a_label_waits_for_what_it_names(served):
    def before(method, request):
        if model.calls["GetModelMetadata"] == 2:
            model.version_labels = {"canary": 1}

    model = FakeModel(before)
    assert call(served("grpc", model), "wait_ready", None, 20.0, label="canary") == 1


def test_waiting_for_a_server_that_starts(served):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    results = queue.Queue()
    target = f"127.0.0.1:{port}"
    thread = threading.Thread(
        target=lambda: results.put(call(target, "wait_ready", None, 30.0, attempts=1))
    )
    thread.start()
    with grpc_server(FakeModel(), port=port):
        assert results.get(timeout=30) == 1
        thread.join()


def test_large_messages_pass_both_ways_and_too_large_ones_are_told(served):
    model = FakeModel()
    target = served("grpc", model)
    # Beyond gRPC's own 4 MiB, there and back.
    large = picture(1, padding=6_000_000)
    assert labels_of(call(target, "classify", [large])) == ["dog"]
    model.outputs = {
        "labels": ["dog"],
        "class_ids": [0],
        "probabilities": [[0.5] * 1_500_000],
    }
    (answer,) = call(target, "classify", [picture(1)])
    assert answer.probability == 0.5
    with pytest.raises(UnavailableError, match=r"larger than max.*max_message_bytes"):
        call(target, "classify", [picture(1)], max_message_bytes=2**20, attempts=1)
    model.outputs = None
    answers = call(target, "classify", [large, picture(0)], max_message_bytes=2**20)
    assert labels_of(answers) == ["PictureError", "cat"]
    assert "bytes, and this one has 6,000" in str(answers[0])


def test_a_server_with_a_smaller_limit_is_asked_in_halves(served):
    model = FakeModel()
    target = served("grpc", model, max_bytes=100_000)
    images = [picture(value, padding=60_000 * value) for value in range(3)]
    answers = call(target, "classify", images, attempts=1)
    assert labels_of(answers) == ["cat", "dog", "PictureError"]
    assert "larger than max" in str(answers[2])
    assert model.rows == [2]


def test_the_largest_message_is_learnt(served):
    model = FakeModel()
    target = served("grpc", model, max_bytes=2000)
    images = [picture(value % 3) for value in range(128)]
    started = time.monotonic()
    answers = call(target, "classify", images, in_flight=1, attempts=2)
    assert labels_of(answers) == [LABELS[value % 3] for value in range(128)]
    # gRPC itself tries the first one again.
    assert model.begun["Predict"] - model.calls["Predict"] == 2
    assert model.calls["Predict"] <= 8
    assert time.monotonic() - started < 15


def test_what_a_rest_server_finds_too_large_is_asked_in_smaller_parts(served):
    def before(method, request):
        if method == "Predict" and request.ByteSize() > 2000:
            raise RefusedError(413, "A body must have at most 2000 bytes")

    model = FakeModel(before)
    images = [*(picture(value % 3) for value in range(128)), picture(0, padding=2000)]
    answers = call(served("rest", model), "classify", images, in_flight=1)
    assert labels_of(answers) == [*(LABELS[value % 3] for value in range(128)), "PictureError"]
    assert "at most 2000 bytes" in str(answers[-1])
    # Nothing is sent again as it was, and later ones are as small as the first had to be.
    assert model.calls["Predict"] - len(model.rows) <= 3


def test_a_body_that_a_server_refuses_before_it_has_read_it():
    answer = http_answer("413 Content Too Large", '{"error": "A body must have at most 9 bytes"}')
    large = picture(1, padding=20_000_000)
    with http_server_of(answer) as target:
        (refused,) = call(target, "classify", [large], version=1, attempts=1)
    assert "larger than max (A body must have at most 9 bytes)" in str(refused)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"output_0": [1]}, "gave no class_ids and labels and probabilities"),
        (
            {"labels": ["x"], "class_ids": [0], "probabilities": [[1.0]] * 2},
            "2 probabilities for 1",
        ),
        ({"labels": ["x"], "class_ids": [5], "probabilities": [[1.0]]}, "do not fit together"),
        (
            {"labels": ["x"], "class_ids": [-2], "probabilities": [[1.0]]},
            "do not fit .*class_id -2",
        ),
        ({"labels": ["x"], "class_ids": [[0]], "probabilities": [[1.0]]}, "do not fit together"),
        ({"labels": [["x"]], "class_ids": [0], "probabilities": [[1.0]]}, "do not fit together"),
        ({"labels": ["x"], "class_ids": [0], "probabilities": [1.0]}, "do not fit together"),
    ],
)
@pytest.mark.parametrize("kind", SERVERS)
def test_a_model_that_answers_something_else_is_told(kind, outputs, words, served):
    model = FakeModel()
    model.outputs = outputs
    with pytest.raises(ModelError, match=f"{words}.*export.main"):
        call(served(kind, model), "classify", [picture(1)])


@pytest.mark.parametrize(
    "odd",
    [
        wire.Tensor(dtype=wire.DT_INT64, tensor_content=b"1234567"),
        wire.Tensor(dtype=wire.DT_STRING, tensor_content=b"\x05cat"),
        wire.Tensor(dtype=wire.DATA_TYPES["DT_HALF"]),
    ],
)
@pytest.mark.parametrize("name", ["labels", "class_ids", "probabilities"])
def test_outputs_that_are_no_tensors_of_ours_are_told(name, odd, served):
    model = FakeModel()
    model.outputs = {"labels": ["x"], "class_ids": [0], "probabilities": [[1.0]], name: odd}
    odd.tensor_shape.Clear()
    odd.tensor_shape.dim.add(size=1)
    with pytest.raises(ModelError, match=f"its output {name} is odd.*export.main"):
        call(served("grpc", model), "classify", [picture(1)])


def test_strings_in_tensor_content_are_read(served):
    # As --enable_serialization_as_tensor_content has it.
    labels = wire.Tensor(dtype=wire.DT_STRING, tensor_content=b"\x02\x00\xc3\xa9")
    labels.tensor_shape.dim.add(size=2)
    model = FakeModel()
    model.outputs = {"labels": labels, "class_ids": [0, 0], "probabilities": [[1.0]] * 2}
    assert labels_of(call(served("grpc", model), "classify", [picture(1)] * 2)) == ["\xe9", ""]


@pytest.mark.parametrize("kind", SERVERS)
def test_a_class_of_no_picture_is_an_error_of_the_picture(kind, served):
    model = FakeModel()
    model.outputs = {
        "labels": ["", "dog"],
        "class_ids": [-1, 1],
        "probabilities": [[0.0] * 3, [0.1, 0.8, 0.1]],
    }
    answers = call(served(kind, model), "classify", [picture(1)] * 2)
    assert labels_of(answers) == ["PictureError", "dog"]
    assert "no picture" in str(answers[0])


def test_odd_metadata_and_missing_labels_are_told(served):
    model = FakeModel()
    model.specs = wire.GetModelMetadataResponse()
    model.specs.metadata["signature_def"].value = b"\xff"
    target = served("grpc", model)
    for method, arguments in (("metadata", []), ("gates", [[picture(1)]])):
        with pytest.raises(ModelError, match=r"its metadata are odd.*export\.main"):
            call(target, method, *arguments)
    model.outputs = {
        "labels": ["x"],
        "class_ids": [0],
        "probabilities": [[1.0]],
        "classes": wire.Tensor(dtype=wire.DT_STRING),
    }
    model.outputs["classes"].tensor_shape.dim.add(size=1)
    model.outputs["classes"].tensor_shape.dim.add(size=0)
    with pytest.raises(ModelError, match="do not fit together"):
        call(target, "classify", [picture(1)], 2)


@pytest.mark.parametrize(
    "text",
    [
        "Malformed request: POST /v1/models/fake/versions/-1:predict",
        "input size does not match signature: 1!=2 len({x}) != len({tag,x}).",
        "output tensor alias not found in signature: nope",
        "Expects arg[0] to be float but string is provided",
    ],
)
def test_a_request_that_suits_no_picture_is_not_blamed_on_one(text, served):
    def before(method, request):
        raise RefusedError("INVALID_ARGUMENT", text)

    model = FakeModel(before)
    with pytest.raises(ModelError, match=r"cannot answer this request"):
        call(served("grpc", model), "classify", [picture(1)] * 4)
    assert model.calls["Predict"] == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"timeout": 0}, "timeout must be above 0"),
        ({"in_flight": 0}, "in_flight must be above 0"),
        ({"batch_size": 0}, "batch_size must be above 0"),
        ({"batch_bytes": 0}, "batch_bytes must be above 0"),
        ({"attempts": 6}, "attempts must be 1 to 5"),
        ({"max_message_bytes": 2**31}, "max_message_bytes"),
        ({"max_pixels": 0}, "limits of pictures"),
        ({"resize": -1}, "resize must be 0 or above"),
        ({"version": 1, "label": "stable"}, "by version or by label"),
        ({"timeout": float("inf")}, "timeout must be"),
        ({"timeout": "3"}, "timeout must be a float or an int, got '3'"),
        ({"version": "1"}, "version must be an int or None, got '1'"),
        ({"batch_size": 1.5}, "batch_size must be an int, got 1.5"),
        ({"batch_bytes": None}, "batch_bytes must be an int, got None"),
        ({"in_flight": 3.0}, "in_flight must be an int, got 3.0"),
        ({"attempts": True}, "attempts must be an int, got True"),
        ({"tls": "ca.pem"}, r"tls must be Tls\(...\), True, False or None, got 'ca.pem'"),
        ({"max_message_bytes": 1000}, "must leave room for pictures"),
        ({"version": 2**63}, "a version must be a number of 64 bits"),
        ({"model": ""}, "a model must be named"),
        ({"model": "\udcff"}, "a model must be named"),
        ({"label": ""}, "a label must be named"),
        ({"target": ""}, "target must"),
        ({"target": "local\nhost:1"}, "target must"),
        ({"target": "http://"}, "a REST target must be"),
        ({"target": "http://x:y"}, "a REST target must be"),
        ({"target": "http://x:0"}, "a REST target must be"),
        ({"target": "HTTPS://x:y"}, "a REST target must be"),
        ({"target": "localhost:84036"}, "a port from 1 to 65535"),
        ({"target": "localhost:0"}, "a port from 1 to 65535"),
        ({"target": "localhost:"}, "a port from 1 to 65535"),
        ({"target": "localhost:grpc"}, "a port from 1 to 65535"),
        ({"target": "dns:///localhost:84036"}, "a port from 1 to 65535"),
        ({"target": "ipv4:10.0.0.1:1,10.0.0.2:65536"}, "a port from 1 to 65535"),
        ({"target": "[::1]:65536"}, "a port from 1 to 65535"),
        ({"target": "ftp://localhost:1"}, "a target must be"),
        ({"target": "http://x:1/v1/models"}, "a REST target must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(SettingsError, match=words):
        GaterNetClient(**({"target": "localhost:1", "model": "fake"} | settings))


@contextlib.contextmanager
def http_server_of(*pieces):
    """Answers one request with these bytes, each sent alone; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)

        def answer():
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(10_000)
                for piece in pieces:
                    connection.sendall(piece() if callable(piece) else piece)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def http_answer(status, body):
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (http_answer("404 Not Found", "<html>"), UnknownModelError, "<html>"),
        (http_answer("200 OK", "<html>"), ServerError, "<html>"),
        (http_answer("400 Bad Request", "<html>"), ServerError, "HTTP 400, <html>"),
        (http_answer("504 Gateway Timeout", "proxy"), DeadlineError, "limit of its own.*proxy"),
        (b"\x00\x1b[1m\r\n\r\n", UnavailableError, r"\\x00\\x1b\[1m"),
        (http_answer("200 OK", "[]"), ServerError, r"UNKNOWN: \[\]"),
        (http_answer("200 OK", "{}"), ServerError, "REST interface gives.*model_version_status"),
        (http_answer("200 OK", '{"model_version_status": [1]}'), ServerError, "REST interface"),
        (http_answer("502 Bad Gateway", "proxy"), UnavailableError, "proxy"),
        (http_answer("200 OK", "{}")[:-1], UnavailableError, "1 more expected"),
        (b"", UnavailableError, "without response"),
        (b"SSH-2.0\r\n\r\n", UnavailableError, "SSH-2.0"),
    ],
)
def test_a_server_that_is_no_model_server_is_told(answer, error, words):
    with http_server_of(answer) as target, pytest.raises(error, match=words):
        call(target, "status", attempts=1)


@pytest.mark.parametrize(
    "outputs",
    ["null", "[[true]]", "[null]", "[[[1]]]", '[{"b65": 1}]', "1", "[[1, 2], [3]]", "[[1], 2]"],
)
def test_outputs_that_are_no_tensors_are_told(outputs):
    body = '{"outputs": {"labels": ["x"], "class_ids": [0], "probabilities": ' + outputs + "}}"
    with (
        http_server_of(http_answer("200 OK", body)) as target,
        pytest.raises(ClientError, match="must be"),
    ):
        call(target, "classify", [picture(1)], version=1, attempts=1)


def test_a_server_that_dribbles_does_not_outlast_the_deadline():
    ended = threading.Event()

    def late():
        ended.wait(0.2)
        return b" "

    body = [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", *[late] * 99]
    started = time.monotonic()
    with http_server_of(*body) as target:
        with pytest.raises(DeadlineError):
            call(target, "status", timeout=0.5)
        assert time.monotonic() - started < 12
        ended.set()


@pytest.mark.parametrize("form", ["sync", "asyncio"])
def test_a_rest_connection_is_used_again(form, served):
    model = FakeModel()
    call(served("rest", model), "classify", [picture(1)] * 9, 2, form=form, batch_size=2)
    assert model.calls["Predict"] == 6
    assert model.connections <= 4  # as many as are in flight


def test_the_service_config_is_grpcs_own():
    from serving.grpc_transport import channel_options
    from serving.transport import Settings

    options = dict(channel_options(Settings("models.example:8500")))
    (method,) = json.loads(options["grpc.service_config"])["methodConfig"]
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
    assert options["grpc.keepalive_time_ms"] == 300_000
    assert "grpc.enable_http_proxy" not in options


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        *((name, True) for name in ("localhost:1", "LOCALHOST.", "a.localhost:1", "127.9.9.9:1")),
        *((name, True) for name in ("[::1]:1", "::1", "ipv4:127.0.0.1:1", "ipv6:[::1]:1")),
        *((name, True) for name in ("dns:///localhost:1", "unix:/run/s", "0.0.0.0:1")),
        *((name, False) for name in ("localhost.example:1", "10.0.0.1:1", "127.example:1")),
        *((name, False) for name in ("[2001:db8::1]:1", "dns:///host:1")),
    ],
)
def test_which_targets_are_this_machine(target, expected):
    from serving.transport import is_loopback

    assert is_loopback(target) is expected


@pytest.mark.parametrize(
    "target",
    [
        *("localhost", "localhost:65535", "::1", "[::1]", "[::1]:1", "dns:///localhost:1"),
        *("dns://10.0.0.1/localhost:1", "ipv4:10.0.0.1:1,10.0.0.2:2", "ipv6:[::1]:1"),
        *("unix:/run/s:84036", "unix:///run/s", "xds:///models", "HTTP://localhost:1"),
    ],
)
def test_targets_of_every_kind_are_taken(target):
    from serving.transport import Settings

    Settings(target)


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_a_closed_client_says_so(kind, form, served):
    target = served(kind, FakeModel())

    async def ask():
        client = AsyncGaterNetClient(target, "fake", batch_size=1)
        await client.classify([picture(1)])
        for _ in range(2):
            await client.close()
        for count in (1, 3):
            with pytest.raises(SettingsError, match="the client is closed"):
                await client.classify([picture(1)] * count)

    if form == "asyncio":
        asyncio.run(ask())
        return
    client = GaterNetClient(target, "fake", batch_size=1)
    client.classify([picture(1)])
    for _ in range(2):
        client.close()
    for count in (1, 3):
        with pytest.raises(SettingsError, match="the client is closed"):
            client.classify([picture(1)] * count)


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_closing_does_not_wait_for_requests_under_way(kind, form, served):
    begun, release = threading.Semaphore(0), threading.Event()

    def before(method, request):
        if method == "Predict":
            begun.release()
            release.wait(20)

    target = served(kind, FakeModel(before))
    settings = {"batch_size": 1, "in_flight": 3, "timeout": 15}
    images = [picture(1)] * 9

    async def leave():
        async with AsyncGaterNetClient(target, "fake", **settings) as client:
            task = asyncio.create_task(client.classify(images))
            assert await asyncio.to_thread(begun.acquire, timeout=60)
            task.cancel()

    def classify():
        try:
            client.classify(images)
        except ClientError as error:
            errors.append(error)

    errors = []
    started = time.monotonic()
    if form == "asyncio":
        asyncio.run(leave())
    else:
        with GaterNetClient(target, "fake", **settings) as client:
            thread = threading.Thread(target=classify)
            thread.start()
            assert begun.acquire(timeout=60)
        thread.join()
        assert len(errors) == 1
    assert time.monotonic() - started < 12
    release.set()


def test_a_channel_that_cannot_be_closed_is_left(monkeypatch):
    """As after a Ctrl-C in the moment in which gRPC begins a request, which it then never ends."""

    class Channel:
        def close(self):
            begun.set()
            over.wait(60)

    begun, over = threading.Event(), threading.Event()
    monkeypatch.setattr("serving.grpc_transport.CLOSE_SECONDS", 0.1)
    started = time.monotonic()
    GrpcTransport(Settings("localhost:1")).end((Channel(), {}))
    assert time.monotonic() - started < 30
    assert begun.wait(30)
    over.set()


def test_the_pid_alone_starts_a_client_anew(served):
    """A forked child may not be able to use its parent's channel: it gets one of its own."""
    with GaterNetClient(served("grpc", FakeModel()), "fake") as client:
        channel = client._rules.transport._connection
        client._rules.transport._process = os.getpid() + 1
        assert labels_of(client.classify([picture(1)])) == ["dog"]
        assert client._rules.transport._connection is not channel
