from __future__ import annotations

import fcntl
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from httppubsubclient.protocol.errors import ConfigurationError, Unavailable
from httppubsubclient.replay_file import Locked, ReplayFile

NOW = 1_790_000_000_000_000
LATER = NOW + 300_000_000


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "nonces")


def test_a_key_is_new_once_until_it_may_be_forgotten() -> None:
    with ReplayFile.open(None) as seen:
        assert seen.first_time("k", until=LATER, now=NOW)
        assert not seen.first_time("k", until=LATER + 1, now=LATER - 1)
        assert seen.first_time("k", until=LATER + 10, now=LATER)
        assert not seen.first_time("k", until=LATER + 20, now=LATER + 9)


@pytest.mark.parametrize("seed", range(20))
def test_it_agrees_with_a_dict(seed: int) -> None:
    chance = random.Random(seed)
    known: dict[int, int] = {}
    now = NOW
    with ReplayFile.open(None) as seen:
        for _ in range(3000):
            key, lasts = chance.randrange(2000), chance.randint(1, 100)
            now += chance.randint(0, 3)
            first = known.get(key, 0) <= now
            assert seen.first_time(f"key:{key}", until=now + lasts, now=now) is first
            if first:
                known[key] = now + lasts


def test_it_grows_and_forgets_nothing(path: str) -> None:
    keys = [f"{number:032x}" for number in range(60_000)]
    with ReplayFile.open(path) as seen, ReplayFile.open(path) as beside:
        size = os.stat(path).st_size
        assert all(seen.first_time(key, until=LATER, now=NOW) for key in keys)
        assert os.stat(path).st_size > size
        assert not any(beside.first_time(key, until=LATER, now=NOW) for key in keys)


def test_what_has_passed_makes_room(path: str) -> None:
    with ReplayFile.open(path) as seen:
        size = os.stat(path).st_size
        for number in range(60_000):
            assert seen.first_time(f"{number:032x}", until=NOW + number + 100, now=NOW + number)
        assert os.stat(path).st_size == size


def test_it_survives_a_kill_and_is_shared_by_processes(path: str) -> None:
    program = f"""
import os, signal, sys
from httppubsubclient.replay_file import ReplayFile
seen = ReplayFile.open(sys.argv[1])
for key in "abc":
    assert seen.first_time(key, until={LATER}, now={NOW})
os.kill(os.getpid(), signal.SIGKILL)
"""
    with ReplayFile.open(path) as before:
        assert subprocess.run([sys.executable, "-c", program, path], check=False).returncode < 0
        assert not before.first_time("a", until=LATER, now=NOW)
    with ReplayFile.open(path) as after:
        assert not any(after.first_time(key, until=LATER, now=NOW) for key in "abc")
        assert after.first_time("d", until=LATER, now=NOW)


def test_two_processes_never_both_call_a_key_new(path: str) -> None:
    program = f"""
import sys
from httppubsubclient.replay_file import Locked, ReplayFile
seen = ReplayFile.open(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(20_000):
    while True:
        try:
            new = seen.first_time(str(number), until={LATER}, now={NOW})
            break
        except Locked:
            pass
    if new:
        print(number)
"""
    with ReplayFile.open(path):
        children = [
            subprocess.Popen(
                [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        numbers = [line for child in children for line in child.communicate()[0].split()]
    assert sorted(map(int, numbers)) == list(range(20_000))


def test_only_its_owner_reads_it(path: str) -> None:
    with ReplayFile.open(path):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_lock_is_told_at_once(path: str) -> None:
    with ReplayFile.open(path) as seen, open(path, "r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Locked):
            seen.first_time("k", until=LATER, now=NOW)
        with pytest.raises(Locked):
            ReplayFile.open(path)
        fcntl.flock(other, fcntl.LOCK_UN)
        assert seen.first_time("k", until=LATER, now=NOW)


def test_a_deleted_file_is_begun_anew_by_all_who_use_it(path: str, caplog: pytest.LogCaptureFixture) -> None:
    with ReplayFile.open(path) as one, ReplayFile.open(path) as other:
        assert one.first_time("before", until=LATER, now=NOW)
        os.unlink(path)
        assert one.first_time("after", until=LATER, now=NOW)
        assert not other.first_time("after", until=LATER, now=NOW)
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_what_is_in_the_way_of_beginning_anew_passes(path: str) -> None:
    with ReplayFile.open(path) as seen:
        os.unlink(path)
        os.mkdir(path)
        for _ in range(2):
            with pytest.raises(Unavailable):
                seen.first_time("k", until=LATER, now=NOW)
        os.rmdir(path)
        Path(path).touch()
        with open(path, "r+b") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            for _ in range(2):
                with pytest.raises(Locked):
                    seen.first_time("k", until=LATER, now=NOW)
        assert seen.first_time("k", until=LATER, now=NOW)
        assert not seen.first_time("k", until=LATER, now=NOW)


def test_a_file_that_was_cut_off_kills_nobody(path: str) -> None:
    with ReplayFile.open(path) as one, ReplayFile.open(path) as other:
        assert one.first_time("before", until=LATER, now=NOW)
        os.truncate(path, 0)
        assert one.first_time("after", until=LATER, now=NOW)
        assert not other.first_time("after", until=LATER, now=NOW)
        os.truncate(path, 5000)
        assert not other.first_time("after", until=LATER, now=NOW) or other.first_time("more", until=LATER, now=NOW)
        assert one.first_time("last", until=LATER, now=NOW)
        assert not other.first_time("last", until=LATER, now=NOW)


def test_one_that_power_was_cut_from_while_it_grew_is_mended(path: str) -> None:
    with ReplayFile.open(path) as seen:
        size = os.stat(path).st_size
        assert all(seen.first_time(f"{number:032x}", until=LATER, now=NOW) for number in range(20_000))
    os.truncate(path, size)
    with ReplayFile.open(path) as seen:
        assert seen.first_time("k", until=LATER, now=NOW)
        assert not seen.first_time("k", until=LATER, now=NOW)


@pytest.mark.parametrize("content", [b"x" * 10_000, b"hpsnonce" + bytes(5000)])
def test_a_file_of_another_kind_is_refused_and_left_alone(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)
    with pytest.raises(ConfigurationError, match="not a file of nonces"):
        ReplayFile.open(path)
    assert Path(path).read_bytes() == content


def test_one_that_was_begun_and_not_finished_is_begun_anew(path: str) -> None:
    Path(path).write_bytes(b"\0" * 5000)
    with ReplayFile.open(path) as seen:
        assert seen.first_time("k", until=LATER, now=NOW)


def test_a_link_is_not_followed(tmp_path: Path, path: str) -> None:
    os.symlink(tmp_path / "elsewhere", path)
    with pytest.raises(ConfigurationError):
        ReplayFile.open(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_is_unavailable(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ReplayFile.open(path) as seen:

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("httppubsubclient.replay_file.os.posix_fallocate", full)
        with pytest.raises(Unavailable, match="No space left"):
            any(not seen.first_time(f"{number:032x}", until=LATER, now=NOW) for number in range(60_000))
