"""What a subscription is called and what its set looks like from outside: the same in every store."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable

from httppubsubclient.protocol.messages import Subscription

__all__ = ["etag_of", "new_subscription_id"]

_ID_BYTES = 16


def new_subscription_id() -> str:
    """`sub_` and 128 random bits as 22 characters of base64url: nobody guesses the id of a stranger."""
    return "sub_" + secrets.token_urlsafe(_ID_BYTES)


def etag_of(subscriptions: Iterable[Subscription]) -> str:
    """A strong entity tag (RFC 9110 section 8.8.3), with its quotes, of everything the API shows of a set.

    In which order the set is given plays no part.
    """
    shown = [subscription.to_json() for subscription in sorted(subscriptions, key=lambda each: each.id)]
    digest = hashlib.sha256(json.dumps(shown, sort_keys=True).encode("ascii"))
    return f'"{digest.hexdigest()[:32]}"'
