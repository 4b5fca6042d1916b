"""Requests are put together into batches with TensorFlow Serving's parameters, limits and words."""

import contextlib
import threading

import numpy as np
import pytest
import tensorflow as tf
from local_servers import error_of, serving
from toy_models import predict_request, write_toy

from serving.config import Batching
from serving.models import LoadingOptions

SECONDS = 60


@pytest.fixture(scope="module")
def base_path(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    write_toy(directory)
    return directory


class Held:
    """A server whose only batch thread is kept busy until `go`."""

    def __init__(self, calls, go):
        self.calls = calls
        self.batches = []
        self._go = go
        self._scheduler = calls.server._shared
        metrics = calls.server.metrics
        observe = metrics.observe_batch

        def noted(rows, padding, seconds_queued):
            observe(rows, padding, seconds_queued)
            with self._scheduler._changed:
                self.batches.append((rows, padding))
                self._scheduler._changed.notify_all()

        metrics.observe_batch = noted

    def send(self, inputs, **spec):
        """Sends a request that must wait, and returns when it is queued."""
        before = self.queued()
        request = predict_request(inputs, **spec)
        running = self.calls.prediction.Predict.future(request, timeout=SECONDS)
        self._wait(lambda: self.queued() > before)
        return running

    def hold(self):
        """Keeps the thread busy."""
        request = predict_request({"path": [str(self._go)]}, signature="wait")
        running = self.calls.prediction.Predict.future(request, timeout=SECONDS)
        self._wait(lambda: self.batches)
        return running

    def go(self):
        self._go.touch()

    def queued(self):
        """Tasks in all queues."""
        with self._scheduler._changed:
            batches = [one for queue in self._scheduler._queues.values() for one in queue.batches]
            return sum(len(batch.tasks) for batch in batches)

    def _wait(self, until):
        with self._scheduler._changed:
            assert self._scheduler._changed.wait_for(until, SECONDS)


@contextlib.contextmanager
def held(base_path, tmp_path, **parameters):
    settings = {"max_batch_size": 8, "threads": 1} | parameters
    with serving(base_path, batching=Batching(**settings), max_threads=16) as calls:
        one = Held(calls, tmp_path / "go")
        try:
            running = one.hold()
            yield one
        finally:
            one.go()
        running.result()


def x(rows, columns=2, value=1.0):
    return {"x": np.full((rows, columns), value, np.float32)}


def y(running):
    response = running if hasattr(running, "outputs") else running.result()
    return tf.make_ndarray(response.outputs["y"]).tolist()


def test_waiting_requests_run_together_and_each_gets_its_own_rows(base_path, tmp_path):
    with held(base_path, tmp_path, allowed_batch_sizes=(4, 8)) as server:
        running = [server.send(x(rows, value=rows)) for rows in (1, 2, 3)]
        server.go()
        assert [y(one) for one in running] == [[[2 * n + 1] * 2] * n for n in (1, 2, 3)]
        assert server.batches[1:] == [(6, 2)]


def test_a_batch_is_never_larger_than_it_may_be(base_path, tmp_path):
    with held(base_path, tmp_path) as server:
        running = [server.send(x(3)) for _ in range(4)]
        server.go()
        for one in running:
            assert len(y(one)) == 3
        assert server.batches[1:] == [(6, 0), (6, 0)]


def test_a_full_queue_refuses(base_path, tmp_path):
    with held(base_path, tmp_path, max_enqueued_batches=2) as server:
        running = [server.send(x(8)) for _ in range(2)]
        text = (
            "The batch scheduling queue to which this task was submitted is full; currently 2 "
            "batches enqueued and max_enqueued_batches is 2"
        )
        found = error_of(server.calls.prediction.Predict, predict_request(x(1)))
        assert found == ("UNAVAILABLE", text)
        assert server.calls.post("toy:predict", {"inputs": [[1, 1]]}) == (503, {"error": text})
        server.go()
        assert [len(y(one)) for one in running] == [8, 8]
        assert y(server.calls.prediction.Predict(predict_request(x(1)), timeout=SECONDS))


def test_a_task_that_is_too_large(base_path, tmp_path):
    with held(base_path, tmp_path) as server:
        found = error_of(server.calls.prediction.Predict, predict_request(x(9)))
        assert found == (
            "INVALID_ARGUMENT",
            "Task size 9 is larger than maximum input batch size 8",
        )


def test_large_tasks_are_split_where_that_is_enabled(base_path, tmp_path):
    options = {"max_batch_size": 100, "split": True, "max_execution_batch_size": 4}
    with held(base_path, tmp_path, **options) as server:
        rows = np.arange(20, dtype=np.float32).reshape(10, 2)
        running = server.calls.prediction.Predict.future(
            predict_request({"x": rows}), timeout=SECONDS
        )
        server._wait(lambda: server.queued() == 3)
        server.go()
        assert y(running) == (rows * 2 + 1).tolist()
        assert server.batches[1:] == [(4, 0), (4, 0), (2, 0)]


@pytest.mark.parametrize("pad", [False, True])
def test_rows_of_different_shapes(base_path, tmp_path, pad):
    with held(base_path, tmp_path, pad=pad) as server:
        narrow, wide = server.send(x(1, 2)), server.send(x(1, 3, 5.0))
        server.go()
        if pad:
            # Filled up with the array's own first element.
            assert (y(narrow), y(wide)) == ([[3, 3, 3]], [[11, 11, 11]])
            return
        for one in (narrow, wide):
            error = one.exception()
            assert error.code().name == "FAILED_PRECONDITION"
            assert "have different shapes and padding is turned off" in error.details()
        assert y(server.calls.prediction.Predict(predict_request(x(1)), timeout=SECONDS))


@pytest.mark.parametrize(
    ("inputs", "signature", "code", "text"),
    [
        (
            {"x": np.float32(1)},
            "",
            "INVALID_ARGUMENT",
            "Batching Run() input tensors must have at least one dimension",
        ),
        (
            {"x": np.ones((2, 2), np.float32), "tag": [b"a"]},
            "tagged",
            "INVALID_ARGUMENT",
            "Batching Run() input tensors must have equal 0th-dimension size",
        ),
        (
            {"x": np.ones(2, np.float32)},
            "scalar",
            "FAILED_PRECONDITION",
            "Batched output tensor has 0 dimensions",
        ),
    ],
)
def test_what_cannot_be_batched(base_path, inputs, signature, code, text):
    with serving(base_path, batching=Batching()) as calls:
        request = predict_request(inputs, signature=signature)
        assert error_of(calls.prediction.Predict, request) == (code, text)


def test_no_rows_wait_for_the_deadline_as_on_the_real_server(base_path):
    with serving(base_path, batching=Batching()) as calls:
        request = predict_request(x(0))
        assert error_of(calls.prediction.Predict, request, timeout=0.5)[0] == "DEADLINE_EXCEEDED"
        code, text = error_of(calls.prediction.Predict, request, timeout=None)
        assert code == "INVALID_ARGUMENT"
        assert "A batch must have one row at least" in text
        # And, unlike there, nothing of it is left for the next one to stumble over.
        assert y(calls.prediction.Predict(predict_request(x(1, 7)), timeout=SECONDS))


def test_a_deadline_that_passes_in_the_queue(base_path, tmp_path):
    with held(base_path, tmp_path) as server:
        found = error_of(server.calls.prediction.Predict, predict_request(x(1)), timeout=0.3)
        assert found[0] == "DEADLINE_EXCEEDED"
        later = server.send(x(2))
        server.go()
        assert len(y(later)) == 2


def test_an_incomplete_batch_waits_so_long(base_path):
    parameters = Batching(max_batch_size=2, timeout_seconds=600, threads=1)
    with serving(base_path, batching=parameters) as calls:
        # Alone, either would wait for ten minutes.
        both = [
            calls.prediction.Predict.future(predict_request(x(1)), timeout=SECONDS)
            for _ in range(2)
        ]
        assert [y(one) for one in both] == [[[3, 3]]] * 2


def test_a_version_may_bring_its_own_parameters(tmp_path):
    version = write_toy(tmp_path)
    (version / "batching_params.pbtxt").write_text("max_batch_size { value: 2 }")
    for per_model, refused in ((True, True), (False, False)):
        with serving(tmp_path, batching=Batching(), per_model_batching=per_model) as calls:
            if refused:
                assert error_of(calls.prediction.Predict, predict_request(x(3))) == (
                    "INVALID_ARGUMENT",
                    "Task size 3 is larger than maximum input batch size 2",
                )
            else:
                calls.prediction.Predict(predict_request(x(3)), timeout=SECONDS)


def test_a_versions_own_batch_threads_end_with_it(tmp_path):
    version = write_toy(tmp_path, 1)
    own = version / "batching_params.pbtxt"
    own.write_text("num_batch_threads { value: 3 }")

    def threads():
        return sum(one.name.startswith("batch_threads") for one in threading.enumerate())

    with serving(
        tmp_path, batching=Batching(threads=1), per_model_batching=True, loading=LoadingOptions(0)
    ) as calls:
        assert threads() == 4
        write_toy(tmp_path, 2)
        models = calls.server.models
        models.poll()
        with models._changed:
            assert models._changed.wait_for(
                lambda: (
                    [state.name for _, state, _ in models.statuses("toy")] == ["AVAILABLE", "END"]
                ),
                SECONDS,
            )
        assert threads() == 1
    assert threads() == 0


def test_what_waits_is_answered_when_its_version_is_replaced(base_path, tmp_path):
    models = tmp_path / "models"
    write_toy(models, 1)
    with held(models, tmp_path, max_batch_size=1) as server:
        running = [server.send(x(1)) for _ in range(3)]
        write_toy(models, 2)
        server.calls.server.models.poll()
        server.go()
        assert [y(one) for one in running] == [[[3, 3]]] * 3


def test_a_graph_that_fails_fails_its_own_batch_only(base_path):
    with serving(base_path, batching=Batching(), loading=LoadingOptions(0)) as calls:
        bad = predict_request({"inputs": [b"no example"]}, signature="classify")
        assert error_of(calls.prediction.Predict, bad)[0] == "INVALID_ARGUMENT"
        assert y(calls.prediction.Predict(predict_request(x(1)), timeout=SECONDS)) == [[3, 3]]
