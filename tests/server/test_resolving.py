"""Names that hang: whose trouble they are, and whose they are not."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest

from httppubsubserver.delivery import resolving
from httppubsubserver.delivery.resolving import SystemResolver, system_addresses
from tests.server.peers import LIMIT, LOOP_FACTORIES

__all__ = ["LOOP_FACTORIES"]


class Gate:
    """Lookups of names that begin with `hang` wait here; how many do, and what was asked at all."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.hanging: list[str] = []
        self._open = threading.Event()
        self._changed = threading.Condition()

    def look_up(self, host: str) -> list[str]:
        with self._changed:
            self.asked.append(host)
            if host.startswith("hang"):
                self.hanging.append(host)
            self._changed.notify_all()
        if host.startswith("hang"):
            assert self._open.wait(LIMIT)
        if host.startswith("none"):
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return ["192.0.2.1"]

    def open(self) -> None:
        self._open.set()

    async def until(self, count: int) -> None:
        """Wait until so many hang."""

        def wait() -> None:
            with self._changed:
                assert self._changed.wait_for(lambda: len(self.hanging) >= count, LIMIT), len(self.hanging)

        await asyncio.to_thread(wait)


@contextmanager
def gate() -> Iterator[Gate]:
    gate = Gate()
    try:
        yield gate
    finally:
        gate.open()


@asynccontextmanager
async def resolver(look_up: Callable[[str], list[str]]) -> AsyncIterator[SystemResolver]:
    resolver = SystemResolver(look_up)
    try:
        yield resolver
    finally:
        resolver.close()


async def resolved(resolve: SystemResolver, host: str) -> list[str]:
    async with asyncio.timeout(LIMIT):
        return await resolve(host, 80)


async def given_up(*waiting: asyncio.Task[list[str]]) -> None:
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


def threads() -> int:
    return sum(thread.name == "resolving" for thread in threading.enumerate())


async def threads_gone(at_most: int) -> None:
    async with asyncio.timeout(LIMIT):
        while threads() > at_most:
            await asyncio.sleep(0)


async def test_the_system_knows_localhost() -> None:
    async with resolver(system_addresses) as resolve:
        assert {"127.0.0.1", "::1"} & set(await resolved(resolve, "localhost"))


@pytest.mark.parametrize("host", ["none.invalid", "a" * 64 + ".example", "xn--\udcff"])
async def test_a_name_that_cannot_be_resolved(host: str) -> None:
    async with resolver(system_addresses) as resolve:
        with pytest.raises(OSError, match=r"."):
            await resolved(resolve, host)


async def test_one_lookup_serves_everybody_who_asks_meanwhile() -> None:
    with gate() as names:
        async with resolver(names.look_up) as resolve:
            tasks = [asyncio.create_task(resolve("hang.example", port)) for port in range(100)]
            await names.until(1)
            names.open()
            answers = await asyncio.gather(*tasks)
            assert names.asked == ["hang.example"]
            answers[0].append("changed by one of them")
            assert answers[1] == ["192.0.2.1"]


async def test_nothing_is_remembered_of_an_answer() -> None:
    with gate() as names:
        async with resolver(names.look_up) as resolve:
            for _ in range(3):
                assert await resolved(resolve, "name.example") == ["192.0.2.1"]
            assert len(names.asked) == 3


async def test_a_failure_is_everybodys_own() -> None:
    with gate() as names:
        async with resolver(names.look_up) as resolve:
            tasks = [asyncio.create_task(resolve("none.example", 80)) for _ in range(2)]
            one, other = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(one, socket.gaierror)
            assert isinstance(other, socket.gaierror)
            assert one is not other
            assert one.errno == socket.EAI_NONAME


async def test_an_unexpected_failure_is_told() -> None:
    def look_up(host: str) -> list[str]:
        raise ZeroDivisionError

    async with resolver(look_up) as resolve:
        with pytest.raises(ZeroDivisionError):
            await resolved(resolve, "name.example")


async def test_names_of_one_zone_that_hang_leave_all_others_alone() -> None:
    with gate() as names:
        async with resolver(names.look_up) as resolve:
            hanging = [asyncio.create_task(resolve(f"hang{at}.evil.example", 80)) for at in range(1000)]
            await names.until(resolving.MAX_STRANGERS_OF_ZONE)
            assert await resolved(resolve, "name.good.test") == ["192.0.2.1"]
            assert len(names.hanging) == resolving.MAX_STRANGERS_OF_ZONE
            await given_up(*hanging)


async def test_names_of_many_zones_that_hang_leave_those_alone_that_were_prompt() -> None:
    with gate() as names:
        async with resolver(names.look_up) as resolve:
            assert await resolved(resolve, "name.good.test") == ["192.0.2.1"]
            hanging = [asyncio.create_task(resolve(f"hang.evil{at}.example", 80)) for at in range(1000)]
            await names.until(resolving.MAX_STRANGERS_OF_ZONE)
            hanging += [asyncio.create_task(resolve(f"hang.zone{at}.test{at}", 80)) for at in range(1000)]
            await names.until(resolving.MAX_STRANGERS)
            assert await resolved(resolve, "name.good.test") == ["192.0.2.1"]
            assert len(names.hanging) == resolving.MAX_STRANGERS
            await given_up(*hanging)


