"""python -m serving.loadtest: what it sends, and what it says of the answers."""

import itertools
import json

import pytest
from fake_servers import FakeModel, RefusedError, grpc_server, picture

from serving.client.channel import CHANNEL_OPTIONS
from serving.loadtest import PAUSE, main, run_load, summarize


@pytest.fixture
def load(tmp_path, capsys):
    """Runs the load test on a model; returns its status and output."""
    (tmp_path / "dog.png").write_bytes(picture(1))

    def call(model, *flags):
        with grpc_server(model) as target:
            server = [f"--target={target}", "--model=fake", "--timeout=60"]
            status = main([*server, *flags, str(tmp_path / "dog.png")])
        return status, capsys.readouterr().out

    return call


def test_sends_so_many_requests(load):
    model = FakeModel()
    flags = ["--requests=20", "--concurrency=3", "--batch_size=2", "--gates", "--output=json"]
    status, out = load(model, *flags, "--duration=1000")
    assert status == 0
    report = json.loads(out)
    assert (report["answered"], report["errors"]) == (20, {})
    assert report["pictures_per_second"] == pytest.approx(2 * report["requests_per_second"])
    assert set(report["latency_ms"]) == {"p50", "p90", "p99", "mean", "max"}
    # One more shows beforehand that all is well.
    assert model.rows == [1] + [2] * 20
    assert set(model.signatures) == {"gates_bytes"}


def test_counts_what_failed(load):
    def before(request):
        if len(model.rows) % 2 == 0:
            raise RefusedError("INTERNAL", "out of paper")

    model = FakeModel(before)
    status, out = load(model, "--requests=10", "--concurrency=1")
    assert status == 3
    assert "errors      5 INTERNAL (5 answered in" in out
    assert "grpc_max_threads" not in out


@pytest.mark.parametrize(("callers", "threads"), [(1, 80), (50, 100)])
def test_refused_callers_pause_and_the_flag_is_named(load, monkeypatch, callers, threads):
    def before(request):
        if len(model.rows) > 1:
            raise RefusedError("RESOURCE_EXHAUSTED", "Server Threadpool Exhausted")

    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    monkeypatch.setitem(CHANNEL_OPTIONS, "grpc.enable_retries", 0)
    model = FakeModel(before)
    status, out = load(model, "--requests=5", f"--concurrency={callers}")
    assert status == 3
    assert "errors      5 RESOURCE_EXHAUSTED (0 answered in" in out
    assert f"give it --grpc_max_threads={threads} or more" in out
    assert pauses == [PAUSE] * 5


def test_no_request_begins_after_the_duration(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    for duration, answered in ((1, 1), (9, 3), (10, 4)):
        assert run_load(lambda: None, callers=1, duration=duration)["answered"] == answered


def test_percentiles_are_of_the_values():
    summary = summarize([*range(100, 0, -1)])
    assert summary == {"p50": 50, "p90": 90, "p99": 99, "mean": 50.5, "max": 100}
    assert summarize([]) == {}
