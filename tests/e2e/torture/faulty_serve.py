"""`httppubsubserver serve`, told to die at a certain point (points.py) or to have a certain bug (bugs.py).

    python -m tests.e2e.torture.faulty_serve --point after-commit --passes 3 -- --db sqlite:///x --secrets FILE ...
    python -m tests.e2e.torture.faulty_serve --nursery

What stands behind `--` is given to `serve`. A nursery does that again and again, once for each line on its standard
input, which is a JSON list of such arguments: each in a process of its own, a copy of one that has imported everything
already, so that it is there at once. It prints `born PID` and `ended STATUS` (of `os.waitpid`) around each.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import signal
import sys
from collections.abc import Sequence
from typing import Any

import httppubsubserver.app  # noqa: F401 (imported here so that no child has to)
from httppubsubserver import cli, config
from httppubsubserver.delivery import attempts
from tests.e2e.torture.bugs import BUGS, infest
from tests.e2e.torture.patches import replace
from tests.e2e.torture.points import POINTS, arm

_PR_SET_PDEATHSIG = 1


def serve(arguments: Sequence[str]) -> int:
    """In this process."""
    parser = argparse.ArgumentParser(prog="faulty_serve")
    parser.add_argument("--point", choices=sorted(POINTS))
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--seed", default="")
    parser.add_argument("--bug", choices=sorted(BUGS))
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--lease-seconds", type=float, help="shorter ones than the settings allow")
    options = parser.parse_args(arguments)
    if options.lease_seconds is not None:
        _shorten_leases(options.lease_seconds)
    if options.point is not None:
        arm(options.point, options.passes, options.seed)
    if options.bug is not None:
        infest(options.bug)
    return cli.main(["serve", *options.arguments])


def _shorten_leases(seconds: float) -> None:
    """So that what a dead process has held is free again soon. The settings keep a distance for slow machines."""
    load_config = config.load_config

    def loaded(**given: Any) -> config.ServerConfig:
        return load_config(**given).model_copy(update={"delivery_lease_seconds": seconds})

    replace(config, "load_config", loaded)
    replace(attempts, "LEASE_MARGIN_SECONDS", seconds / 10)


def nursery() -> None:
    """One child after the other."""
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _be_born(json.loads(line))
        print(f"ended {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)


def _be_born(arguments: list[str]) -> None:
    """The rest of a child's life."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    random.seed()
    print(f"born {os.getpid()}", flush=True)
    status = 1
    try:
        status = serve(arguments)
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    if sys.argv[1:] == ["--nursery"]:
        nursery()
    else:
        sys.exit(serve(sys.argv[1:]))
