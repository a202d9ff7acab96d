"""The headers of durable deliveries are signed whenever they are sent: nobody on the way adds, changes or drops one."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from httppubsubclient.protocol.checks import accepted_at_once, delivery_must_cover, request_must_cover
from httppubsubclient.protocol.credentials import (
    Credentials,
    Key,
    sign_delivery,
    sign_request,
    verify_delivery,
    verify_request,
)
from httppubsubclient.protocol.errors import Unauthorized
from httppubsubclient.protocol.explanations import explain_delivery, explain_request
from httppubsubclient.protocol.messages import Notification, delivery_headers
from httppubsubclient.protocol.signatures import DELIVERY, REQUEST, content_digest

NOW = 1_790_000_000
NONCE = "AAECAwQFBgcICQoLDA0ODw"
HMAC = Credentials("hmac", (Key("k1", b"n" * 32),))
OF_A_REQUEST = {
    "content-digest": content_digest(b"\1" * 32),
    "idempotency-key": "once",
    "pubsub-deliver-at": "60",
    "pubsub-expires": "90",
}
OF_A_DELIVERY = {"pubsub-sequence": "17", "pubsub-previous": "msg_16"}


def some_of(headers: dict[str, str]) -> list[dict[str, str]]:
    return [
        {name: headers[name] for name in names}
        for count in range(len(headers) + 1)
        for names in combinations(headers, count)
    ]


def signed_request(headers: dict[str, str]) -> dict[str, str]:
    proof = sign_request(HMAC, method="POST", path="/v1/notify", query="", headers=headers, now=NOW, nonce=NONCE)
    return headers | proof


def signed_delivery(own: dict[str, str]) -> dict[str, str]:
    notification = Notification("msg_17", b"t", "text/plain", b"\1" * 32, 0)
    headers = delivery_headers(notification, "sub_1", attempt=1, timestamp=NOW, fragment=None)
    headers |= {"content-digest": content_digest(notification.sha256), **own}
    return headers | sign_delivery(HMAC, headers=headers, now=NOW, nonce=NONCE)


def check_request(headers: dict[str, str]) -> None:
    arguments: dict[str, Any] = {
        "method": "POST",
        "path": "/v1/notify",
        "query": "",
        "headers": headers,
        "has_body": "content-digest" in headers,
        "now": NOW,
        "tolerance_seconds": 300,
    }
    steps = explain_request(HMAC, **arguments)
    try:
        verify_request(HMAC, **arguments)
    except Unauthorized:
        assert not steps[-1].ok
        raise
    assert steps[-1].ok


def check_delivery(headers: dict[str, str]) -> None:
    steps = explain_delivery(HMAC, method="POST", headers=headers, now=NOW, tolerance_seconds=300)
    try:
        verify_delivery(HMAC, method="POST", headers=headers, now=NOW, tolerance_seconds=300)
    except Unauthorized:
        assert not steps[-1].ok
        raise
    assert steps[-1].ok


def test_the_profiles_name_them() -> None:
    assert REQUEST.when_sent == tuple(OF_A_REQUEST)
    assert DELIVERY.when_sent == tuple(OF_A_DELIVERY)


@pytest.mark.parametrize("own", some_of(OF_A_REQUEST))
def test_a_request_covers_whichever_it_has_and_goes_the_short_way(own: dict[str, str]) -> None:
    headers = signed_request(own)
    assert [name for name in OF_A_REQUEST if f'"{name}"' in headers["signature-input"]] == list(own)
    check_request(headers)
    must_cover = request_must_cover(headers, "content-digest" in headers)
    line = {"@method": "POST", "@path": "/v1/notify", "@query": "?"}
    assert accepted_at_once(HMAC, must_cover, line, headers, NOW, 300) is not None


@pytest.mark.parametrize("own", some_of(OF_A_DELIVERY))
def test_a_delivery_covers_whichever_it_has_and_goes_the_short_way(own: dict[str, str]) -> None:
    headers = signed_delivery(own)
    assert [name for name in OF_A_DELIVERY if f'"{name}"' in headers["signature-input"]] == list(own)
    check_delivery(headers)
    assert accepted_at_once(HMAC, delivery_must_cover(headers), {"@method": "POST"}, headers, NOW, 300) is not None


@pytest.mark.parametrize("own", some_of(OF_A_REQUEST))
@pytest.mark.parametrize("name", ["pubsub-deliver-at", "pubsub-expires"])
def test_nobody_changes_when_a_message_is_delivered(own: dict[str, str], name: str) -> None:
    headers = signed_request(own)
    with pytest.raises(Unauthorized):
        check_request({**headers, name: "1"})
    if name in own:
        del headers[name]
        with pytest.raises(Unauthorized):
            check_request(headers)


@pytest.mark.parametrize("own", some_of(OF_A_DELIVERY))
@pytest.mark.parametrize("name", OF_A_DELIVERY)
def test_nobody_makes_a_gap(own: dict[str, str], name: str) -> None:
    headers = signed_delivery(own)
    with pytest.raises(Unauthorized):
        check_delivery({**headers, name: "18"})
    if name in own:
        del headers[name]
        with pytest.raises(Unauthorized):
            check_delivery(headers)
