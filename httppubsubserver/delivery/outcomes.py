"""What the end of an attempt means: for the delivery, for its endpoint, and for the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from httppubsubclient.protocol.errors import WIRE, NotEntered
from httppubsubclient.protocol.retry import (
    DURABLE_SCHEDULE_SECONDS,
    Verdict,
    durable_retry_delay,
    retry_after_seconds,
    slows_endpoint,
    verdict,
)
from httppubsubserver.delivery.answers import Answer, AttemptFailed
from httppubsubserver.delivery.webhook_heads import NotMade
from httppubsubserver.delivery.work import Work
from httppubsubserver.escaping import shown_url
from httppubsubserver.stores.durable import Attempt, Settlement

__all__ = ["Decision", "Outcomes"]

_LOG = logging.getLogger("httppubsub.server.durable")


_NOT_ENTERED: Final = WIRE[NotEntered].status
"""The subscriber is there and has not entered this subscription at present; others of its URL may be."""

_MAX_REMEMBERED: Final = 10_000
"""How many failing subscriptions are remembered; beyond it the oldest is forgotten."""


class Decision(NamedTuple):
    """What an attempt has shown."""

    settlement: Settlement
    endpoint: Literal["works", "fails", "unknown"]
    """unknown: a 409 or 410 is about one subscription, and some failures are our own."""
    slowed_seconds: float | None
    """`fails`: so long it asks for nothing more to be sent to it."""


class Outcomes:
    """Decides. `clock` gives Unix seconds, `random` numbers in [0, 1)."""

    def __init__(self, *, clock: Callable[[], float], random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        self._failing: dict[str, None] = {}

    def decide(self, work: Work, outcome: Answer | AttemptFailed, *, ours: bool = False) -> Decision:
        """`ours`: it failed before anything was sent."""
        now = self._clock()
        moment = int(now * 1_000_000)
        began_at = work.began_at or moment
        if isinstance(outcome, AttemptFailed):
            attempt = Attempt(began_at, moment, None, outcome.told)
            if isinstance(outcome, NotMade) and outcome.for_good:
                self._log_failure(work, attempt, None)
                return Decision(Settlement(work.claimed.held, "dead", attempt, reason=outcome.reason), "unknown", None)
            return Decision(self._failed(work, attempt, None), "unknown" if ours else "fails", None)
        attempt = Attempt(began_at, moment, outcome.status, answer=outcome.excerpt)
        meaning = verdict(outcome.status)
        claimed = work.claimed
        if meaning is Verdict.ACCEPTED:
            if self._failing and self._failing.pop(claimed.held.subscription_id, work) is None:
                _LOG.info("durable deliveries to %s succeed again", claimed.held.subscription_id)
            return Decision(Settlement(claimed.held, "delivered", attempt), "works", None)
        if meaning is Verdict.GONE:
            gone = Settlement(claimed.held, "gone", attempt, subscribed_until=claimed.subscribed_until)
            _LOG.info("unsubscribed %s: its callback answered 410", claimed.held.subscription_id)
            return Decision(gone, "unknown", None)
        retry_after = retry_after_seconds(outcome.retry_after, now)
        settlement = self._failed(work, attempt, retry_after)
        if outcome.status == _NOT_ENTERED:
            return Decision(settlement, "unknown", None)
        return Decision(settlement, "fails", retry_after if slows_endpoint(outcome.status) else None)

    def _failed(self, work: Work, attempt: Attempt, retry_after: float | None) -> Settlement:
        claimed = work.claimed
        schedule = claimed.retry_schedule_seconds or DURABLE_SCHEDULE_SECONDS
        delay = durable_retry_delay(claimed.attempt, schedule, self._random(), retry_after)
        self._log_failure(work, attempt, delay)
        if delay is None:
            return Settlement(claimed.held, "dead", attempt, reason="exhausted")
        return Settlement(claimed.held, "again", attempt, due_at=attempt.ended_at + int(delay * 1_000_000))

    def _log_failure(self, work: Work, attempt: Attempt, delay: float | None) -> None:
        claimed = work.claimed
        subscription_id = claimed.held.subscription_id
        # A subscriber that is away would fill the log: one warning until it takes something again.
        level = logging.INFO if subscription_id in self._failing and delay is not None else logging.WARNING
        self._failing[subscription_id] = None
        if len(self._failing) > _MAX_REMEMBERED:
            del self._failing[next(iter(self._failing))]
        _LOG.log(
            level,
            "durable delivery of %s to %s (%s) failed at attempt %d: %s; %s",
            claimed.message.notification.message_id,
            subscription_id,
            shown_url(claimed.url),
            claimed.attempt,
            attempt.error if attempt.status is None else f"status {attempt.status}",
            "it is dead, and can be replayed" if delay is None else f"again in {delay:.1f} s",
        )
