"""Publishes numbered messages until it is told to stop (SIGTERM), and writes down what it was told about each.

    python -m tests.e2e.torture.publisher --name p0 --urls http://127.0.0.1:3003 --secrets FILE --journals FOLDER ...

Each of `--concurrency` workers publishes one message at a time; a message whose fate is not known is sent again under
the same number, with the same bytes, and with `--keys` with the same Idempotency-Key, at most `--tries` times.

| it writes      | when                                                                                               |
|----------------|----------------------------------------------------------------------------------------------------|
| `sending`      | before the first byte of an attempt leaves: number, try, topic, digest and size of the body         |
| `acknowledged` | a 200 or 202 has arrived in whole: message id and counts                                            |
| `unknown`      | there was no whole answer, or a 5xx: the message may have been accepted or not                      |
| `refused`      | any other answer; nothing here should be refused                                                    |
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.torture.journals import Journal
from tests.e2e.torture.wire import Answer, BrokenAnswer, ask

LARGE_BYTES = (300_000, 700_000)
SMALL_BYTES = (10, 3000)
PAUSE_SECONDS = (0.01, 0.05)
PREFERENCES = (None, None, "respond-async", "wait=1")


class Message(NamedTuple):
    """What is published under a number."""

    number: int
    topic: str
    body: bytes
    key: str | None
    prefer: str | None

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.body).digest()


class Publisher:
    """The workers, which share one row of numbers."""

    def __init__(self, options: argparse.Namespace, journal: Journal, token: str) -> None:
        self._name: str = options.name
        self._urls: list[str] = options.urls.split(",")
        self._options = options
        self._journal = journal
        self._token = token
        self._random = random.Random(f"{options.seed}/{options.name}")
        self._numbers: Iterator[int] = itertools.islice(itertools.count(1), options.at_most)

    async def run(self) -> None:
        """Until every number is done, or this is cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._options.concurrency):
                group.create_task(self._work())

    async def _work(self) -> None:
        for number in self._numbers:
            message = self._message(number)
            for attempt in range(1, self._options.tries + 1):
                if await self._try(message, attempt):
                    break
                # The broadcaster is dead or starting: asking without a pause would only take its processor.
                await asyncio.sleep(self._random.uniform(*PAUSE_SECONDS))
            await asyncio.sleep(self._options.pause)

    def _message(self, number: int) -> Message:
        large = self._options.large_every and number % self._options.large_every == 0
        topic = self._random.choice(self._options.topics.split(","))
        said = {"publisher": self._name, "number": number, "topic": topic}
        said["padding"] = "x" * self._random.randint(*(LARGE_BYTES if large else SMALL_BYTES))
        key = f"{self._name}-{number}" if self._options.keys else None
        return Message(number, topic, json.dumps(said).encode(), key, self._random.choice(PREFERENCES))

    async def _try(self, message: Message, attempt: int) -> bool:
        """True when it is acknowledged, and for what no repetition would mend."""
        facts: dict[str, Any] = {"publisher": self._name, "number": message.number, "try": attempt}
        self._journal.write(
            "sending",
            **facts,
            topic=message.topic,
            digest=message.digest.hex(),
            size=len(message.body),
            key=message.key,
        )
        try:
            answer = await self._send(message)
        except BrokenAnswer as error:
            self._journal.write("unknown", **facts, why=str(error))
            return False
        if answer.status not in (200, 202):
            unknown = answer.status >= 500
            self._journal.write("unknown" if unknown else "refused", **facts, why=answer.body[:500].decode("latin-1"))
            return not unknown
        self._journal.write("acknowledged", **facts, status=answer.status, **json.loads(answer.body))
        return True

    async def _send(self, message: Message) -> Answer:
        headers = {"authorization": f"Bearer {self._token}", "content-type": "application/json"}
        if message.key is not None:
            headers["idempotency-key"] = message.key
        if message.prefer is not None:
            headers["prefer"] = message.prefer
        return await ask(
            self._random.choice(self._urls),
            "POST",
            f"/v1/notify?topic={message.topic}",
            headers=headers,
            body=message.body,
            timeout_seconds=self._options.answer_seconds,
        )


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    parser = argparse.ArgumentParser(prog="publisher")
    parser.add_argument("--name", required=True)
    parser.add_argument("--urls", required=True, help="of broadcasters of one database, separated by commas")
    parser.add_argument("--secrets", type=Path, required=True, help="subscriber-secrets.json, with a token")
    parser.add_argument("--journals", type=Path, required=True)
    parser.add_argument("--topics", required=True, help="separated by commas")
    parser.add_argument("--seed", required=True)
    parser.add_argument("--concurrency", type=int, default=3)
    parser.add_argument("--at-most", type=int, default=None, help="so many numbers")
    parser.add_argument("--large-every", type=int, default=25, help="0: none is large")
    parser.add_argument("--tries", type=int, default=10_000)
    parser.add_argument("--answer-seconds", type=float, default=15.0, help="so long an answer is waited for")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds, between two messages of a worker")
    parser.add_argument("--keys", action="store_true", help="with an Idempotency-Key")
    return parser


async def main() -> None:
    options = parser().parse_args()
    token = json.loads(options.secrets.read_text())["to_broadcasters"]["keys"][-1]["secret"]
    publisher = Publisher(options, Journal(options.journals, options.name), token)
    running = asyncio.create_task(publisher.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    print("ready", flush=True)
    await asyncio.wait({running})
    if not running.cancelled():
        running.result()


if __name__ == "__main__":
    asyncio.run(main())
