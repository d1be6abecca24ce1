"""Continuous batching over a model that waits until it is told to go on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import pytest

from serving.batcher import Batcher
from serving.contract import Answer, Explain, LabelAnswer, Outcome
from serving.engine import Intervention
from sparsecbm.errors import InputError, OverloadedError, UnavailableError

pytestmark = pytest.mark.anyio


class GatedModel:
    """Answers each text with itself as label; every call waits at the gate while it is shut."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.kinds: list[tuple[str, ...]] = []
        self.gate = threading.Event()
        self.gate.set()

    def predict(self, texts: Sequence[str], explain: Sequence[Explain]) -> list[Answer]:
        self._call(texts, ("predict", *explain))
        return [Answer.model_construct(label=LabelAnswer(value=text, probability=1.0)) for text in texts]

    def intervene(self, requests: Sequence[Intervention]) -> list[Outcome]:
        self._call([request.text for request in requests], ("intervene",))
        return [Outcome.model_construct(corrections=dict(request.corrections)) for request in requests]

    def _call(self, texts: Sequence[str], kind: tuple[str, ...]) -> None:
        self.calls.append(list(texts))
        self.kinds.append(kind)
        assert self.gate.wait(10)
        if "refused" in texts:
            raise InputError("refused")
        if "broken" in texts:
            raise ZeroDivisionError("broken")


class Told:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.dropped = 0
        self.fails = False

    def queued(self, seconds: float) -> None:
        if self.fails:
            raise OSError("the disk is full")
        self.waits.append(seconds)

    def cancelled(self, texts: int) -> None:
        self.dropped += texts


@pytest.fixture
def model() -> GatedModel:
    return GatedModel()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def batcher(model: GatedModel, told: Told) -> AsyncIterator[Batcher]:
    batcher = Batcher(model, told, max_queue=10, max_batch=4)
    batcher.start()
    yield batcher
    model.gate.set()
    await batcher.stop()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to pass")


async def busy(batcher: Batcher, model: GatedModel) -> asyncio.Task[list[str]]:
    """Has the model stand at a shut gate with a first text."""
    model.gate.clear()
    running = len(model.calls)
    task = asyncio.create_task(labels(batcher, "first"))
    await until(lambda: len(model.calls) > running)
    return task


async def labels(batcher: Batcher, *texts: str, explain: Sequence[Explain] = ()) -> list[str]:
    return [
        str(answer) if isinstance(answer, InputError) else answer.label.value
        for answer in await batcher.predict(texts, explain)
    ]


