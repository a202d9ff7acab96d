"""Keys, secrets files, and proofs: who is let in, who is not and why, and what is never shown."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.credentials import (
    Credentials,
    Key,
    Proof,
    Secrets,
    secrets_from_json,
    secrets_to_json,
    sign_delivery,
    sign_request,
    verify_delivery,
    verify_request,
)
from httppubsubclient.protocol.errors import ConfigurationError, InvalidRequest, PubSubError, Unauthorized
from httppubsubclient.protocol.explanations import Step, explain_delivery, explain_request
from httppubsubclient.protocol.messages import Notification, delivery_headers
from httppubsubclient.protocol.permissions import Permissions, Quotas
from httppubsubclient.protocol.signatures import content_digest

NOW = 1_790_000_000
NONCE = "AAECAwQFBgcICQoLDA0ODw"
SECRET = b"a secret of thirty-two bytes !!!"
TOKEN = "a-token-of-thirty-characters.."
HMAC = Credentials("hmac", (Key("k1", SECRET),))
BEARER = Credentials("token", (Key("t1", TOKEN.encode()),))
SHA256 = hashlib.sha256(b"data").digest()
LINE = {"method": "POST", "path": "/v1/notify", "query": "topic=t"}


def request(credentials: Credentials = HMAC, now: int = NOW) -> dict[str, str]:
    headers = {"content-digest": content_digest(SHA256)}
    return headers | sign_request(credentials, **LINE, headers=headers, now=now, nonce=NONCE)


def delivery(credentials: Credentials = HMAC, now: int = NOW) -> dict[str, str]:
    notification = Notification("msg_1", b"t", "text/plain", SHA256, 4)
    headers = delivery_headers(notification, "sub_1", attempt=1, timestamp=now, fragment="f")
    headers["content-digest"] = content_digest(SHA256)
    return headers | sign_delivery(credentials, headers=headers, now=now, nonce=NONCE)


def check(headers: dict[str, str], credentials: Credentials = HMAC, now: float = NOW) -> Proof:
    return verify_request(credentials, **LINE, headers=headers, has_body=True, now=now, tolerance_seconds=300)


def check_delivery(headers: dict[str, str], credentials: Credentials = HMAC, now: float = NOW) -> Proof:
    return verify_delivery(credentials, method="POST", headers=headers, now=now, tolerance_seconds=300)


def refusal(headers: dict[str, str], credentials: Credentials = HMAC, now: float = NOW) -> str | None:
    with pytest.raises(Unauthorized) as caught:
        check(headers, credentials, now)
    return caught.value.reason


# Proofs


def test_a_signed_request_proves_its_key_and_says_until_when_its_nonce_matters() -> None:
    assert check(request()) == Proof("k1", NONCE, NOW + 300)
    assert check_delivery(delivery()) == Proof("k1", NONCE, NOW + 300)


@pytest.mark.parametrize(
    ("offset", "accepted"), [(0, True), (299.999, True), (300, False), (301, False), (-300, True), (-300.001, False)]
)
def test_a_signature_counts_within_the_tolerance_in_both_directions(offset: float, accepted: bool) -> None:
    if accepted:
        proof = check(request(), now=NOW + offset)
        assert proof.replay_until is not None
        assert proof.replay_until > NOW + offset, "accepted only while its nonce is remembered"
    else:
        assert refusal(request(), now=NOW + offset) == "outside_tolerance"


def test_the_timestamp_header_of_a_delivery_proves_no_freshness() -> None:
    headers = delivery()
    assert check_delivery({**headers, "webhook-timestamp": "1"}).key_id == "k1"
    with pytest.raises(Unauthorized, match="3600 s ago"):
        check_delivery({**headers, "webhook-timestamp": str(NOW + 3600)}, now=NOW + 3600)


def test_a_request_proves_nothing_in_the_other_direction_even_with_the_same_key() -> None:
    with pytest.raises(Unauthorized) as caught:
        check_delivery({**delivery(Credentials.none()), **request()})
    assert caught.value.reason == "not_covered"
    assert refusal(delivery()) == "not_covered"


def test_all_keys_are_accepted_until_they_end_and_the_last_that_has_begun_signs() -> None:
    old = Key("old", b"o" * 32, valid_until=NOW + 100)
    new = Key("new", b"n" * 32, use_after=NOW + 50)
    both = Credentials("hmac", (old, new))
    assert [both.signing_key(now).id for now in (NOW, NOW + 49.9, NOW + 50, NOW + 1000)] == ["old", "old", "new", "new"]
    assert check(request(Credentials("hmac", (Key("new", b"n" * 32),))), both).key_id == "new", "before its use_after"
    assert check(request(both), both, NOW + 99).key_id == "old"
    assert refusal(request(both), both, NOW + 100) == "key_expired"


@pytest.mark.parametrize("type_", ["hmac", "token"])
def test_without_a_key_for_now_nothing_is_signed(type_: Any) -> None:
    for keys in ((), (Key("k", b"x" * 32, use_after=NOW + 1),), (Key("k", b"x" * 32, valid_until=NOW),)):
        credentials = Credentials(type_, keys)
        with pytest.raises(ConfigurationError, match="--rotate"):
            request(credentials)
        with pytest.raises(ConfigurationError, match="--rotate"):
            delivery(credentials)


def test_a_key_that_may_be_used_later_is_told_with_its_moment_and_its_place() -> None:
    keys = (Key("later", b"x" * 32, use_after=NOW + 7200), Key("new", b"y" * 32, use_after=1_800_000_000))
    with pytest.raises(ConfigurationError, match=r"'later' only from .* goes behind the old one"):
        Credentials("hmac", keys).signing_key(NOW)
    with pytest.raises(ConfigurationError, match="'new' only from 2027-01-15 08:00:00 UTC on"):
        Credentials("token", keys[1:]).signing_key(NOW)
    with pytest.raises(ConfigurationError, match="any more: the last one ended at 2001-09-09 01:46:40 UTC"):
        Credentials("hmac", (Key("k", b"x" * 32, valid_until=10**9), Key("j", b"y" * 32, valid_until=1))).signing_key(
            NOW
        )
    with pytest.raises(ConfigurationError, match=str(2**53)):
        Credentials("hmac", (Key("k", b"x" * 32, use_after=2**53),)).signing_key(NOW)


@pytest.mark.parametrize("kind", ["hmac", "token"])
@pytest.mark.parametrize("place", ["to_broadcasters", "to_subscribers"])
def test_two_keys_of_one_direction_have_two_secrets(kind: str, place: str) -> None:
    secret = base64.b64encode(SECRET).decode()
    direction = {"type": kind, "keys": [{"id": "a", "secret": secret}, {"id": "b", "secret": secret}]}
    obj = {"version": 1, "to_broadcasters": {"type": "none"}, "to_subscribers": {"type": "none"}, place: direction}
    with pytest.raises(ConfigurationError, match=rf"{place}\.keys: 'a' and 'b' have the same secret") as caught:
        secrets_from_json(obj)
    assert secret not in str(caught.value)


@pytest.mark.parametrize("kind", ["hmac", "token"])
def test_a_secret_that_is_none_is_told_how_to_make_one(kind: str) -> None:
    direction = {"type": kind, "keys": [{"id": "a", "secret": "..."}]}
    with pytest.raises(ConfigurationError, match=r"urandom \| base64` makes one"):
        secrets_from_json({"version": 1, "to_broadcasters": direction, "to_subscribers": {"type": "none"}})


def test_a_delivery_without_a_header_that_is_covered_cannot_be_signed() -> None:
    headers = {name: value for name, value in delivery(Credentials.none()).items() if name != "pubsub-topic"}
    with pytest.raises(InvalidRequest, match="pubsub-topic"):
        sign_delivery(HMAC, headers=headers, now=NOW, nonce=NONCE)


@pytest.mark.parametrize("nonce", ["", "short", "x" * 65, "n" * 15 + " ", "é" * 16, "a" * 16 + "\n"])
def test_a_nonce_is_16_to_64_visible_characters(nonce: str) -> None:
    with pytest.raises(InvalidRequest, match="nonce"):
        sign_request(HMAC, **LINE, headers={}, now=NOW, nonce=nonce)


def test_a_token_proves_its_key_id_and_leaves_no_nonce() -> None:
    headers = request(BEARER)
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert check(headers, BEARER) == Proof("t1", None, None)
    assert check({"authorization": f"bearer  {TOKEN} "}, BEARER).key_id == "t1"
    assert check_delivery(delivery(BEARER), BEARER) == Proof("t1", None, None)
    assert refusal(headers, replace(BEARER, keys=(Key("t1", TOKEN.encode(), valid_until=NOW),))) == "key_expired"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing"),
        ("", "missing"),
        (TOKEN, "malformed"),
        ("Bearer", "malformed"),
        ("Bearer ", "malformed"),
        (f"Basic {TOKEN}", "malformed"),
        (f"Bearer {TOKEN} {TOKEN}", "malformed"),
        (f"Bearer {TOKEN}, Bearer {TOKEN}", "malformed"),
        ("Bearer é", "malformed"),
        ("Bearer " + "x" * 5000, "malformed"),
        (f"Bearer {TOKEN}x", "mismatch"),
        (f"Bearer {TOKEN[:-1]}", "mismatch"),
        (f"Bearer {TOKEN.upper()}", "mismatch"),
    ],
)
def test_another_token_is_refused(value: str | None, reason: str) -> None:
    assert refusal({} if value is None else {"authorization": value}, BEARER) == reason


def test_none_asks_for_nothing_and_gives_nothing() -> None:
    none = Credentials.none()
    assert sign_request(none, **LINE, headers={}, now=NOW, nonce=NONCE) == {}
    assert sign_delivery(none, headers={}, now=NOW, nonce=NONCE) == {}
    assert check({}, none) == check_delivery({}, none) == Proof(None, None, None)


def test_no_keys_let_nobody_in() -> None:
    assert refusal(request(), Credentials("hmac")) == "unknown_key"
    assert refusal(request(BEARER), Credentials("token")) == "mismatch"


@given(st.dictionaries(st.sampled_from(["authorization", "signature", "signature-input"]), st.text(max_size=60)))
def test_random_proofs_raise_nothing_but_unauthorized(headers: dict[str, str]) -> None:
    for credentials in (HMAC, BEARER):
        with pytest.raises(Unauthorized):
            check(headers, credentials)
        with pytest.raises(Unauthorized):
            check_delivery(headers, credentials)


# Explanations


def steps(explained: list[Step]) -> dict[str, tuple[bool, str]]:
    return {step.name: (step.ok, step.detail) for step in explained}


def explained(headers: dict[str, str], credentials: Credentials = HMAC, **changes: Any) -> list[Step]:
    arguments = {**LINE, "headers": headers, "has_body": True, "now": NOW, "tolerance_seconds": 300, **changes}
    return explain_request(credentials, **arguments)


def test_an_explanation_of_a_good_request_is_all_good() -> None:
    told = explained(request(), sha256=SHA256)
    assert all(step.ok for step in told)
    assert told[-1].name == "result"
    names = [step.name for step in told]
    assert names[1:-2] == [f"sig1 {check}" for check in ("alg", "keyid", "components", "created", "nonce", "signature")]
    assert "content-digest" in names


def test_an_explanation_makes_every_check_though_the_first_fails() -> None:
    told = steps(explained(request(), now=NOW + 86_400))
    assert told["sig1 created"] == (
        False,
        "the signature was made 86400 s ago, by the clock here, and 300 s are tolerated",
    )
    assert told["sig1 signature"][0], "an old capture still shows whether the key is right"
    assert told["result"][0] is False


def test_an_explanation_shows_what_should_have_been_signed() -> None:
    told = explained(request(), query="topic=u")
    assert '"@query": ?topic=u' in [step.detail for step in told if step.name == "sig1 signature base"]
    assert not steps(told)["sig1 signature"][0]


def test_an_explanation_compares_the_body_when_it_is_there() -> None:
    told = steps(explained(request(), sha256=hashlib.sha256(b"other").digest()))
    assert told["sig1 signature"][0]
    assert not told["content-digest"][0]
    assert not told["result"][0]


def test_an_explanation_tells_each_of_several_signatures_and_one_good_one_is_enough() -> None:
    headers = request()
    for name in ("signature", "signature-input"):
        other = headers[name].replace("sig1", "proxy").replace('keyid="k1"', 'keyid="p"')
        headers[name] = f"{other}, {headers[name]}"
    told = steps(explained(headers))
    assert not told["proxy keyid"][0]
    assert not told["proxy signature"][0]
    assert told["sig1 signature"][0]
    assert told["result"][0]


@pytest.mark.parametrize(
    ("headers", "credentials", "ok"),
    [
        (request(BEARER), BEARER, True),
        ({"authorization": "Bearer x"}, BEARER, False),
        ({}, BEARER, False),
        ({}, Credentials.none(), True),
        ({}, HMAC, False),
        ({"signature": "x", "signature-input": "y"}, HMAC, False),
    ],
)
def test_an_explanation_agrees_with_the_check(headers: dict[str, str], credentials: Credentials, ok: bool) -> None:
    assert explained(headers, credentials)[-1].ok is ok
    told = explain_delivery(credentials, method="POST", headers=headers, now=NOW, tolerance_seconds=300)
    assert told[-1].ok is ok


@given(st.dictionaries(st.sampled_from(["signature", "signature-input", "pubsub-topic", "webhook-id"]), st.text()))
def test_random_messages_are_explained_too(changes: dict[str, str]) -> None:
    headers = {**delivery(), **changes}
    told = explain_delivery(HMAC, method="POST", headers=headers, now=NOW, tolerance_seconds=300, sha256=SHA256)
    try:
        check_delivery(headers)
    except Unauthorized:
        assert not told[-1].ok
    else:
        assert told[-1].ok


def test_secrets_and_correct_signatures_are_never_shown() -> None:
    good = request()
    forged = {**good, "signature": f"sig1=:{base64.b64encode(bytes(32)).decode()}:"}
    texts = [repr(HMAC), repr(BEARER), repr(HMAC.keys), str(Secrets(HMAC, BEARER, ()))]
    texts += [repr(explained(forged)), repr(explained(good, BEARER)), repr(explained(request(BEARER), BEARER))]
    texts += [repr(explained({"authorization": f"Bearer {TOKEN}x"}, BEARER))]
    for credentials, headers in ((HMAC, forged), (BEARER, {"authorization": f"Bearer {TOKEN}x"})):
        with pytest.raises(Unauthorized) as caught:
            check(headers, credentials)
        texts.append(repr(caught.value))
    correct = good["signature"].split(":")[1]
    for text in texts:
        assert SECRET.decode() not in text
        assert base64.b64encode(SECRET).decode() not in text
        assert TOKEN not in text
        assert correct not in text


# Secrets files

FILE: dict[str, Any] = {
    "version": 1,
    "broadcasters": ["http://127.0.0.1:3003", "https://pubsub.example/prefix"],
    "to_broadcasters": {
        "type": "hmac",
        "keys": [
            {"id": "k1", "secret": base64.b64encode(SECRET).decode(), "valid_until": NOW},
            {"id": "k2", "secret": base64.b64encode(SECRET[::-1]).decode(), "use_after": NOW - 60},
        ],
    },
    "to_subscribers": {"type": "token", "keys": [{"id": "t1", "secret": TOKEN}]},
}


def test_a_secrets_file_gives_the_credentials_of_both_directions() -> None:
    secrets = secrets_from_json(FILE)
    urls = ("http://127.0.0.1:3003", "https://pubsub.example/prefix")
    assert secrets.broadcasters == urls
    keys = (Key("k1", SECRET, valid_until=NOW), Key("k2", SECRET[::-1], use_after=NOW - 60))
    assert secrets.to_broadcasters == Credentials("hmac", keys, urls)
    assert secrets.to_subscribers == Credentials("token", (Key("t1", TOKEN.encode()),), urls)


@pytest.mark.parametrize("type_", ["hmac", "token", "none"])
def test_a_secrets_file_survives_a_round_trip(type_: str) -> None:
    directions = {"hmac": FILE["to_broadcasters"], "token": FILE["to_subscribers"], "none": {"type": "none"}}
    content = {**FILE, "to_subscribers": directions[type_]}
    assert json.loads(json.dumps(secrets_to_json(secrets_from_json(content)))) == content


def changed(path: str, value: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(FILE))
    *parents, last = path.split("/")
    place: Any = content
    for name in parents:
        place = place[int(name)] if name.isdigit() else place[name]
    if value is ...:
        del place[last]
    elif isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return content


KEY = "to_broadcasters/keys/1"


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        ("version", 2, "version"),
        ("version", True, "version"),
        ("version", ..., "version"),
        ("extra", 1, "extra"),
        ("broadcasters", "http://x", "broadcasters"),
        ("broadcasters", [1], "broadcasters"),
        ("broadcasters", ["http://a", "ftp://x"], r"broadcasters\[1\]"),
        ("broadcasters", ["http://u:topsecret@x"], r"broadcasters\[0\]"),
        ("broadcasters", ["http://x/?a"], r"broadcasters\[0\]"),
        ("broadcasters", ["http://x/#a"], r"broadcasters\[0\]"),
        ("to_broadcasters", ..., "to_broadcasters"),
        ("to_subscribers", [], "to_subscribers"),
        ("to_subscribers", None, "to_subscribers"),
        ("to_broadcasters/type", "HMAC", r"to_broadcasters\.type"),
        ("to_broadcasters/type", ["hmac"], r"to_broadcasters\.type"),
        ("to_broadcasters/type", "none", r"to_broadcasters\.keys"),
        ("to_broadcasters/keys", [], r"to_broadcasters\.keys"),
        ("to_broadcasters/keys", {}, r"to_broadcasters\.keys"),
        ("to_broadcasters/keys", [{}] * 33, r"to_broadcasters\.keys"),
        ("to_broadcasters/keys", ["topsecret"], r"to_broadcasters\.keys\[0\]"),
        ("to_broadcasters/permissions", [], "permissions"),
        (f"{KEY}/permissions", {"publish": ["**"]}, r"keys\[1\] has the member 'permissions'"),
        (f"{KEY}/id", ..., r"keys\[1\]\.id"),
        (f"{KEY}/id", "", r"keys\[1\]\.id"),
        (f"{KEY}/id", "a:b", r"keys\[1\]\.id"),
        (f"{KEY}/id", 'a"b', r"keys\[1\]\.id"),
        (f"{KEY}/id", "x" * 65, r"keys\[1\]\.id"),
        (f"{KEY}/id", "k1", "same id"),
        (f"{KEY}/secret", ..., r"keys\[1\]\.secret"),
        (f"{KEY}/secret", 5, r"keys\[1\]\.secret"),
        (f"{KEY}/secret", "topsecret!", r"keys\[1\]\.secret"),
        (f"{KEY}/secret", "é" * 40, r"keys\[1\]\.secret"),
        (f"{KEY}/secret", base64.b64encode(b"topsecret").decode(), r"keys\[1\]\.secret"),
        (f"{KEY}/secret", base64.b64encode(bytes(range(23))).decode(), r"keys\[1\]\.secret"),
        (f"{KEY}/secret", base64.b64encode(bytes(32)).decode(), r"keys\[1\]\.secret"),
        (f"{KEY}/secret", base64.b64encode(b"ab" * 300).decode(), r"keys\[1\]\.secret"),
        (f"{KEY}/use_after", "now", r"keys\[1\]\.use_after"),
        (f"{KEY}/use_after", None, r"keys\[1\]\.use_after"),
        (f"{KEY}/use_after", -1, r"keys\[1\]\.use_after"),
        (f"{KEY}/use_after", True, r"keys\[1\]\.use_after"),
        (f"{KEY}/valid_until", float("nan"), r"keys\[1\]\.valid_until"),
        (f"{KEY}/valid_until", float("inf"), r"keys\[1\]\.valid_until"),
        (f"{KEY}/valid_until", 10**400, r"keys\[1\]\.valid_until"),
        ("to_subscribers/keys/0/secret", "topsecret", r"to_subscribers\.keys\[0\]\.secret"),
        ("to_subscribers/keys/0/secret", "topsecret topsecret topsecret", r"to_subscribers\.keys\[0\]\.secret"),
        ("to_subscribers/keys/0/secret", "é" * 30, r"to_subscribers\.keys\[0\]\.secret"),
        ("to_subscribers/keys/0/secret", "x" * 513, r"to_subscribers\.keys\[0\]\.secret"),
    ],
)
def test_a_fault_in_a_secrets_file_is_named_by_its_place_and_nothing_else(path: str, value: Any, place: str) -> None:
    with pytest.raises(ConfigurationError, match=place) as caught:
        secrets_from_json(changed(path, value))
    assert "topsecret" not in str(caught.value)
    assert SECRET.decode() not in str(caught.value)


PERMITTED: dict[str, Any] = {
    "owner": "partner",
    "publish": ["orders/eu/**"],
    "subscribe": [],
    "admin": True,
    "quotas": {"subscriptions": 20, "messages_per_second": 0.5, "bytes_per_second": 1000},
    "valid_until": NOW + 5,
}


def test_a_key_says_whose_it_is_and_what_it_may_do() -> None:
    content = changed(KEY, {**FILE["to_broadcasters"]["keys"][1], **PERMITTED})
    plain, key = secrets_from_json(content).to_broadcasters.keys
    assert (plain.owner, plain.permissions) == ("k1", Permissions())
    assert (key.owner, key.valid_until) == ("partner", NOW + 5)
    assert key.permissions == Permissions(("orders/eu/**",), (), True, Quotas(20, 0.5, 1000))
    assert json.loads(json.dumps(secrets_to_json(secrets_from_json(content)))) == content


def test_what_a_key_may_do_is_never_more_for_a_fault_in_the_file() -> None:
    for name in ("publsh", "Subscribe", "topics", "permissions", "quota", "expires", "owners"):
        with pytest.raises(ConfigurationError, match=rf"keys\[1\] has the member '{name}'"):
            secrets_from_json(changed(f"{KEY}/{name}", []))
    for path, value, place in [
        ("owner", "", r"keys\[1\]\.owner"),
        ("owner", None, r"keys\[1\]\.owner"),
        ("owner", "jwt:sub", r"keys\[1\]\.owner"),
        ("owner", "x" * 65, r"keys\[1\]\.owner"),
        ("publish", None, r"keys\[1\]\.publish"),
        ("publish", "**", r"keys\[1\]\.publish"),
        ("subscribe", ["a", "[b"], r"keys\[1\]\.subscribe\[1\]"),
        ("admin", 1, r"keys\[1\]\.admin"),
        ("quotas", {"messages": 1}, r"keys\[1\]\.quotas has the member 'messages'"),
        ("quotas", {"subscriptions": -1}, r"keys\[1\]\.quotas\.subscriptions"),
    ]:
        with pytest.raises(ConfigurationError, match=place):
            secrets_from_json(changed(f"{KEY}/{path}", value))


@pytest.mark.parametrize("name", [name for name in PERMITTED if name != "valid_until"])
def test_keys_of_the_other_direction_have_no_permissions(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"to_subscribers\.keys\[0\]\.{name} means nothing here"):
        secrets_from_json(changed(f"to_subscribers/keys/0/{name}", PERMITTED[name]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.sampled_from(["version", "broadcasters", "to_broadcasters", KEY, f"{KEY}/id", f"{KEY}/secret", "x"]))
def test_random_json_raises_nothing_but_configuration_errors(value: Any, path: str) -> None:
    for content in (value, changed(path, value)):
        with suppress(ConfigurationError):
            secrets_from_json(content)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Key("a:b", b"x"),
        lambda: Key("", b"x"),
        lambda: Key(None, b"x"),  # type: ignore[arg-type]
        lambda: Key("k", b""),
        lambda: Key("k", "text"),  # type: ignore[arg-type]
        lambda: Key("k", b"x", owner="jwt:someone"),
        lambda: Credentials("basic"),  # type: ignore[arg-type]
        lambda: Credentials("hmac", (Key("k", b"a"), Key("k", b"b"))),
        lambda: Credentials("token", (Key("k", b"a b"),)),
        lambda: Credentials("token", (Key("k", b"\xff"),)),
    ],
)
def test_keys_and_credentials_that_could_not_work_cannot_be_made(make: Any) -> None:
    with pytest.raises(PubSubError):
        make()


def test_credentials_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(HMAC)) == HMAC
