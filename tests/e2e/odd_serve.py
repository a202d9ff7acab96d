"""`httppubsubserver serve` on an odd machine, for tests of trouble: takes the same arguments.

SIGUSR1 sets its clock an hour forward, SIGUSR2 an hour back; each is told on stderr. It waits for a lock of the
database only a moment, and looks at the clock for the database more often.
"""

from __future__ import annotations

import inspect
import signal
import sys
import time
from typing import Any

HOUR = 3600.0

_real = time.time
_ahead = 0.0


def _set_clock(number: int, _: Any) -> None:
    global _ahead
    _ahead += HOUR if number == signal.SIGUSR1 else -HOUR
    print(f"the clock is {_ahead:+.0f} s from the real one", file=sys.stderr, flush=True)


# Before anything of the product has taken it.
time.time = lambda: _real() + _ahead

from httppubsubserver import upkeep  # noqa: E402
from httppubsubserver.cli import main  # noqa: E402
from httppubsubserver.stores import sqlite  # noqa: E402

if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _set_clock)
    signal.signal(signal.SIGUSR2, _set_clock)
    defaults = inspect.unwrap(sqlite.open_sqlite).__kwdefaults__
    assert defaults is not None
    defaults["lock_timeout_seconds"] = 0.2
    upkeep.Periods.__new__.__defaults__ = (0.2, 0.2, 30.0)
    raise SystemExit(main())
