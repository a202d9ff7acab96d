"""How a subscription may ask to be delivered to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubclient.protocol.messages import SubscribeRequest, Subscription
from httppubsubclient.protocol.options import DeliveryOptions, options_from_json, options_to_json
from httppubsubclient.protocol.patterns import Pattern

SCHEDULES = st.lists(st.floats(0.001, 2_592_000), min_size=1, max_size=64).map(tuple)
OPTIONS = st.just(DeliveryOptions()) | st.builds(
    DeliveryOptions, st.just("durable"), st.booleans(), st.none() | SCHEDULES
)


@given(OPTIONS)
def test_options_survive_the_way_through_json(options: DeliveryOptions) -> None:
    fields = json.loads(json.dumps(options_to_json(options)))
    assert options_from_json({**fields, "later": 1}) == options


@given(OPTIONS)
def test_a_subscription_has_them_in_its_json_and_back(options: DeliveryOptions) -> None:
    subscription = Subscription("sub_1", "http://h/", Pattern.exact(b"t"), 60, 0, 60_000_000, *options)
    assert subscription.options == options
    assert Subscription.from_json(json.loads(json.dumps(subscription.to_json()))) == subscription
    assert SubscribeRequest("http://h/", Pattern.exact(b"t"), 60, *options).options == options


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (DeliveryOptions(), {"delivery": "best_effort"}),
        (DeliveryOptions("durable"), {"delivery": "durable"}),
        (DeliveryOptions("durable", True), {"delivery": "durable", "ordered": True}),
        (
            DeliveryOptions("durable", False, (0.0, 1.5)),
            {"delivery": "durable", "retry_schedule_seconds": [0.0, 1.5]},
        ),
    ],
)
def test_only_what_differs_from_the_default_is_written(options: DeliveryOptions, fields: dict[str, Any]) -> None:
    assert options_to_json(options) == fields


@pytest.mark.parametrize("fields", [{}, {"delivery": None, "ordered": None, "retry_schedule_seconds": None}])
def test_nothing_means_best_effort(fields: dict[str, Any]) -> None:
    assert options_from_json(fields) == DeliveryOptions()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"delivery": "Durable"}, "'delivery'"),
        ({"delivery": ""}, "'delivery'"),
        ({"delivery": True}, "'delivery'"),
        ({"delivery": ["durable"]}, "'delivery'"),
        ({"delivery": {}}, "'delivery'"),
        ({"delivery": "durable", "ordered": 1}, "'ordered'"),
        ({"delivery": "durable", "ordered": "true"}, "'ordered'"),
        ({"delivery": "durable", "retry_schedule_seconds": []}, "retry_schedule_seconds"),
        ({"delivery": "durable", "retry_schedule_seconds": [float("nan")]}, "retry_schedule_seconds"),
        ({"delivery": "durable", "retry_schedule_seconds": "5"}, "retry_schedule_seconds"),
        ({"ordered": True}, "'ordered' needs"),
        ({"delivery": "best_effort", "ordered": True}, "'ordered' needs"),
        ({"retry_schedule_seconds": [0, 1]}, "'retry_schedule_seconds' needs"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        options_from_json(fields)


def test_a_request_made_in_python_is_checked_like_one_in_json() -> None:
    pattern = Pattern.exact(b"t")
    with pytest.raises(InvalidRequest, match="'ordered' needs"):
        SubscribeRequest("http://h/", pattern, 60, ordered=True)
    with pytest.raises(InvalidRequest, match="'retry_schedule_seconds' needs"):
        SubscribeRequest("http://h/", pattern, 60, retry_schedule_seconds=(1.0,))
    with pytest.raises(InvalidRequest, match=r"retry_schedule_seconds\[1\]"):
        SubscribeRequest("http://h/", pattern, 60, "durable", retry_schedule_seconds=(0.0, -1.0))
