"""Pubsub-Deliver-At and Pubsub-Expires: two forms, strictly, within bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubclient.protocol.messages import format_time, parse_time
from httppubsubclient.protocol.moments import (
    MAX_DELIVER_AT_SECONDS,
    MAX_EXPIRES_SECONDS,
    MessageMoments,
    MomentHeader,
    message_moments,
    parse_moment_header,
)

SECOND = 1_000_000
NOW = parse_time("2026-11-21T02:11:00Z")
HEADERS: list[MomentHeader] = ["pubsub-deliver-at", "pubsub-expires"]
LIMITS = {"pubsub-deliver-at": MAX_DELIVER_AT_SECONDS, "pubsub-expires": MAX_EXPIRES_SECONDS}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1", 1),
        ("90", 90),
        ("007", 7),
        ("2592000", MAX_EXPIRES_SECONDS),
        ("2026-11-21T02:11:01Z", 1),
        ("2026-11-21T03:11:01+01:00", 1),
        ("2026-11-20T22:11:01-04:00", 1),
        ("2026-11-21T02:11:00.5Z", 0.5),
        ("2026-11-21T02:11:00.000001999Z", 0.000001),
        ("2026-12-21T02:11:00Z", MAX_EXPIRES_SECONDS),
    ],
)
def test_a_moment_is_seconds_from_now_or_rfc_3339(name: MomentHeader, value: str, seconds: float) -> None:
    assert parse_moment_header(name, value, NOW) == NOW + round(seconds * SECOND)


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize(
    "value",
    [
        "",
        " 1",
        "+1",
        "-1",
        "1.5",
        "1e3",
        "1_0",
        "0x1",
        "nan",
        "\N{FULLWIDTH DIGIT ONE}",
        "1\n",
        "1" * 13,
        "1, 2",
        "soon",
        "2026-11-22",
        "2026-11-22T02:11Z",
        "2026-11-22T02:11:00",
        "2026-11-22 02:11:00Z",
        "2026-11-22t02:11:00z",
        "20261122T021100Z",
        "2026-W47-7T02:11:00Z",
        "2026-11-22T02:11:00,5Z",
        "2026-11-22T02:11:00.Z",
        "2026-11-22T02:11:00+0100",
        "2026-11-22T02:11:00+24:00",
        "2026-11-22T24:11:00Z",
        "2026-11-31T02:11:00Z",
        "2026-11-22T02:11:60Z",
        "0000-11-22T02:11:00Z",
        "Sun, 22 Nov 2026 02:11:00 GMT",
    ],
)
def test_whatever_has_another_form_is_refused(name: MomentHeader, value: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} is a whole number of seconds from now"):
        parse_moment_header(name, value, NOW)


@pytest.mark.parametrize("name", HEADERS)
def test_neither_lies_too_far_ahead(name: MomentHeader) -> None:
    limit = LIMITS[name]
    assert parse_moment_header(name, str(limit), NOW) == NOW + limit * SECOND
    assert parse_moment_header(name, format_time(NOW + limit * SECOND), NOW) == NOW + limit * SECOND
    # Unix seconds are seconds from now as well, so they are refused for what they would mean.
    for value in (str(limit + 1), format_time(NOW + limit * SECOND + 1), "1795227060", "9999-12-31T23:59:59-23:59"):
        with pytest.raises(InvalidRequest, match=f"{name}.*{limit} seconds"):
            parse_moment_header(name, value, NOW)


@pytest.mark.parametrize("value", ["0", "2026-11-21T02:11:00Z", "1999-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59"])
def test_to_be_delivered_in_the_past_means_now_but_expired_already_is_a_mistake(value: str) -> None:
    assert parse_moment_header("pubsub-deliver-at", value, NOW) == NOW
    with pytest.raises(InvalidRequest, match=r"not after the one at which the message is due$"):
        parse_moment_header("pubsub-expires", value, NOW)


@pytest.mark.parametrize(
    ("headers", "moments"),
    [
        ({}, MessageMoments(None, None)),
        ({"pubsub-deliver-at": "60"}, MessageMoments(NOW + 60 * SECOND, None)),
        ({"pubsub-expires": "60"}, MessageMoments(None, NOW + 60 * SECOND)),
        ({"pubsub-deliver-at": "60", "pubsub-expires": "5"}, MessageMoments(NOW + 60 * SECOND, NOW + 65 * SECOND)),
        (
            {"pubsub-deliver-at": "2020-01-01T00:00:00Z", "pubsub-expires": "5"},
            MessageMoments(NOW, NOW + 5 * SECOND),
        ),
    ],
)
def test_expiry_counts_from_the_delivery(headers: dict[str, str], moments: MessageMoments) -> None:
    assert message_moments(headers, NOW) == moments


def test_what_expires_before_it_is_due_is_refused() -> None:
    headers = {"pubsub-deliver-at": "3600", "pubsub-expires": format_time(NOW + 3599 * SECOND)}
    with pytest.raises(InvalidRequest, match="pubsub-expires"):
        message_moments(headers, NOW)


@given(
    st.sampled_from(HEADERS),
    st.text(max_size=40)
    | st.from_regex(r"[0-9]{0,14}", fullmatch=True)
    | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})"),
    st.integers(0, 2**52),
)
def test_a_random_header_is_refused_or_within_bounds(name: MomentHeader, value: str, now: int) -> None:
    try:
        moment = parse_moment_header(name, value, now)
    except InvalidRequest:
        return
    assert now <= moment <= now + LIMITS[name] * SECOND
