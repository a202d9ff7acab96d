"""What a subscription may ask for besides its pattern: how it is delivered to.

| JSON                     | default         | only with `durable` | meaning                                           |
|--------------------------|-----------------|---------------------|---------------------------------------------------|
| `delivery`               | `"best_effort"` |                     | `"durable"`: kept and tried again until delivered |
| `ordered`                | `false`         | yes                 | one at a time, in the order of acceptance         |
| `retry_schedule_seconds` | absent          | yes                 | the waits before attempt 1, 2, ... (retry.py)     |
| `format`                 | `"raw"`         |                     | what a delivery looks like (cloudevents.py)       |

In JSON that we write, `delivery` is always there, the others only when they differ from the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubclient.protocol.retry import check_retry_schedule

__all__ = [
    "DeliveryFormat",
    "DeliveryMode",
    "DeliveryOptions",
    "check_options",
    "options_from_json",
    "options_to_json",
]

DeliveryMode = Literal["best_effort", "durable"]
DeliveryFormat = Literal["raw", "cloudevents-binary", "cloudevents-structured"]
_MODES: Final[dict[object, DeliveryMode]] = {"best_effort": "best_effort", "durable": "durable"}
_FORMATS: Final[dict[object, DeliveryFormat]] = {
    "raw": "raw",
    "cloudevents-binary": "cloudevents-binary",
    "cloudevents-structured": "cloudevents-structured",
}


class DeliveryOptions(NamedTuple):
    """All of them, in the order in which `SubscribeRequest` and `Subscription` have them."""

    delivery: DeliveryMode = "best_effort"
    ordered: bool = False
    retry_schedule_seconds: tuple[float, ...] | None = None
    format: DeliveryFormat = "raw"


def options_to_json(options: DeliveryOptions) -> dict[str, Any]:
    """The members of a JSON object."""
    fields: dict[str, Any] = {"delivery": options.delivery}
    if options.ordered:
        fields["ordered"] = True
    if options.retry_schedule_seconds is not None:
        fields["retry_schedule_seconds"] = list(options.retry_schedule_seconds)
    if options.format != "raw":
        fields["format"] = options.format
    return fields


def options_from_json(fields: Mapping[str, Any]) -> DeliveryOptions:
    """The inverse of `options_to_json`; null counts as absent. Raises `InvalidRequest`."""
    delivery = fields.get("delivery")
    ordered = fields.get("ordered")
    schedule = fields.get("retry_schedule_seconds")
    # A list or an object cannot be looked up.
    mode = "best_effort" if delivery is None else _MODES.get(delivery) if isinstance(delivery, str) else None
    if mode is None:
        raise InvalidRequest('\'delivery\' is "best_effort" or "durable"')
    if ordered is not None and not isinstance(ordered, bool):
        raise InvalidRequest("'ordered' is true or false")
    shape = fields.get("format")
    form = "raw" if shape is None else _FORMATS.get(shape) if isinstance(shape, str) else None
    if form is None:
        raise InvalidRequest(f"'format' is one of {', '.join(map(str, _FORMATS))}")
    options = DeliveryOptions(
        mode, ordered or False, None if schedule is None else check_retry_schedule(schedule), form
    )
    check_options(options)
    return options


def check_options(options: DeliveryOptions) -> None:
    """Raises `InvalidRequest` for options that do not go together, and for a schedule that is none."""
    if options.delivery == "best_effort":
        if options.ordered:
            raise InvalidRequest('\'ordered\' needs "delivery": "durable": best effort keeps no order')
        if options.retry_schedule_seconds is not None:
            raise InvalidRequest(
                '\'retry_schedule_seconds\' needs "delivery": "durable": best effort has quick retries of its own'
            )
    if options.retry_schedule_seconds is not None:
        check_retry_schedule(options.retry_schedule_seconds)
