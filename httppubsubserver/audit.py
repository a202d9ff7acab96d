"""Who changed what: one line of JSON for each change, in the log `httppubsub.audit`, and never a secret in it.

    {"action": "subscribed", "by": "partner", "key": "partner-2026", "subscription": "sub_...", ...}

docs/security.md describes the actions and their members for operators. When, the line of the log says; its level is
INFO, and where nobody listens at that level nothing is written.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Final, NamedTuple

from httppubsubclient.protocol.messages import Subscription, format_time
from httppubsubserver.escaping import shown_url

__all__ = ["ENDED_BY_CALLBACK", "OPERATOR", "By", "audit", "audit_put", "audit_removed"]

_LOG = logging.getLogger("httppubsub.audit")


class By(NamedTuple):
    """Who asked for a change."""

    owner: str | None
    """The owner of the key or token; None where no proof is asked for, and for the application around a broadcaster."""
    key: str | None = None
    """The id of the key that proved it. The words below are no owner's: with them there is no key."""


OPERATOR: Final = By("operator")
"""Who starts the broadcaster, or gives a command on its machine."""
ENDED_BY_CALLBACK: Final = By("410")
"""A receiver that answered so."""


def audit(action: str, *, by: By, **members: object) -> None:
    """Write one line. The members are values of JSON; it is pure ASCII, so that nothing in it forges another line."""
    if _LOG.isEnabledFor(logging.INFO):
        key = {} if by.key is None else {"key": by.key}
        _LOG.info("%s", json.dumps({"action": action, "by": by.owner, **key, **members}))


def audit_put(subscription: Subscription, *, by: By) -> None:
    """What somebody who subscribed has changed: one line, two when a secret is new, none for a renewal."""
    if not _LOG.isEnabledFor(logging.INFO):
        return
    before = subscription.before
    if before is None:
        audit("subscribed", by=by, **_members(subscription))
    else:
        chosen = _chosen(subscription)
        was = {name: value for name, value in _chosen(before).items() if value != chosen[name]}
        if was:
            audit("changed", by=by, **_members(subscription), was=was)
    # The same secret again is kept as it was, to the byte.
    if subscription.sealed != (None if before is None else before.sealed):
        audit("secret_given", by=by, **_members(subscription))


def audit_removed(subscription: Subscription, *, by: By) -> None:
    """One line for a subscription that is no more."""
    if _LOG.isEnabledFor(logging.INFO):
        audit("unsubscribed", by=by, **_members(subscription))


def _members(subscription: Subscription) -> dict[str, Any]:
    """What a line tells of a subscription."""
    permanent = subscription.lease_seconds == 0
    return {
        "subscription": subscription.id,
        "url": shown_url(subscription.url),
        "pattern": str(subscription.pattern),
        **_chosen(subscription),
        "signature": subscription.signature,
        "expires": None if permanent else format_time(subscription.expires_at),
    }


def _chosen(subscription: Subscription) -> dict[str, Any]:
    """What may be another when the same (url, pattern) is subscribed again; a lease is renewed, not changed."""
    schedule = subscription.retry_schedule_seconds
    return {
        "owner": subscription.owner,
        "delivery": subscription.delivery,
        "ordered": subscription.ordered,
        "retry_schedule_seconds": None if schedule is None else list(schedule),
        "format": subscription.format,
        "permanent": subscription.lease_seconds == 0,
    }
