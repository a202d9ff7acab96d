"""Calls that arrive while others are under way are done together next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from httppubsubclient.protocol.errors import Unavailable
from httppubsubserver.stores.batches import Batches, Failed


class Runs:
    """Remembers its batches. Each waits for `gate`; a question that is an exception is an answer that failed."""

    def __init__(self) -> None:
        self.batches: list[list[object]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.began = asyncio.Event()
        self.breaks: Exception | None = None

    async def __call__(self, questions: list[object]) -> Sequence[object]:
        self.batches.append(questions)
        self.began.set()
        await self.gate.wait()
        if self.breaks is not None:
            raise self.breaks
        return [Failed(each) if isinstance(each, Exception) else (each, len(self.batches)) for each in questions]


@pytest.fixture
async def runs() -> Runs:
    return Runs()


@pytest.fixture
async def batches(runs: Runs) -> Batches[object, object]:
    return Batches(runs, batch_size=3, max_waiting=5)


async def asked(batches: Batches[object, object], *questions: object) -> list[asyncio.Task[object]]:
    """Tasks that have asked and wait for their answers."""
    tasks = [asyncio.create_task(batches(question)) for question in questions]
    await asyncio.sleep(0)
    return tasks


async def under_way(runs: Runs, batches: Batches[object, object], question: object) -> asyncio.Task[object]:
    """A batch that has begun and waits for the gate."""
    runs.gate.clear()
    runs.began.clear()
    [task] = await asked(batches, question)
    await runs.began.wait()
    return task


async def test_calls_made_during_a_batch_are_in_the_next_one(runs: Runs, batches: Batches[object, object]) -> None:
    first = await under_way(runs, batches, "a")
    others = await asked(batches, "b", "c")
    runs.gate.set()
    assert await asyncio.gather(first, *others) == [("a", 1), ("b", 2), ("c", 2)]
    assert runs.batches == [["a"], ["b", "c"]]


async def test_a_batch_has_at_most_its_size(runs: Runs, batches: Batches[object, object]) -> None:
    await asyncio.gather(*await asked(batches, 1, 2, 3, 4, 5))
    assert runs.batches == [[1, 2, 3], [4, 5]]


async def test_more_than_may_wait_are_turned_away(runs: Runs, batches: Batches[object, object]) -> None:
    first = await under_way(runs, batches, 0)
    waiting = await asked(batches, 1, 2, 3, 4, 5)
    with pytest.raises(Unavailable) as caught:
        await batches(6)
    assert caught.value.retry_after_seconds == 1
    runs.gate.set()
    await asyncio.gather(first, *waiting)
    await batches(7)


async def test_one_that_failed_by_itself_fails_alone(batches: Batches[object, object]) -> None:
    answers = await asyncio.gather(*await asked(batches, "a", KeyError("b"), "c"), return_exceptions=True)
    assert isinstance(answers.pop(1), KeyError)
    assert answers == [("a", 1), ("c", 1)]


async def test_a_batch_that_failed_fails_all_of_it_and_nothing_later(
    runs: Runs, batches: Batches[object, object]
) -> None:
    runs.breaks = Unavailable("locked", retry_after_seconds=7)
    answers = await asyncio.gather(*await asked(batches, "a", "b"), return_exceptions=True)
    assert [(type(each), str(each), getattr(each, "retry_after_seconds", None)) for each in answers] == [
        (Unavailable, "locked", 7)
    ] * 2
    assert answers[0] is not answers[1]
    runs.breaks = None
    assert await batches("c") == ("c", 2)


async def test_a_cancelled_call_takes_nobody_along(runs: Runs, batches: Batches[object, object]) -> None:
    first = await under_way(runs, batches, "a")
    waiting = await asked(batches, "b", "c")
    first.cancel()
    waiting[0].cancel()
    runs.gate.set()
    assert await waiting[1] == ("c", 2)
    assert runs.batches == [["a"], ["c"]]
    assert first.cancelled()
    assert waiting[0].cancelled()


async def test_closing_answers_those_that_wait_and_takes_no_more(runs: Runs, batches: Batches[object, object]) -> None:
    first = await under_way(runs, batches, "a")
    waiting = await asked(batches, "b")
    closing = asyncio.create_task(batches.close())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="closed"):
        await batches("c")
    runs.gate.set()
    await closing
    assert first.done()
    assert await waiting[0] == ("b", 2)
    await batches.close()