async def tasks(*coroutines: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    made = [asyncio.create_task(coroutine) for coroutine in coroutines]
    await asyncio.sleep(0.01)  # so that all have queued
    return made


async def test_lone_request_is_answered(batcher: Batcher) -> None:
    assert await labels(batcher, "a", "b") == ["a", "b"]


async def test_jobs_gather_while_one_runs(batcher: Batcher, model: GatedModel) -> None:
    first = await busy(batcher, model)
    others = await tasks(labels(batcher, "a"), labels(batcher, "b", "c"), labels(batcher, "d"))
    model.gate.set()
    assert await asyncio.gather(first, *others) == [["first"], ["a"], ["b", "c"], ["d"]]
    assert model.calls == [["first"], ["a", "b", "c", "d"]]


async def test_batch_holds_no_more_than_it_may(batcher: Batcher, model: GatedModel) -> None:
    first = await busy(batcher, model)
    others = await tasks(*(labels(batcher, text, text) for text in "abc"))
    model.gate.set()
    await asyncio.gather(first, *others)
    assert model.calls[1:] == [["a", "a", "b", "b"], ["c", "c"]]


async def test_request_larger_than_a_batch_runs_alone(batcher: Batcher, model: GatedModel) -> None:
    first = await busy(batcher, model)
    others = await tasks(labels(batcher, *"abcdef"), labels(batcher, "g"))
    model.gate.set()
    await asyncio.gather(first, *others)
    assert model.calls[1:] == [list("abcdef"), ["g"]]


async def test_kinds_take_turns_by_their_oldest_job(batcher: Batcher, model: GatedModel) -> None:
    first = await busy(batcher, model)
    others = await tasks(
        labels(batcher, "a"),
        batcher.intervene([Intervention("b", {"food": "Positive"})]),
        labels(batcher, "c", explain=["tokens"]),
        labels(batcher, "d"),
    )
    model.gate.set()
    await asyncio.gather(first, *others)
    assert model.calls[1:] == [["a", "d"], ["b"], ["c"]]
    assert model.kinds[1:] == [("predict", "concepts"), ("intervene",), ("predict", "concepts", "tokens")]


async def test_order_and_repetition_of_explanations_make_no_kind(batcher: Batcher, model: GatedModel) -> None:
    first = await busy(batcher, model)
    others = await tasks(
        labels(batcher, "a", explain=["tokens", "concepts", "tokens"]), labels(batcher, "b", explain=["tokens"])
    )
    model.gate.set()
    await asyncio.gather(first, *others)
    assert model.calls[1:] == [["a", "b"]]


async def test_intervention_is_answered(batcher: Batcher) -> None:
    [outcome] = await batcher.intervene([Intervention("a", {"food": "Positive"})])
    assert isinstance(outcome, Outcome) and outcome.corrections == {"food": "Positive"}


async def test_refused_item_fails_alone(batcher: Batcher, model: GatedModel) -> None:
    first = await busy(batcher, model)
    others = await tasks(labels(batcher, "a"), labels(batcher, "b", "refused", "c"))
    model.gate.set()
    results = await asyncio.gather(first, *others)
    assert results == [["first"], ["a"], ["b", "refused", "c"]]


async def test_refused_item_has_its_error_in_its_place(batcher: Batcher) -> None:
    [refused] = await batcher.predict(["refused"], [])
    assert isinstance(refused, InputError)


async def test_item_that_breaks_the_engine_beside_a_refused_one_fails_its_request(batcher: Batcher) -> None:
    with pytest.raises(ZeroDivisionError):
        await labels(batcher, "refused", "broken")


async def test_failing_job_fails_alone(batcher: Batcher, model: GatedModel) -> None:
    first = await busy(batcher, model)
    others = await tasks(labels(batcher, "a"), labels(batcher, "broken"), labels(batcher, "b"))
    model.gate.set()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert [results[0], results[1], results[3]] == [["first"], ["a"], ["b"]]
    assert isinstance(results[2], ZeroDivisionError)


async def test_batcher_goes_on_after_a_failure(batcher: Batcher) -> None:
    with pytest.raises(ZeroDivisionError):
        await labels(batcher, "broken")
    assert batcher.alive and await labels(batcher, "a") == ["a"]


async def test_overload_is_refused_with_the_time_to_come_again(batcher: Batcher, model: GatedModel) -> None:
    first = await busy(batcher, model)
    waiting = await tasks(labels(batcher, *"abcdefgh"))
    with pytest.raises(OverloadedError) as refused:
        await labels(batcher, "i", "j", "k")
    assert refused.value.detail["retry_after_s"] >= 1
    model.gate.set()
    await asyncio.gather(first, *waiting)


async def test_wait_that_would_be_too_long_is_refused(told: Told) -> None:
    class Slow(GatedModel):
        """Takes at least 20 ms for a text."""

        def _call(self, texts: Sequence[str], kind: tuple[str, ...]) -> None:
            super()._call(texts, kind)
            time.sleep(0.02 * len(texts))

    model = Slow()
    batcher = Batcher(model, told, max_queue=1000, max_batch=4, max_wait=0.1)
    batcher.start()
    await labels(batcher, "so that its speed is known")
    first = await busy(batcher, model)
    others = await tasks(*(labels(batcher, str(number)) for number in range(50)))
    model.gate.set()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    refused = [result for result in results if isinstance(result, OverloadedError)]
    # At 50 texts/s or less, 0.1 s are over once more than 5 wait.
    assert 51 - 1 - 6 <= len(refused) < 50
    assert all(error.detail["retry_after_s"] >= 1 for error in refused)
    await batcher.stop()


async def test_what_still_fits_is_taken_under_load(batcher: Batcher, model: GatedModel) -> None:
    first = await busy(batcher, model)
    waiting = await tasks(labels(batcher, *"abcdefgh"), labels(batcher, "i", "j"))
    model.gate.set()
    assert (await asyncio.gather(first, *waiting))[2] == ["i", "j"]


async def test_queue_is_free_again_after_an_overload(batcher: Batcher, model: GatedModel) -> None:
    first = await busy(batcher, model)
    waiting = await tasks(labels(batcher, *"abcdefghij"))
    with pytest.raises(OverloadedError):
        await labels(batcher, "k")
    model.gate.set()
    await asyncio.gather(first, *waiting)
    assert await labels(batcher, *"abcdefghij") == list("abcdefghij")


async def test_request_cancelled_in_the_queue_is_never_run(batcher: Batcher, model: GatedModel, told: Told) -> None:
    first = await busy(batcher, model)
    left, stays = await tasks(labels(batcher, "left", "left"), labels(batcher, "stays"))
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    model.gate.set()
    await asyncio.gather(first, stays)
    assert model.calls == [["first"], ["stays"]]
    assert told.dropped == 2


async def test_request_cancelled_in_the_queue_makes_room(batcher: Batcher, model: GatedModel) -> None:
    first = await busy(batcher, model)
    [left] = await tasks(labels(batcher, *"abcdefghij"))
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    others = await tasks(labels(batcher, *"klmnopqrst"))
    model.gate.set()
    assert (await asyncio.gather(first, *others))[1] == list("klmnopqrst")


async def test_request_cancelled_while_it_runs_harms_nobody(batcher: Batcher, model: GatedModel, told: Told) -> None:
    first = await busy(batcher, model)
    [other] = await tasks(labels(batcher, "a"))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    model.gate.set()
    assert await other == ["a"]
    assert told.dropped == 0


async def test_waits_are_told(batcher: Batcher, told: Told) -> None:
    await labels(batcher, "a")
    assert len(told.waits) == 1 and told.waits[0] >= 0


async def test_stop_answers_those_in_the_queue(batcher: Batcher, model: GatedModel) -> None:
    first = await busy(batcher, model)
    waiting = await tasks(labels(batcher, "a"), labels(batcher, "b"))
    await batcher.stop()
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    assert all(isinstance(result, UnavailableError) for result in results)
    model.gate.set()
    await asyncio.gather(first, return_exceptions=True)


async def test_stop_answers_those_whose_batch_runs(batcher: Batcher, model: GatedModel) -> None:
    first = await busy(batcher, model)
    await batcher.stop()
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(first, 5)


async def test_stop_before_the_first_job_answers_it(model: GatedModel, told: Told) -> None:
    batcher = Batcher(model, told, max_queue=10, max_batch=4)
    batcher.start()
    job = asyncio.create_task(labels(batcher, "a"))
    await asyncio.gather(batcher.stop(), return_exceptions=True)
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(job, 5)


async def test_stopped_batcher_refuses(batcher: Batcher) -> None:
    await batcher.stop()
    assert not batcher.alive
    with pytest.raises(UnavailableError):
        await labels(batcher, "a")


async def test_stop_can_be_called_twice(batcher: Batcher) -> None:
    await batcher.stop()
    await batcher.stop()


async def test_batcher_that_was_never_started_refuses(model: GatedModel, told: Told) -> None:
    batcher = Batcher(model, told, max_queue=10, max_batch=4)
    assert not batcher.alive
    with pytest.raises(UnavailableError):
        await labels(batcher, "a")
    await batcher.stop()


async def test_jobs_of_a_worker_that_died_are_answered(batcher: Batcher, told: Told) -> None:
    told.fails = True
    jobs = await tasks(labels(batcher, "a"), labels(batcher, "b"))
    results = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 5)
    assert all(isinstance(result, UnavailableError) for result in results)
    assert not batcher.alive


async def test_engine_thread_ends_with_the_batcher(model: GatedModel, told: Told) -> None:
    before = threading.active_count()
    batcher = Batcher(model, told, max_queue=10, max_batch=4)
    batcher.start()
    await labels(batcher, "a")
    await batcher.stop()
    await until(lambda: threading.active_count() <= before)
