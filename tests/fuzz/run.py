"""Fuzzes the parsers for as long as there is time: `scripts/soak fuzz --minutes 10 [--target NAME ...] [--seed N]`.

With atheris (`pip install 'httppubsub[fuzz]'`) the search is led by what of the code is reached: a process for each
target, `--jobs` at a time. Without it hypothesis looks, with texts that are bent a little. Either way a finding is
printed as bytes that can be given back: `python -m tests.fuzz.run --target NAME --replay 'b"..."'`.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

__all__ = ["bent", "search"]

MAX_BYTES = 2048
SLOWEST_SECONDS = 5
"""One input takes microseconds; whoever needs so long has found something that does not end."""
MAX_RSS_MEGABYTES = 512


def bent(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Any bytes, and seeds with pieces of them cut, doubled, replaced."""
    interesting = st.sampled_from(
        [
            b"\x00",
            b"\xff",
            b"\r\n",
            b"\n",
            b"%",
            b"..",
            b"/",
            b"\\",
            b"@",
            b":",
            b"[",
            b"*",
            b"-1",
            b"9" * 20,
            b'"',
            b"nan",
        ]
    )
    piece = interesting | st.binary(max_size=8)

    @st.composite
    def bend(draw: st.DrawFn) -> bytes:
        data = draw(st.sampled_from(seeds))
        for _ in range(draw(st.integers(0, 3))):
            begin = draw(st.integers(0, len(data)))
            end = draw(st.integers(begin, min(len(data), begin + 16)))
            middle = draw(st.one_of(piece, st.just(data[begin:end] * 2), st.sampled_from(seeds)))
            data = (data[:begin] + middle + data[end:])[:MAX_BYTES]
        return data

    return bend() | st.binary(max_size=64) if seeds else st.binary(max_size=256)


def search(target: Target, *, examples: int, number: int | None = None) -> None:
    """So many inputs from hypothesis. Raises what the target raises, for the smallest input that it found."""

    def check(data: bytes) -> None:
        target(data)

    test: Callable[[], None] = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        derandomize=number is None,
    )(given(bent(target.seeds))(check))
    if number is not None:
        test = seeded(number)(test)
    test()


def main(arguments: Sequence[str]) -> int:
    """Exit status 1 when something was found."""
    parser = argparse.ArgumentParser(prog="scripts/soak fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="for all targets together (default: 10)")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers; 0: another one each time")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    parser.add_argument("--replay", metavar="BYTES", help="one input, as Python writes bytes, for one --target")
    parser.add_argument("--inside", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = options.target or list(TARGETS)
    if options.replay is not None:
        TARGETS[names[0]](ast.literal_eval(options.replay))
        return 0
    if options.inside is not None:
        return _inside(names[0], options.inside, options.seconds, options.seed)
    seconds = options.minutes * 60 * options.jobs / len(names)
    with ThreadPoolExecutor(options.jobs) as pool:
        found = sum(pool.map(lambda name: _one(name, seconds, options.seed), names))
    print(f"{len(names)} targets, {found} with a finding")
    return 1 if found else 0


def _one(name: str, seconds: float, number: int) -> bool:
    """One target in a process of its own: whatever it does to memory and time, the others go on."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for at, data in enumerate(TARGETS[name].seeds):
            (corpus / str(at)).write_bytes(data)
        command = [sys.executable, "-m", "tests.fuzz.run", "--target", name, "--inside", folder]
        try:
            ended = subprocess.run(
                [*command, "--seconds", str(seconds), "--seed", str(number)],
                capture_output=True,
                check=False,
                timeout=seconds + 120,
            )
        except subprocess.TimeoutExpired:
            print(f"{name}: did not end", flush=True)
            return True
        told = ended.stderr.decode(errors="backslashreplace") + ended.stdout.decode(errors="backslashreplace")
        if ended.returncode == 0:
            print(f"{name}: nothing in {seconds:.0f} s, {_count(told)}", flush=True)
            return False
        inputs = [file.read_bytes() for file in sorted(Path(folder).glob("found-*"))]
        print(f"{name}: FOUND with {inputs!r}\n{told[-6000:]}", flush=True)
        return True


def _count(told: str) -> str:
    """What atheris or hypothesis says of how much was tried."""
    lines = [line for line in told.splitlines() if line.startswith(("stat::number_of_executed_units", "inputs"))]
    return (
        lines[-1].replace("stat::number_of_executed_units:", "inputs").strip() if lines else "inputs were not counted"
    )


def _inside(name: str, folder: str, seconds: float, number: int) -> int:
    if importlib.util.find_spec("atheris") is None:
        return _with_hypothesis(name, folder, seconds, number)
    import atheris

    target = TARGETS[name]
    # The whole tree would be traced otherwise, hypothesis and pydantic included.
    atheris.instrument_func(target.run)
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(("httppubsubclient.protocol", "httppubsubclient.request_heads", "httppubsubserver.")):
            for function in vars(module).values():
                if (
                    callable(function)
                    and getattr(function, "__module__", None) == module_name
                    and hasattr(function, "__code__")
                ):
                    atheris.instrument_func(function)
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={max(1, int(seconds))}",
            f"-timeout={SLOWEST_SECONDS}",
            f"-rss_limit_mb={MAX_RSS_MEGABYTES}",
            f"-max_len={MAX_BYTES}",
            f"-artifact_prefix={folder}/found-",
            "-print_final_stats=1",
            *([f"-seed={number}"] if number else []),
            f"{folder}/corpus",
        ],
        target,
    )
    atheris.Fuzz()
    return 0


def _with_hypothesis(name: str, folder: str, seconds: float, number: int) -> int:
    end = time.monotonic() + seconds
    target = TARGETS[name]
    last = b""
    count = 0

    def remembering(data: bytes) -> None:
        nonlocal last, count
        last, count = data, count + 1
        target(data)

    number = number or time.time_ns()
    while time.monotonic() < end:
        number += 1
        try:
            search(Target(remembering, (), target.seeds), examples=1000, number=number)
        except Exception:
            Path(folder, "found-0").write_bytes(last)
            traceback.print_exc()
            return 1
    print(f"inputs: {count}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
