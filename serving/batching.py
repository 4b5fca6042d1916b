"""Puts requests together into batches, with TensorFlow Serving's parameters, limits and words."""

import collections
import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from serving.config import Batching
from serving.errors import deadline_exceeded, failed_precondition, invalid, unavailable

Run = Callable[[list[np.ndarray]], list[np.ndarray]]


class BatchMetrics:
    """What a scheduler reports; the server's own counts."""

    def observe_batch(self, rows: int, padding: int, seconds_queued: Sequence[float]) -> None:
        """A batch starts: its rows, those added to fill it up, and how long its tasks waited."""


@dataclasses.dataclass
class _Task:
    arrays: list[np.ndarray]
    rows: int
    since: float
    answer: concurrent.futures.Future = dataclasses.field(
        default_factory=concurrent.futures.Future, repr=False
    )


@dataclasses.dataclass
class _Batch:
    tasks: list[_Task]
    rows: int


class _Queue:
    """The waiting batches of one signature; the last one still takes rows."""

    def __init__(self, names: Sequence[str], run: Run):
        self.names = names
        self.run = run
        self.batches: collections.deque[_Batch] = collections.deque()


class BatchScheduler:
    """Threads that run batches from any number of queues, in turn.

    Args:
      parameters: sizes, times and threads.
      metrics: is told of every batch.
    """

    def __init__(self, parameters: Batching, metrics: BatchMetrics | None = None):
        self.parameters = parameters
        self._metrics = metrics or BatchMetrics()
        self._queues: collections.OrderedDict[Hashable, _Queue] = collections.OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batch_threads-{number}", daemon=True)
            for number in range(parameters.threads)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Runs what waits, and ends the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def forget(self, owner: Hashable) -> None:
        """Drops the queues whose key begins with `owner`; nothing waits in them any more."""
        with self._changed:
            for key in [key for key in self._queues if isinstance(key, tuple) and key[0] == owner]:
                del self._queues[key]

    def run(
        self,
        key: Hashable,
        names: Sequence[str],
        run: Run,
        arrays: list[np.ndarray],
        timeout: float | None = None,
    ) -> list[np.ndarray]:
        """Runs arrays of equal first dimension together with what others ask under the same key.

        Args:
          key: of the queue.
          names: the tensors' names, for messages.
          run: takes one array for each name and returns arrays of as many rows.
          arrays: one for each name, one row at least.
          timeout: seconds to wait for the answer.

        Raises:
          ServingError: UNAVAILABLE when the queue is full, INVALID_ARGUMENT when there are too
            many rows, DEADLINE_EXCEEDED, or what `run` raised.
        """
        tasks = self._split(arrays)
        with self._changed:
            if self._closed:
                raise unavailable("The server is shutting down")
            queue = self._queues.setdefault(key, _Queue(names, run))
            self._enqueue(queue, tasks)
            self._changed.notify_all()
        _, waiting = concurrent.futures.wait([task.answer for task in tasks], timeout)
        if waiting:
            for answer in waiting:
                answer.cancel()
            raise deadline_exceeded("Deadline Exceeded")
        results = [task.answer.result() for task in tasks]
        if len(results) == 1:
            return results[0]
        return [np.concatenate(parts) for parts in zip(*results, strict=True)]

    def _split(self, arrays):
        if not all(array.ndim for array in arrays):
            raise invalid("Batching Run() input tensors must have at least one dimension")
        rows = {len(array) for array in arrays}
        if len(rows) > 1:
            raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
        (size,) = rows
        limit = self.parameters.max_batch_size
        if size > limit:
            raise invalid(f"Task size {size} is larger than maximum input batch size {limit}")
        step = self.parameters.rows_at_once
        now = time.monotonic()
        return [
            _Task([array[start : start + step] for array in arrays], min(step, size - start), now)
            for start in range(0, size, step)
        ]

    def _enqueue(self, queue, tasks):
        """All tasks, or none where the queue has no room for all of them."""
        limit = self.parameters.rows_at_once
        last = queue.batches[-1].rows if queue.batches else limit
        needed = 0
        for task in tasks:
            last += task.rows
            if last > limit:
                needed, last = needed + 1, task.rows
        most = self.parameters.max_enqueued_batches
        if len(queue.batches) + needed > most:
            raise unavailable(
                "The batch scheduling queue to which this task was submitted is full; currently "
                f"{len(queue.batches)} batches enqueued and max_enqueued_batches is {most}"
            )
        for task in tasks:
            if queue.batches and queue.batches[-1].rows + task.rows <= limit:
                queue.batches[-1].tasks.append(task)
                queue.batches[-1].rows += task.rows
            else:
                queue.batches.append(_Batch([task], task.rows))

    def _take(self):
        """The next batch that is due and its queue, or None when the scheduler is closed."""
        full = self.parameters.rows_at_once
        with self._changed:
            while True:
                wait = None
                for key, queue in self._queues.items():
                    if not queue.batches:
                        continue
                    first = queue.batches[0]
                    due = first.tasks[0].since + self.parameters.timeout_seconds
                    left = due - time.monotonic()
                    closed = len(queue.batches) > 1 or first.rows >= full or self._closed
                    if closed or left <= 0:
                        queue.batches.popleft()
                        self._queues.move_to_end(key)
                        return queue, first
                    wait = left if wait is None else min(wait, left)
                if self._closed:
                    return None
                self._changed.wait(wait)

    def _work(self):
        while (taken := self._take()) is not None:
            queue, batch = taken
            tasks = [task for task in batch.tasks if task.answer.set_running_or_notify_cancel()]
            if tasks:
                self._execute(queue, tasks)

    def _execute(self, queue, tasks):
        try:
            merged = [
                self._merge(name, [task.arrays[position] for task in tasks])
                for position, name in enumerate(queue.names)
            ]
            rows = sum(task.rows for task in tasks)
            padding = self._padding(rows)
            if padding:
                # Rows that the model has just seen: nothing that it could not compute.
                merged = [np.concatenate([all_, all_[[-1] * padding]]) for all_ in merged]
            now = time.monotonic()
            self._metrics.observe_batch(rows, padding, [now - task.since for task in tasks])
            outputs = queue.run(merged)
            for output in outputs:
                if output.ndim == 0:
                    raise failed_precondition("Batched output tensor has 0 dimensions")
                if len(output) != rows + padding:
                    raise failed_precondition(
                        "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                        "dimension sizes of the input tensors"
                    )
        except Exception as error:  # Whatever it is, those who wait must get it, each.
            for task in tasks:
                task.answer.set_exception(error)
            return
        start = 0
        for task in tasks:
            task.answer.set_result([output[start : start + task.rows] for output in outputs])
            start += task.rows

    def _merge(self, name, arrays):
        shapes = {array.shape[1:] for array in arrays}
        if len(shapes) > 1:
            if not self.parameters.pad or len({len(shape) for shape in shapes}) > 1:
                raise failed_precondition(
                    f"Tensors with name '{name}' from different tasks have different shapes and "
                    "padding is turned off. Set pad_variable_length_inputs to true, or ensure that "
                    "all tensors with the same name have equal dimensions starting with the first "
                    "dim."
                )
            largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
            arrays = [_filled_up(array, largest) for array in arrays]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    def _padding(self, rows):
        for size in self.parameters.allowed_batch_sizes:
            if size >= rows:
                return size - rows
        return 0


def _filled_up(array, shape):
    """Filled up behind with the array's first element, as the server does."""
    widths = [(0, 0)] + [
        (0, most - size) for most, size in zip(shape, array.shape[1:], strict=True)
    ]
    value = array.flat[0] if array.size else (b"" if array.dtype == object else 0)
    return np.pad(array, widths, constant_values=value)
