"""The prepared header lines say the same as the functions that say it one by one."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.credentials import Credentials, Key, sign_delivery, verify_delivery
from httppubsubclient.protocol.delivery_heads import NONCE_PREFIX_BYTES, DeliveryHeads
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.messages import Notification, delivery_headers
from httppubsubclient.protocol.signatures import content_digest

NOW = 1_800_000_000
PREFIX = bytes(range(NONCE_PREFIX_BYTES))
HMAC = Credentials("hmac", (Key("key-1", b"k" * 32),))
TOKEN = Credentials("token", (Key("key-1", b"t" * 40),))
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def headers_of(lines: bytes) -> dict[str, str]:
    assert lines.endswith(b"\r\n")
    pairs = [line.split(": ", 1) for line in lines.decode("ascii").split("\r\n")[:-1]]
    headers = dict(pairs)
    assert len(headers) == len(pairs), "no header comes twice"
    return headers


@given(
    topic=st.binary(min_size=1, max_size=100),
    body=st.binary(max_size=20),
    attempt=st.integers(1, 9),
    fragment=st.none() | st.from_regex(r"[!-~]{1,20}", fullmatch=True),
    traceparent=st.none() | st.just(TRACE),
    credentials=st.sampled_from([HMAC, TOKEN, Credentials.none()]),
    place=st.sampled_from([(None, None), (1, None), (7, "msg_0")]),
)
def test_they_are_those_of_the_plain_functions(
    topic: bytes,
    body: bytes,
    attempt: int,
    fragment: str | None,
    traceparent: str | None,
    credentials: Credentials,
    place: tuple[int | None, str | None],
) -> None:
    sha256 = hashlib.sha256(body).digest()
    notification = Notification("msg_1", topic, "text/plain; charset=utf-8", sha256, len(body), traceparent)
    sequence, previous = place
    heads = DeliveryHeads(
        credentials,
        notification,
        attempt=attempt,
        now=NOW,
        nonce_prefix=PREFIX,
        place="plain" if sequence is None else "first" if previous is None else "next",
    )
    if sequence is None:
        headers = headers_of(heads.lines("sub_1", fragment))
    else:
        headers = headers_of(heads.durable_lines("sub_1", fragment, sequence, previous))

    expected = delivery_headers(
        notification,
        "sub_1",
        attempt=attempt,
        timestamp=NOW,
        fragment=fragment,
        sequence=sequence,
        previous_message_id=previous,
    )
    expected["content-digest"] = content_digest(sha256)
    expected |= sign_delivery(credentials, headers=expected, now=NOW, nonce=PREFIX.hex() + "00000001")
    assert headers == expected
    verify_delivery(credentials, method="POST", headers=headers, now=NOW, tolerance_seconds=300)


def test_every_delivery_has_a_nonce_of_its_own() -> None:
    notification = Notification("msg_1", b"t", "text/plain", b"\0" * 32, 0)
    heads = DeliveryHeads(HMAC, notification, attempt=1, now=NOW, nonce_prefix=PREFIX)
    nonces = {
        verify_delivery(
            HMAC, method="POST", headers=headers_of(heads.lines("sub_1", None)), now=NOW, tolerance_seconds=300
        ).nonce
        for _ in range(1000)
    }
    assert len(nonces) == 1000


def test_without_a_key_that_is_in_use_nothing_is_made() -> None:
    notification = Notification("msg_1", b"t", "text/plain", b"\0" * 32, 0)
    ended = Credentials("hmac", (Key("key-1", b"k" * 32, 0, NOW - 1),))
    with pytest.raises(ConfigurationError):
        DeliveryHeads(ended, notification, attempt=1, now=NOW, nonce_prefix=PREFIX)
