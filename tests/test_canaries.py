"""The watch over the secrets of the suite sees what it shall see."""

from __future__ import annotations

import base64
import hashlib
import logging
import secrets

import httpx
import pytest

from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubclient.protocol.keys import Key
from httppubsubclient.protocol.standard_webhooks import SharedSecret
from tests import canaries

LOG = logging.getLogger("httppubsub.server.test")


def seen() -> int:
    return len(canaries.taken())


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_what_is_logged_is_seen_at_every_level_and_in_every_form(level: str) -> None:
    raw = hashlib.sha256(level.encode()).digest()
    key = Key("k", raw)
    say = getattr(LOG, level)
    for form in (base64.b64encode(raw).decode(), raw.hex(), repr(raw), f"Bearer {base64.b64encode(raw).decode()}"):
        say("a request came with %s", form)
        assert seen() == 1
    say("nothing of %s", key)
    assert seen() == 0


def test_what_is_raised_or_answered_is_seen() -> None:
    token = secrets.token_urlsafe(32)
    Key("k", token.encode())
    InvalidRequest(f"not {token}")
    assert seen() == 1
    try:
        int(token)
    except ValueError:
        LOG.exception("failed")
    assert seen() > 0

    def answers(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"x": token}, headers={"x-y": token})

    with httpx.Client(transport=httpx.MockTransport(answers)) as client:
        client.get("http://a/")
    assert seen() == 2


def test_a_secret_may_be_in_the_answer_of_the_call_that_made_it() -> None:
    secret = SharedSecret(secrets.token_bytes(24)).text()
    with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(201, json={"secret": secret}))) as client:
        client.post("http://a/v1/subscriptions", json={})
        assert seen() == 0
        client.get("http://a/v1/subscriptions")
        assert seen() == 1


def test_what_is_no_secret_is_left_alone() -> None:
    Key("k", b"x" * 40)
    Key("l", bytes(range(7, 39)))
    InvalidRequest("x" * 80)
    assert seen() == 0
