"""What the local server counts, under the names and at the path of TensorFlow Serving.

prometheus_client keeps and writes the numbers. It adds `_total` to the names of counters, which
TensorFlow Serving does not; that is taken off again.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serving.batching import BatchMetrics
from serving.errors import ServingError

# Microseconds: 10 times powers of 1.8, 33 of them, to about 20 minutes.
_LATENCIES = tuple(10 * 1.8**power for power in range(33))
_QUEUING = tuple(100 * 1.2**power for power in range(52))
_BATCH_SIZES = tuple(2**power for power in range(15))
_PREFIX = ":tensorflow:serving:"
_OURS = ":gaternet:serving:"


class Metrics(BatchMetrics):
    """The counts of one server."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            f"{_PREFIX}request_count",
            "The total number of requests.",
            ["model_name", "status"],
            registry=registry,
        )
        self._latency = Histogram(
            f"{_PREFIX}request_latency",
            "Distribution of wall time (in microseconds) for a request.",
            ["model_name", "API", "entrypoint"],
            buckets=_LATENCIES,
            registry=registry,
        )
        self._runtime = Histogram(
            f"{_PREFIX}runtime_latency",
            "Distribution of wall time (in microseconds) in TensorFlow.",
            ["model_name", "API", "runtime"],
            buckets=_LATENCIES,
            registry=registry,
        )
        self._queuing = Histogram(
            f"{_PREFIX}batching_session:queuing_latency",
            "Distribution of wall time (in microseconds) spent in queuing.",
            ["thread_pool_name"],
            buckets=_QUEUING,
            registry=registry,
        )
        self._runs = Counter(
            f"{_PREFIX}batching_session:wrapped_run_count",
            "Total count of run calls on the wrapped session.",
            registry=registry,
        )
        self._batch_sizes = Histogram(
            f"{_PREFIX}batching_session:processed_batch_size",
            "Rows of a batch, with padding.",
            buckets=_BATCH_SIZES,
            registry=registry,
        )
        self._padding = Histogram(
            f"{_PREFIX}batching_session:padding_size",
            "Rows added to fill a batch up.",
            buckets=_BATCH_SIZES,
            registry=registry,
        )
        self._rows = Histogram(
            f"{_OURS}request_rows",
            "Rows of a request that was answered.",
            ["model_name"],
            buckets=_BATCH_SIZES,
            registry=registry,
        )
        self._gates = Counter(
            f"{_OURS}gates",
            "Gates that answers told, by whether they were on.",
            ["model_name", "version", "gate"],
            registry=registry,
        )
        self._gate_rate = Gauge(
            f"{_OURS}gate_rate",
            "Share of gates that were on, over all answers that told gates.",
            ["model_name", "version"],
            registry=registry,
        )

    @contextmanager
    def request(self, model: str, api: str, entrypoint: str) -> Iterator[None]:
        """Counts the request in the block by the status of its end, and times it if that is OK."""
        begun = time.perf_counter()
        status = "OK"
        try:
            yield
            self._latency.labels(model, api, entrypoint).observe(_micros(begun))
        except ServingError as error:
            status = error.code.name
            raise
        except Exception:
            status = "INTERNAL"
            raise
        finally:
            self._requests.labels(model, status).inc()

    @contextmanager
    def runtime(self, model: str, api: str) -> Iterator[None]:
        """Times the block's work in TensorFlow."""
        begun = time.perf_counter()
        yield
        self._runtime.labels(model, api, "TF1").observe(_micros(begun))

    def observe_rows(self, model: str, rows: int) -> None:
        """A request of so many rows was answered."""
        self._rows.labels(model).observe(rows)

    def observe_gates(self, model: str, version: int, gates: np.ndarray) -> None:
        """An answer told these gates; 0 is off."""
        counts = [self._gates.labels(model, str(version), gate) for gate in ("on", "off")]
        on = int(np.count_nonzero(gates))
        for count, number in zip(counts, (on, gates.size - on), strict=True):
            count.inc(number)
        total_on, total_off = (count._value.get() for count in counts)
        if total_on + total_off:
            rate = total_on / (total_on + total_off)
            self._gate_rate.labels(model, str(version)).set(rate)

    def observe_batch(self, rows: int, padding: int, seconds_queued: Sequence[float]) -> None:
        """See `BatchMetrics`."""
        self._runs.inc()
        self._batch_sizes.observe(rows + padding)
        self._padding.observe(padding)
        for seconds in seconds_queued:
            self._queuing.labels("batch_threads").observe(seconds * 1e6)

    def page(self) -> bytes:
        """The page that Prometheus scrapes."""
        text = prometheus_client.generate_latest(self._registry).decode()
        return re.sub(r"^((?:# \w+ )?:[\w:]+)_total\b", r"\1", text, flags=re.MULTILINE).encode()


def _micros(begun):
    return (time.perf_counter() - begun) * 1e6
