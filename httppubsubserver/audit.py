"""Who changed what: one line of JSON for each, in the log `httppubsub.audit`, and never a secret in it.

    {"action": "subscribed", "by": "partner", "subscription": "sub_...", "url": "https://partner.example/hook", ...}

| action                   | members beside `by`                                                          |
|--------------------------|------------------------------------------------------------------------------|
| `subscribed`             | `subscription`, `url`, `pattern`, `delivery`, `expires`                      |
| `secret_given`           | the same: a secret of its own came with it, which may be the one it had      |
| `unsubscribed`           | `subscription`                                                               |
| `subscriptions_replaced` | `url`, `count`, `subscriptions` (the first of their ids), `secrets`: how     |
|                          | many of them came with a secret                                              |
| `replayed`               | `replay` (its number), `selection`                                           |
| `called_off`             | `message`, `deliveries` (how many)                                           |
| `keys_loaded`            | `direction`, `keys` (their ids): when a broadcaster starts                   |

`by` is the owner of the key that asked, `operator` for a command on the broadcaster's machine, null where no proof is
asked for. When, the line of the log says; its level is INFO.
"""

from __future__ import annotations

import json
import logging

__all__ = ["audit"]

_LOG = logging.getLogger("httppubsub.audit")


def audit(action: str, *, by: str | None, **members: object) -> None:
    """Write one line. The members are values of JSON; it is pure ASCII, so that nothing in it forges another line."""
    if _LOG.isEnabledFor(logging.INFO):
        _LOG.info("%s", json.dumps({"action": action, "by": by, **members}))
