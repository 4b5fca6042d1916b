"""python -m serving.loadtest: what it sends, what it says of the answers."""

import asyncio
import collections
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest
from fake_servers import FakeModel, RefusedError, grpc_server, picture, rest_server
from helpers import ROOT, running

from serving.loadtest import Load, Report, percentile, run_load


@pytest.fixture
def load(run_module):
    """Runs the command on a server of the model that is given."""

    def run(model, *flags, serve=grpc_server):
        with serve(model) as target:
            return run_module(
                "serving.loadtest", f"--target={target}", "--model=fake", "--warmup=0", *flags
            )

    return run


@pytest.mark.parametrize("serve", [grpc_server, rest_server])
@pytest.mark.parametrize("kind", ["image_bytes", "images", "gates"])
def test_a_fixed_number_of_requests(load, serve, kind):
    model = FakeModel()
    # The fake has no signature for raw arrays alone, and takes them for any.
    model.outputs = {"labels": ["cat"], "class_ids": [0], "probabilities": [[1.0]]}
    flags = ["--requests=23", "--concurrency=3", "--batch_size=4", f"--input={kind}"]
    done = load(model, *flags, "--output=json", serve=serve)
    assert done.status == 0, done.err
    told = json.loads(done.out)
    assert (told["mode"], told["concurrency"], told["pictures_per_request"]) == ("closed", 3, 4)
    assert (told["sent"], told["answered"], told["errors"]) == (23, 23, {})
    assert told["requests_per_second"] == pytest.approx(23 / told["seconds"], rel=0.05)
    assert told["pictures_per_second"] == pytest.approx(told["requests_per_second"] * 4, rel=0.01)
    times = told["latency_ms"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["max"]
    assert model.rows == [4] * 24  # one before the load
    assert model.most_running <= 3


def test_prints_text_and_counts_what_failed(load, tmp_path):
    def before(method, request):
        if model.calls["Predict"] in (3, 5):
            raise RefusedError("UNAVAILABLE", "full")
        if model.calls["Predict"] == 7:
            raise RefusedError("RESOURCE_EXHAUSTED", "Server Threadpool Exhausted")

    (tmp_path / "a.png").write_bytes(picture(1))
    model = FakeModel(before)
    done = load(model, "--requests=10", "--concurrency=1", "a.png")
    assert done.status == 3, done.err
    first, throughput, latency, errors = done.out.splitlines()
    assert first.startswith("closed loop, 1 callers, 1 pictures a request, ")
    assert throughput.startswith("throughput")
    assert latency.split()[::2][1:] == ["p50", "p90", "p99", "mean", "max"]
    assert errors == "errors      1 RESOURCE_EXHAUSTED, 2 UNAVAILABLE (7 of 10 answered)"
    assert model.calls["Predict"] == 11  # nothing is retried


def test_an_open_loop_keeps_its_rate_when_the_server_does_not(load):
    def before(method, request):
        # All but the first, which is no part of the load, wait until the last has come.
        if method == "Predict" and model.calls["Predict"] > 1:
            if model.calls["Predict"] == 11:
                last.set()
            assert last.wait(20)

    last = threading.Event()
    model = FakeModel(before)
    done = load(model, "--rate=50", "--requests=10", "--output=json")
    assert done.status == 0, done.err
    told = json.loads(done.out)
    assert (told["mode"], told["rate"], told["answered"]) == ("open", 50, 10)
    assert model.most_running == 10
    # The first request was due 9 / 50 seconds before the last.
    assert told["latency_ms"]["max"] >= 180


def test_waiting_for_room_counts_as_latency():
    async def main():
        async def send():
            await asyncio.sleep(0.05)
            return "OK"

        return await run_load(Load(rate=1000, concurrency=1, duration=None, requests=5), send)

    report = asyncio.run(main())
    assert len(report.latencies) == 5
    assert max(report.latencies) >= 5 * 0.05 - 4 / 1000


def test_a_fixed_duration():
    async def main(load):
        async def send():
            await asyncio.sleep(0.001)
            return "OK"

        return await run_load(load, send)

    for rate in (None, 100):
        report = asyncio.run(main(Load(rate=rate, concurrency=2, duration=0.3)))
        assert 0.28 < report.seconds < 1.5
        assert len(report.latencies) <= (600 if rate is None else 30)
        assert report.latencies


def test_an_open_loop_ends_in_time_and_tells_what_was_not_sent():
    async def main(load):
        async def send():
            await asyncio.sleep(0.02)
            return "OK"

        return await run_load(load, send)

    # 4 callers and 20 ms a request: 200 a second at most.
    for rate in (1000, 1e9):
        report = asyncio.run(main(Load(rate=rate, concurrency=4, duration=0.5)))
        assert report.seconds < 0.9
        assert 4 <= report.sent <= 104
        assert report.to_dict()["not_sent"] == report.not_sent == rate * 0.5 - report.sent
        assert f"{report.not_sent} more were due" in report.to_text()
    report = asyncio.run(main(Load(rate=1e9, concurrency=4, duration=5, requests=8)))
    assert (report.sent, report.not_sent) == (8, 0)
    assert "due" not in report.to_text()


@pytest.mark.parametrize("rate", [None, 1000])
def test_who_interrupts_a_load_gets_its_report(rate):
    async def main():
        async def send():
            await asyncio.sleep(60 if len(sent) == 7 else 0)
            sent.append(1)
            return "OK"

        sent = []
        load = asyncio.create_task(run_load(Load(rate=rate, concurrency=1, duration=None), send))
        while len(sent) < 7:
            await asyncio.sleep(0.01)
        load.cancel()
        return await load

    report = asyncio.run(main())
    assert (report.interrupted, report.sent, report.not_sent) == (True, 7, 0)


def interrupt_another_thread(process_id):
    """Ctrl-C that does not wake the event loop, as when it comes just before that falls asleep."""
    others = {int(name) for name in os.listdir(f"/proc/{process_id}/task")} - {process_id}
    send = ctypes.CDLL(None).tgkill
    # Those that have ended meanwhile get none.
    assert any(send(process_id, thread, int(signal.SIGINT)) == 0 for thread in others)


@pytest.mark.parametrize("serve", [grpc_server, rest_server])
@pytest.mark.parametrize("warmup", [0, 60])
def test_ctrl_c_ends_a_load(serve, warmup):
    def before(method, request):
        if method == "Predict" and model.calls["Predict"] == 9:
            begun.set()
        if model.calls["Predict"] >= 9:
            release.wait(30)

    begun, release = threading.Event(), threading.Event()
    model = FakeModel(before)
    with serve(model) as target:
        flags = [f"--target={target}", "--model=fake", f"--warmup={warmup}", "--concurrency=1"]
        with running("serving.loadtest", *flags, "--timeout=25", cwd=ROOT) as process:
            assert begun.wait(30)
            interrupt_another_thread(process.pid)
            out, err = process.communicate(timeout=15)
        release.set()
    assert (process.returncode, err) == (130, "")
    # One came before the load, and the ninth was not answered.
    assert out == "" if warmup else "(7 of 7 answered" in out


def test_ctrl_c_ends_the_reading_of_a_list_of_pictures():
    with subprocess.Popen(
        [sys.executable, "-m", "serving.loadtest", "--target=localhost:1", "-"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            # It reads from its standard input once that is empty.
            process.stdin.write("a.png\n")
            process.stdin.flush()
            while fcntl.ioctl(process.stdin, termios.FIONREAD, b"\0" * 4) != b"\0" * 4:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "")


def test_a_report_that_cannot_be_written(load):
    with grpc_server(FakeModel()) as target, open("/dev/full", "w") as full:
        flags = [f"--target={target}", "--model=fake", "--warmup=0", "--requests=1"]
        done = subprocess.run(
            [sys.executable, "-m", "serving.loadtest", *flags],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("serving.loadtest: error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "No space left" in done.stderr


def test_percentiles_are_of_the_values():
    values = [float(value) for value in range(1, 201)]
    assert [percentile(values, share) for share in (50, 90, 99)] == [100.0, 180.0, 198.0]
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0
    assert percentile([], 50) is None
    report = Report(Load(), 1, 1.0, [], collections.Counter(UNAVAILABLE=2))
    assert report.to_dict()["latency_ms"]["p50"] is None
    assert "2 UNAVAILABLE (0 of 2 answered)" in report.to_text()


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--target=localhost:1"], 4, "localhost:1"),
        (["--model=nope"], 5, "no model 'nope'"),
        (["missing.png"], 1, "missing.png: cannot be read"),
        (["--input=gates", "missing.png"], 1, "missing.png: cannot be read"),
        (["broken.png"], 1, "refused the request: Invalid PNG data"),
        (["--requests=0"], 2, "--requests must be above 0"),
        (["--rate=-1"], 2, "--rate must be above 0"),
        (["--rate=inf"], 2, "--rate must be above 0 and finite"),
        (["--warmup=-1"], 2, "--warmup must be 0 or above"),
        (["--warmup=nan"], 2, "--warmup must be 0 or above"),
    ],
)
def test_what_cannot_be_measured_is_told(load, flags, status, words, tmp_path):
    (tmp_path / "broken.png").write_bytes(picture(0, broken=True))
    done = load(FakeModel(), "--requests=1", *flags)
    assert (done.status, done.out) == (status, "")
    assert words in done.err
    assert "Traceback" not in done.err


def test_the_local_server(run_module, server, trained):
    flags = [f"--target={server}", "--requests=20", "--warmup=0.1", "--output=json"]
    for kind in ("image_bytes", "images", "gates"):
        done = run_module("serving.loadtest", *flags, f"--input={kind}", trained.pictures)
        assert done.status == 0, done.err
        assert json.loads(done.out)["answered"] == 20
