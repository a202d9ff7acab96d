"""remembered.py: what was acknowledged is known in the next life, whatever ended this one."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from httppubsubclient import remembered as remembered_module
from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.remembered import Remembered
from tests.client.conftest import FakeBroadcaster, Wire, config

PATTERN = "glob='foo/*'"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "seen")


def opened(path: str | None, count: int = 100) -> Remembered:
    remembered = Remembered(path, count)
    remembered.open()
    return remembered


def known(remembered: Remembered, numbers: range) -> list[int]:
    return [number for number in numbers if remembered.has("w", PATTERN, f"msg_{number}")]


def add(remembered: Remembered, numbers: range) -> None:
    for number in numbers:
        remembered.add("w", PATTERN, f"msg_{number}")


@pytest.mark.parametrize("persistent", [True, False])
def test_name_pattern_and_message_all_count(path: str, persistent: bool) -> None:
    remembered = opened(path if persistent else None)
    remembered.add("w", PATTERN, "msg_1")
    assert remembered.has("w", PATTERN, "msg_1")
    assert not remembered.has("v", PATTERN, "msg_1")
    assert not remembered.has("w", "glob='*'", "msg_1")
    assert not remembered.has("w", PATTERN, "msg_2")
    remembered.close()


@pytest.mark.parametrize("seed", range(10))
def test_over_restarts_the_last_are_always_known_and_the_files_are_bounded(path: str, seed: int) -> None:
    chance, written, count = random.Random(seed), 0, 20
    for _ in range(30):
        remembered = opened(path, count)
        assert set(range(max(0, written - count), written)) <= set(known(remembered, range(written)))
        assert len(known(remembered, range(written))) <= 2 * count
        more = chance.randrange(0, 50)
        add(remembered, range(written, written + more))
        written += more
        add(remembered, range(max(0, written - count), written))
        assert set(range(max(0, written - count), written)) <= set(known(remembered, range(written)))
        remembered.close()
        assert sum(os.stat(name).st_size for name in (path, f"{path}.2")) <= (2 * count + 2) * 16


@pytest.mark.parametrize("cut", range(1, 50))
def test_a_file_that_was_cut_off_anywhere_is_read_as_far_as_it_goes(path: str, cut: int) -> None:
    remembered = opened(path)
    add(remembered, range(3))
    remembered.close()
    assert os.stat(path).st_size == 16 * 4
    os.truncate(path, cut)
    again = opened(path)
    assert known(again, range(3)) == list(range(max(0, cut // 16 - 1)))
    add(again, range(10, 12))
    again.close()
    last = opened(path)
    assert known(last, range(20)) == [*range(max(0, cut // 16 - 1)), 10, 11]
    last.close()


def test_a_death_between_two_generations_keeps_the_last(path: str) -> None:
    remembered = opened(path, 10)
    add(remembered, range(20))
    remembered.close()
    os.truncate(path, 0)  # the older one was emptied, nothing was written to it yet
    again = opened(path, 10)
    assert known(again, range(20)) == list(range(10, 20))
    add(again, range(20, 25))
    again.close()
    last = opened(path, 10)
    assert known(last, range(30)) == list(range(10, 25))
    last.close()


def test_a_smaller_count_keeps_the_last_of_them(path: str) -> None:
    remembered = opened(path, 100)
    add(remembered, range(90))
    remembered.close()
    smaller = opened(path, 5)
    assert known(smaller, range(90)) == list(range(85, 90))
    smaller.close()


@pytest.mark.parametrize("junk", [b"{}", b"\x89PNG", b"hpsnonce" + bytes(8), b"x" * 100])
@pytest.mark.parametrize("suffix", ["", ".2"])
def test_a_file_that_is_something_else_is_left_alone(path: str, junk: bytes, suffix: str) -> None:
    Path(path + suffix).write_bytes(junk)
    with pytest.raises(ConfigurationError, match="something else"):
        opened(path)
    assert Path(path + suffix).read_bytes() == junk


@pytest.mark.parametrize("generation", [2**63 + 1, 2**64 - 1])
@pytest.mark.parametrize("suffix", ["", ".2"])
def test_a_damaged_header_is_told_and_the_file_left_alone(path: str, generation: int, suffix: str) -> None:
    damaged = b"hpsseen1" + generation.to_bytes(8, "big") + bytes(range(16))
    Path(path + suffix).write_bytes(damaged)
    with pytest.raises(ConfigurationError, match="damaged"):
        opened(path)
    assert Path(path + suffix).read_bytes() == damaged


def test_the_highest_generation_is_worked_with(path: str) -> None:
    Path(path).write_bytes(b"hpsseen1" + (2**63).to_bytes(8, "big"))
    remembered = opened(path, 2)
    add(remembered, range(5))
    assert known(remembered, range(5)) == [2, 3, 4]
    remembered.close()


@pytest.mark.parametrize("suffix", ["", ".2"])
def test_what_is_no_regular_file_is_refused(path: str, suffix: str) -> None:
    os.mkfifo(path + suffix)
    with pytest.raises(ConfigurationError, match="regular file"):
        opened(path)
    assert os.path.exists(f"{path}.2") == (suffix == ".2")


def test_a_device_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="regular file"):
        remembered_module._open("/dev/null")


def test_zeros_that_a_power_cut_left_are_begun_anew(path: str) -> None:
    Path(path).write_bytes(bytes(64))
    remembered = opened(path)
    add(remembered, range(1))
    remembered.close()
    assert known(opened(path), range(1)) == [0]


def test_a_file_in_use_is_refused_and_free_after_close(path: str) -> None:
    first = opened(path)
    with pytest.raises(ConfigurationError, match="in use by another process"):
        opened(path)
    first.close()
    opened(path).close()


def test_a_path_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "where"):
        with pytest.raises(ConfigurationError, match="remember_file"):
            opened(str(path))


def test_a_full_disk_is_told_once_and_what_follows_is_written(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    remembered = opened(path)
    add(remembered, range(2))
    real = os.pwrite
    with monkeypatch.context() as patched:
        patched.setattr("os.pwrite", lambda fd, data, at: real(fd, data[:5], at))
        add(remembered, range(2, 5))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert known(remembered, range(5)) == list(range(5))
    add(remembered, range(5, 7))
    remembered.close()
    assert known(opened(path), range(10)) == [0, 1, 5, 6]


def test_it_survives_a_kill(path: str) -> None:
    program = (
        "import os, signal, sys\n"
        "from httppubsubclient.remembered import Remembered\n"
        "remembered = Remembered(sys.argv[1], 100)\n"
        "remembered.open()\n"
        "for number in range(150):\n"
        f"    remembered.add('w', {PATTERN!r}, f'msg_{{number}}')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode == -9
    assert known(opened(path), range(200)) == list(range(150))


async def test_the_client_gives_no_message_twice_over_its_lives(broadcaster: FakeBroadcaster, path: str) -> None:
    settings = config(remember_file=path)
    for life in range(3):
        async with HttpPubSubClient(settings) as client:
            wire = Wire(client, broadcaster)
            async with wire.http, client.subscribe(exact=[b"a"], glob=["*"], durable="w") as subscription:
                for number in range(life + 1):
                    for pattern in (Pattern.exact(b"a"), Pattern.glob("*")):
                        answer = await wire.deliver(pattern, b"a", durable="w", message_id=f"msg_{number}")
                        assert answer.status_code == 200
                assert (await anext(subscription)).message_id == f"msg_{life}"
                async for message in subscription.with_timeout(0.001):
                    assert message is None
                    break


async def test_what_was_not_acknowledged_is_not_swallowed_by_the_next_life(
    broadcaster: FakeBroadcaster, path: str
) -> None:
    settings = config(remember_file=path, ack_timeout_seconds=0.01)
    for _ in range(2):
        async with HttpPubSubClient(settings) as client:
            wire = Wire(client, broadcaster)
            async with wire.http, client.subscribe_exact(b"a", durable="w", ack="explicit") as subscription:
                assert (await wire.deliver(Pattern.exact(b"a"), b"a", durable="w")).status_code == 503
                assert (await anext(subscription)).message_id == "msg_1"


async def test_a_second_client_with_the_same_file_is_refused(broadcaster: FakeBroadcaster, path: str) -> None:
    async with HttpPubSubClient(config(remember_file=path)):
        with pytest.raises(ConfigurationError, match="in use"):
            await HttpPubSubClient(config(remember_file=path)).__aenter__()
    async with HttpPubSubClient(config(remember_file=Path(path))):
        pass


def test_the_file_is_a_path() -> None:
    with pytest.raises(ConfigurationError, match="remember_file is a path"):
        config(remember_file=5)
