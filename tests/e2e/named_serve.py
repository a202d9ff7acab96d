"""`httppubsubserver serve` in a world of its own names, for tests of where it goes: takes the same arguments.

The file that TEST_NAMES names maps each name to its answers: `{"name.example": [["127.0.0.1"], ["127.0.0.2"]]}` gives
127.0.0.1 to the first question and 127.0.0.2 to every later one. Every question is told on stderr.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

from httppubsubserver.cli import main
from httppubsubserver.delivery import resolving

_answers: dict[str, list[list[str]]] = json.loads(Path(os.environ["TEST_NAMES"]).read_text())


def _addresses(host: str) -> list[str]:
    print(f"resolving {host}", file=sys.stderr, flush=True)
    answers = _answers.get(host)
    if answers is None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return answers.pop(0) if len(answers) > 1 else list(answers[0])


if __name__ == "__main__":
    resolving.system_addresses = _addresses
    raise SystemExit(main())
