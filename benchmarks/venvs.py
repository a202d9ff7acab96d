"""Virtual environments for peers from PyPI, one each, made once under .venv-peers of the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PLACE = Path(__file__).parent.parent / ".venv-peers"
SECONDS = 120
"""What an installation may take."""


class NotInstalled(Exception):
    """A peer cannot be had here; says why in one line."""


def python_with(peer: str, *others: str) -> Path:
    """The interpreter of an environment that has `peer`, a name with extras and one version, and what it lacks to be
    served. Raises `NotInstalled`."""
    place = PLACE / peer.partition("==")[0].partition("[")[0]
    # Written last, so that an installation that was cut short is done again.
    done, wanted = place / "installed", " ".join([peer, *others])
    if not (done.exists() and done.read_text() == wanted):
        print(f"(installing {wanted})", file=sys.stderr)
        try:
            _run([sys.executable, "-m", "venv", "--clear", place])
            _run([place / "bin" / "python", "-m", "pip", "install", "--quiet", "--retries", "1", peer, *others])
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotInstalled(f"not installed: {error}") from error
        done.write_text(wanted)
    return place / "bin" / "python"


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines() or ["failed"]
        raise NotInstalled(f"not installed: {said[-1].strip()}")
