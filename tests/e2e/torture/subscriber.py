"""Takes deliveries on one port, writes each down before it answers, and misbehaves by a seed.

    python -m tests.e2e.torture.subscriber --name s0 --port 3002 --secrets FILE --journals FOLDER --seed 1 ...

| misdeed | the delivery is                                                          |
|---------|--------------------------------------------------------------------------|
| `error` | answered 500                                                             |
| `busy`  | answered 503 with Retry-After: 1                                         |
| `hang`  | never answered                                                           |
| `close` | read, and the connection is closed                                       |
| `slow`  | taken, after a while                                                     |

With `--misdeeds '{"error": 3, "busy": null}'` each request is met by one of these with the probability `--chance`, at
most so often (null: without end) in one life of this process. Everything else is taken: `arrived` with `status` 204 is
in the journal before the first byte of the answer leaves. Each delivery's signature and digest are verified.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from httppubsubclient.protocol.credentials import Credentials, secrets_from_json, verify_delivery
from httppubsubclient.protocol.errors import PubSubError
from httppubsubclient.protocol.headers import parse_headers
from tests.e2e.torture.journals import Journal
from tests.e2e.torture.wire import Head, read_head

TAKEN = 204
STATUS = {"error": 500, "busy": 503, "hang": 0, "close": 0, "slow": TAKEN}
ANSWERS = {
    TAKEN: b"HTTP/1.1 204 No Content\r\n\r\n",
    500: b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops",
    503: b"HTTP/1.1 503 Later\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
}
SLOW_SECONDS = (0.02, 0.3)


class Subscriber:
    """One port with its journal."""

    def __init__(self, options: argparse.Namespace, journal: Journal, credentials: Credentials) -> None:
        self._options = options
        self._journal = journal
        self._credentials = credentials
        # Another life is another fate.
        self._random = random.Random(f"{options.seed}/{options.name}/{time.monotonic_ns()}")
        self._left: dict[str, int | None] = json.loads(options.misdeeds)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._one_delivery(reader, writer):
                await writer.drain()
        writer.transport.abort()

    async def _one_delivery(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await read_head(reader)
        facts: dict[str, Any] = {"arrived": time.monotonic_ns(), "subscriber": self._options.name}
        body = await reader.readexactly(int(head.get("content-length", "0")))
        facts |= _told(head, body)
        facts["fault"] = self._fault(head, body)
        misdeed = self._misdeed()
        if misdeed == "slow":
            await asyncio.sleep(self._random.uniform(*SLOW_SECONDS))
        status = STATUS.get(misdeed or "", TAKEN)
        self._journal.write("arrived", **facts, misdeed=misdeed, status=status)
        if misdeed == "hang":
            await reader.read(1)  # until the other side has had enough
        if status:
            writer.write(ANSWERS[status])
        return status != 0

    def _misdeed(self) -> str | None:
        """Which one this delivery meets, if any."""
        possible = [name for name, left in self._left.items() if left is None or left > 0]
        if not possible or self._random.random() >= self._options.chance:
            return None
        chosen = self._random.choice(possible)
        left = self._left[chosen]
        self._left[chosen] = None if left is None else left - 1
        return chosen

    def _fault(self, head: Head, body: bytes) -> str | None:
        """What is wrong with the proof of this delivery."""
        try:
            headers = parse_headers(head.raw)
            verify_delivery(self._credentials, method="POST", headers=headers, now=time.time(), tolerance_seconds=300)
        except PubSubError as error:
            return f"bad signature: {error}"
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        return None if headers["content-digest"] == f"sha-256=:{digest}:" else "the digest is not that of the body"


def _told(head: Head, body: bytes) -> dict[str, Any]:
    """What a delivery says about itself, as it came."""
    try:
        said = json.loads(body)
    except ValueError:
        said = {}
    sequence = head.get("pubsub-sequence")
    return {
        "subscription": head.get("pubsub-subscription"),
        "message_id": head.get("webhook-id"),
        "topic": unquote(head.get("pubsub-topic")),
        "sequence": int(sequence) if sequence.isdecimal() else None,
        "previous": head.get("pubsub-previous") or None,
        "attempt": head.get("pubsub-attempt"),
        "publisher": said.get("publisher"),
        "number": said.get("number"),
        "digest": hashlib.sha256(body).hexdigest(),
    }


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    parser = argparse.ArgumentParser(prog="subscriber")
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--secrets", type=Path, required=True, help="subscriber-secrets.json, with hmac")
    parser.add_argument("--journals", type=Path, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--misdeeds", default="{}", metavar="JSON")
    parser.add_argument("--chance", type=float, default=0.0)
    return parser


async def main() -> None:
    options = parser().parse_args()
    credentials = secrets_from_json(json.loads(options.secrets.read_text())).to_subscribers
    subscriber = Subscriber(options, Journal(options.journals, options.name), credentials)
    server = await asyncio.start_server(subscriber.serve, "127.0.0.1", options.port, limit=1 << 20)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