async def test_who_was_prompt_and_hangs_now_is_a_stranger_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with resolver(lambda host: ["192.0.2.1"]) as resolve:
        await resolved(resolve, "name.example")
        assert list(resolve._prompt) == ["name.example"]
        monkeypatch.setattr(resolving, "PROMPT_SECONDS", -1.0)
        await resolved(resolve, "name.example")
        assert not resolve._prompt


async def test_how_many_are_known_to_be_prompt_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "MAX_PROMPT", 3)
    async with resolver(lambda host: ["192.0.2.1"]) as resolve:
        for host in ("a.example", "b.example", "c.example", "a.example", "d.example"):
            await resolved(resolve, host)
        assert list(resolve._prompt) == ["c.example", "a.example", "d.example"]


async def test_what_nobody_waits_for_any_more_is_not_looked_up() -> None:
    with gate() as names:
        async with resolver(names.look_up) as resolve:
            bound = resolving.MAX_STRANGERS_OF_ZONE
            hanging = [asyncio.create_task(resolve(f"hang{at}.example.com", 80)) for at in range(bound)]
            await names.until(bound)
            given = asyncio.create_task(resolve("given-up.example.com", 80))
            waiting = asyncio.create_task(resolve("waiting.example.com", 80))
            await asyncio.sleep(0)
            await given_up(given)
            names.open()
            assert await waiting == ["192.0.2.1"]
            await asyncio.gather(*hanging)
            assert "given-up.example.com" not in names.asked
            assert not resolve._lookups
            assert not resolve._running
            assert (resolve._waiting, resolve._busy, resolve._strangers) == (0, 0, 0)


async def test_who_gave_up_a_name_that_hangs_joins_it_when_it_asks_again() -> None:
    with gate() as names:
        async with resolver(names.look_up) as resolve:
            first = asyncio.create_task(resolve("hang.example", 80))
            await names.until(1)
            await given_up(first)
            again = asyncio.create_task(resolve("hang.example", 80))
            await asyncio.sleep(0)
            names.open()
            assert await again == ["192.0.2.1"]
            assert names.asked == ["hang.example"]


async def test_zones_take_turns() -> None:
    with gate() as names:
        async with resolver(names.look_up) as resolve:
            bound = resolving.MAX_STRANGERS_OF_ZONE
            tasks = [
                asyncio.create_task(resolve(f"hang{zone}-{at}.{zone}.test", 80)) for zone in "abc" for at in range(9)
            ]
            await names.until(3 * bound)
            assert [sum(f".{zone}.test" in host for host in names.hanging) for zone in "abc"] == [bound] * 3
            names.open()
            await asyncio.gather(*tasks)
            assert len(names.asked) == 27


async def test_how_many_names_wait_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "MAX_WAITING", 5)
    with gate() as names:
        async with resolver(names.look_up) as resolve:
            count = resolving.MAX_STRANGERS_OF_ZONE + 5
            tasks = [asyncio.create_task(resolve(f"hang{at}.example.com", 80)) for at in range(count)]
            await names.until(resolving.MAX_STRANGERS_OF_ZONE)
            with pytest.raises(OSError, match="too many names") as refused:
                await resolved(resolve, "one-more.example.org")
            assert refused.value.errno == errno.ENOBUFS
            await given_up(*tasks)


async def test_a_close_ends_what_waits_and_its_threads() -> None:
    before = threads()
    with gate() as names:
        async with resolver(names.look_up) as resolve:
            hanging = [asyncio.create_task(resolve(f"hang{at}.example.com", 80)) for at in range(9)]
            await names.until(resolving.MAX_STRANGERS_OF_ZONE)
            await resolved(resolve, "name.example")
            assert threads() > before
        for task in hanging:
            with pytest.raises(OSError, match="closed"):
                await task
        with pytest.raises(OSError, match="closed"):
            await resolved(resolve, "name.example")
    await threads_gone(before)


def test_a_lookup_that_outlives_its_event_loop_is_nobodys_trouble() -> None:
    before = threads()
    with gate() as names:

        async def ask() -> None:
            resolve = SystemResolver(names.look_up)
            task = asyncio.create_task(resolve("hang.example", 80))
            await names.until(1)
            await given_up(task)

        asyncio.run(ask())
    with suppress(TimeoutError):
        asyncio.run(threads_gone(before))
    assert threads() == before


async def test_a_machine_without_room_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with resolver(lambda host: ["192.0.2.1"]) as resolve:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(OSError, match="no thread") as refused:
                await resolved(resolve, "name.example")
            assert refused.value.errno == errno.ENOBUFS
        assert await resolved(resolve, "name.example") == ["192.0.2.1"]
