"""Idempotency keys: one request runs, everybody else with the same key is answered what it was answered.

The store decides who runs, so this holds over several processes and over restarts. Source: the semantics of the
IETF draft "The Idempotency-Key HTTP Header Field", except that a concurrent request waits instead of failing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.errors import Conflict, PubSubError, Unavailable
from httppubsubclient.protocol.messages import Notification, NotifyResult, check_idempotency_key
from httppubsubserver.stores import Remembered, Store

__all__ = ["Once"]

_FIRST_POLL_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 0.5
_LEASE_SECONDS = 5.0
"""So long after the death of a process its claims may be taken over."""
_RENEW_SECONDS = 1.5
_FINISH_AGAIN_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5)

_LOG = logging.getLogger("httppubsub.server")


def _fingerprint_of(notification: Notification) -> bytes:
    """What must be the same for two requests with one key to be the same request: topic, type and body."""
    parts = (notification.topic, notification.content_type.encode("ascii"), notification.sha256)
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


class Once:
    """Runs work at most once per key. `clock` gives Unix seconds; answers are kept for `keep_seconds`."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Callable[[], float],
        keep_seconds: int,
        check_accepting: Callable[[], None],
        background: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._store = store
        self._clock = clock
        self._keep_seconds = keep_seconds
        self._check_accepting = check_accepting
        self._background = background

    async def run(
        self,
        key: str,
        notification: Notification,
        body: Body,
        work: Callable[[str], Awaitable[NotifyResult]],
        *,
        running_seconds: float,
        owner: str | None = None,
    ) -> NotifyResult:
        """The result of `work`, or of the earlier request with this key. `work` takes over `body`; so does this.

        `work` is told which message id to use: when a request died half-way, the one that it had, so that nobody
        takes what is sent now for another message. `running_seconds` is the longest that it may take. Every `owner`
        has keys of its own. Raises `Conflict`, `Unavailable`.
        """
        try:
            check_idempotency_key(key)
            # No key has a space in it.
            key = key if owner is None else f"{owner} {key}"
            known = await self._claim(key, notification, running_seconds)
        except BaseException:
            body.close()
            raise
        if known.state == "new":
            return await self._run_claimed(key, known.message_id, work)
        body.close()
        if known.state == "conflict":
            raise Conflict("this Idempotency-Key was used with another topic, content type or body")
        if known.state == "running":
            raise Unavailable("a request with this Idempotency-Key is still running", retry_after_seconds=1)
        return NotifyResult.from_json(json.loads(known.answer or "{}"))

    async def _claim(self, key: str, notification: Notification, running_seconds: float) -> Remembered:
        """Claim the key; while another request holds it, look again until that one must be done."""
        fingerprint = _fingerprint_of(notification)
        give_up_at = self._clock() + running_seconds
        pause = _FIRST_POLL_SECONDS
        while True:
            now = self._clock()
            known = await self._store.begin_once(
                key,
                fingerprint=fingerprint,
                message_id=notification.message_id,
                lease_until=_microseconds(now + _LEASE_SECONDS),
                until=_microseconds(now + self._keep_seconds),
                now=_microseconds(now),
            )
            if known.state != "running" or now >= give_up_at:
                return known
            self._check_accepting()  # nobody waits for another's answer while this process stops
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_POLL_SECONDS)

    async def _run_claimed(
        self, key: str, message_id: str, work: Callable[[str], Awaitable[NotifyResult]]
    ) -> NotifyResult:
        renewing = asyncio.create_task(self._renew(key, message_id), name="idempotency key")
        try:
            result = await work(message_id)
        except BaseException:
            await self._store.abandon_once(key)
            raise
        finally:
            renewing.cancel()
        answer = json.dumps(result.to_json())
        try:
            await self._store.finish_once(key, answer=answer)
        except PubSubError:
            # The message is out: to say anything else would make the publisher send it again.
            self._background(self._finish_later(key, answer))
        return result

    async def _renew(self, key: str, message_id: str) -> None:
        """Keep the claim while its work is under way."""
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            with suppress(PubSubError):
                until = _microseconds(self._clock() + _LEASE_SECONDS)
                await self._store.renew_once(key, message_id=message_id, lease_until=until)

    async def _finish_later(self, key: str, answer: str) -> None:
        """Until this has worked, others with this key are told that it is still running, or get the same message
        sent once more."""
        for pause in _FINISH_AGAIN_SECONDS:
            await asyncio.sleep(pause)
            with suppress(PubSubError):
                await self._store.finish_once(key, answer=answer)
                return
        _LOG.error("the answer for an Idempotency-Key could not be kept; after its lease it could be sent again")


def _microseconds(seconds: float) -> int:
    return int(seconds * 1_000_000)
