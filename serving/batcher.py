"""Continuous batching: while the engine runs one batch, the next one gathers."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from serving import logs
from serving.contract import Answer, Explain, Outcome
from serving.engine import Intervention
from sparsecbm.errors import InputError, OverloadedError, SparseCBMError, UnavailableError

_log = structlog.get_logger()


class Model(Protocol):
    """What the batcher needs of an engine."""

    def predict(self, texts: Sequence[str], explain: Sequence[Explain]) -> list[Answer]: ...

    def intervene(self, requests: Sequence[Intervention]) -> list[Outcome]: ...


class Observer(Protocol):
    """Who is told of waits and of texts that nobody waits for any more."""

    def queued(self, seconds: float) -> None: ...

    def cancelled(self, texts: int) -> None: ...


@dataclass(slots=True, eq=False)
class _Job:
    """A request's items, which run together with others of the same kind."""

    kind: tuple[str, ...]
    items: Sequence[Any]
    future: asyncio.Future[list[Any]]
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """Runs an engine in one thread, always on everything of a kind that has gathered meanwhile.

    There is no fixed wait: a lone request runs at once, and under load batches grow by themselves. Kinds take turns
    in the order in which their oldest requests came.

    Args:
        engine: blocking and thread-safe.
        observer: is told how long jobs waited and which were cancelled.
        max_queue: most texts that wait.
        max_batch: most texts that run together, unless one request has more.
        max_wait: most seconds that a text is to wait, by the speed of the batches before: those that are taken
            keep their latency, however many come.
    """

    def __init__(
        self, engine: Model, observer: Observer, max_queue: int, max_batch: int, max_wait: float = math.inf
    ) -> None:
        self._engine = engine
        self._observer = observer
        self._max_queue = max_queue
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._queue: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._waiting = 0
        self._rate = 0.0  # texts per second, smoothed
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._worker: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether jobs are being run."""
        return self._worker is not None and not self._worker.done()

    def start(self) -> None:
        """Begins to run jobs, on the running event loop."""
        self._worker = asyncio.get_running_loop().create_task(self._work(), name="batcher")
        self._worker.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Ends at once; whoever still waits gets an UnavailableError."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def predict(self, texts: Sequence[str], explain: Sequence[Explain]) -> list[Answer | InputError]:
        """Answers texts; in the place of one that the engine refuses is its error.

        Raises:
            OverloadedError: too many texts wait already.
        """
        return await self._submit(("predict", *sorted({*explain, "concepts"})), texts)

    async def intervene(self, requests: Sequence[Intervention]) -> list[Outcome | InputError]:
        """Applies interventions; in the place of one that the engine refuses is its error.

        Raises:
            OverloadedError: too many texts wait already.
        """
        return await self._submit(("intervene",), requests)

    async def _submit(self, kind: tuple[str, ...], items: Sequence[Any]) -> list[Any]:
        if not self.alive:
            raise UnavailableError("The engine is not running. Try again later.")
        wait = self._waiting / self._rate if self._rate else 0.0
        if self._waiting + len(items) > self._max_queue or wait > self._max_wait:
            seconds = max(1, math.ceil(wait))
            raise OverloadedError(
                f"{self._waiting} texts wait already, and no more than {self._max_queue} do, nor for more than "
                f"{self._max_wait:g} s. Send the request again in {seconds} s.",
                {"retry_after_s": seconds},
            )
        job = _Job(kind, items, asyncio.get_running_loop().create_future())
        self._queue.append(job)
        self._waiting += len(items)
        self._arrived.set()
        try:
            return await job.future
        except asyncio.CancelledError:
            if job in self._queue:
                self._queue.remove(job)
                self._waiting -= len(items)
                self._observer.cancelled(len(items))
            raise

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            batch = self._running = self._take()
            began = time.perf_counter()
            for job in batch:
                self._observer.queued(began - job.since)
            done = await loop.run_in_executor(self._thread, self._run, batch)
            texts = sum(len(job.items) for job in batch)
            rate = texts / max(time.perf_counter() - began, 1e-6)
            self._rate += (rate - self._rate) * (0.1 if self._rate else 1)
            for job, result in zip(batch, done, strict=True):
                if job.future.done():
                    continue
                if isinstance(result, BaseException):
                    job.future.set_exception(result)
                else:
                    job.future.set_result(result)
            self._running = []

    def _ended(self, worker: asyncio.Task[None]) -> None:
        """However the worker ended, nobody waits for it any longer."""
        if not worker.cancelled() and (error := worker.exception()) is not None:
            _log.error("batcher", error=type(error).__name__, places=logs.places(error.__traceback__))
        for job in (*self._running, *self._queue):
            if not job.future.done():
                job.future.set_exception(UnavailableError("The engine has stopped. Send the request again."))
        self._running = []
        self._queue.clear()
        self._waiting = 0

    def _take(self) -> list[_Job]:
        """The oldest job and, in their order, those of its kind that fit in a batch with it."""
        kind, texts = self._queue[0].kind, 0
        batch: list[_Job] = []
        left: deque[_Job] = deque()
        for job in self._queue:
            if job.kind == kind and (not batch or texts + len(job.items) <= self._max_batch):
                batch.append(job)
                texts += len(job.items)
            else:
                left.append(job)
        self._queue = left
        self._waiting -= texts
        return batch

    def _run(self, batch: list[_Job]) -> list[list[Any] | BaseException]:
        """Results or exceptions by job, in the engine's thread. A job that fails does so alone, and so does an item."""
        kind = batch[0].kind
        try:
            results = self._call(kind, [item for job in batch for item in job.items])
        except Exception as error:
            if len(batch) > 1:
                return [result for job in batch for result in self._run([job])]
            if isinstance(error, InputError):
                items = batch[0].items
                return [[error] if len(items) == 1 else self._one_by_one(kind, items)]
            return [_failed(error)]
        done: list[list[Any] | BaseException] = []
        start = 0
        for job in batch:
            done.append(results[start : start + len(job.items)])
            start += len(job.items)
        return done

    def _one_by_one(self, kind: tuple[str, ...], items: Sequence[Any]) -> list[Any] | BaseException:
        results: list[Any] = []
        for item in items:
            try:
                results += self._call(kind, [item])
            except InputError as error:
                results.append(error)
            except Exception as error:
                return _failed(error)
        return results

    def _call(self, kind: tuple[str, ...], items: list[Any]) -> list[Any]:
        if kind[0] == "intervene":
            return self._engine.intervene(items)
        return self._engine.predict(items, kind[1:])  # type: ignore[arg-type]


def _failed(error: Exception) -> Exception:
    if not isinstance(error, SparseCBMError):
        _log.error("engine", error=type(error).__name__, places=logs.places(error.__traceback__))
    return error
