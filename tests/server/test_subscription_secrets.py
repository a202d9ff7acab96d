"""subscription_secrets.py: who signs with what, from when to when, and what is refused."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.credentials import Credentials
from httppubsubclient.protocol.errors import InvalidRequest, InvalidSecret, PubSubError, QuotaExceeded
from httppubsubclient.protocol.keys import Key
from httppubsubclient.protocol.standard_webhooks import PrivateKey, PublicKey, SharedSecret, parse_key
from httppubsubserver.config import ServerConfig
from httppubsubserver.stores import Sealed
from httppubsubserver.subscription_secrets import MAX_LIVE_SECRETS, SubscriptionSecrets, required_secret, withheld_from
from httppubsubserver.vault import Unopenable, Vault

SECOND = 1_000_000
GRACE = 3600
ID = "sub_a"
VAULT = Vault([bytes(range(32))])
FIRST, SECOND_KEY, THIRD = (SharedSecret(bytes(range(n, n + 32))) for n in (1, 2, 3))
PRIVATE = PrivateKey(bytes(range(32)))


@dataclass
class Clock:
    now: int = 1_800_000_000 * SECOND

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def secrets(clock: Clock) -> SubscriptionSecrets:
    return SubscriptionSecrets(VAULT, now=clock, grace_seconds=GRACE)


def change(
    secrets: SubscriptionSecrets,
    secret: str,
    present: Sealed | None = None,
    *,
    grace_seconds: int | None = None,
    allow_downgrade: bool = False,
) -> Sealed:
    wanted = secrets.change(secret, grace_seconds=grace_seconds, allow_downgrade=allow_downgrade)
    assert wanted is not None
    return wanted(ID, None if present is None else present.blob)


# -- what is given, and what is generated -----------------------------------------------------------------------------


def test_a_request_that_says_nothing_changes_nothing(secrets: SubscriptionSecrets) -> None:
    assert secrets.change(None) is None


@pytest.mark.parametrize("key", [FIRST, PRIVATE], ids=["v1", "v1a"])
def test_a_given_secret_signs(secrets: SubscriptionSecrets, key: SharedSecret | PrivateKey) -> None:
    wanted = secrets.change(key.text())
    assert wanted is not None
    assert wanted.generated is None
    sealed = wanted(ID, None)
    assert secrets.signing_keys(ID, sealed.blob) == (key,)
    assert sealed.signature == ("v1" if isinstance(key, SharedSecret) else "v1a")
    assert sealed.public_key == (None if isinstance(key, SharedSecret) else key.public().text())


def test_a_generated_v1_secret_is_told_once_and_is_another_one_each_time(secrets: SubscriptionSecrets) -> None:
    told = set()
    for _ in range(20):
        wanted = secrets.change("generate")
        assert wanted is not None
        assert wanted.generated is not None
        [key] = secrets.signing_keys(ID, wanted(ID, None).blob)
        assert parse_key(wanted.generated) == key
        assert isinstance(key, SharedSecret)
        assert len(key.secret) == 32
        told.add(wanted.generated)
    assert len(told) == 20


def test_of_a_generated_v1a_key_nobody_sees_but_the_public_half(secrets: SubscriptionSecrets) -> None:
    wanted = secrets.change("generate-v1a")
    assert wanted is not None
    assert wanted.generated is None
    sealed = wanted(ID, None)
    [key] = secrets.signing_keys(ID, sealed.blob)
    assert isinstance(key, PrivateKey)
    assert sealed.signature == "v1a"
    assert sealed.public_key is not None
    public = parse_key(sealed.public_key)
    assert isinstance(public, PublicKey)
    assert public == key.public()


def whsec(raw: bytes) -> str:
    return "whsec_" + base64.b64encode(raw).decode()


BAD = {
    "nothing": "",
    "a word": "hunter2hunter2hunter2hunter2",
    "too short": whsec(bytes(range(23))),
    "too long": whsec(bytes(range(65))),
    "much too long": "whsec_" + "A" * 100_000,
    "not base64": "whsec_" + "!" * 44,
    "url-safe base64": whsec(b"\xfb\xff" * 6 + bytes(range(20))).replace("+", "-").replace("/", "_"),
    "unpadded": whsec(bytes(range(32))).rstrip("="),
    "base64 with a newline": whsec(bytes(range(32))) + "\n",
    "base64 with a space": whsec(bytes(range(32))).replace("C", " ", 1),
    "not canonical": whsec(bytes(range(32)))[:-2] + "9=",
    "no prefix": base64.b64encode(bytes(range(32))).decode(),
    "another prefix": whsec(bytes(range(32))).replace("whsec_", "whsecret_"),
    "capitals": whsec(bytes(range(32))).replace("whsec_", "WHSEC_"),
    "zeros": whsec(bytes(32)),
    "one byte repeated": whsec(b"a" * 32),
    "two bytes repeated": whsec(b"ab" * 16),
    "a word repeated": whsec(b"secret" * 5),
    "a public key": PRIVATE.public().text(),
    "a private key of zeros": "whsk_" + base64.b64encode(bytes(64)).decode(),
    "a seed alone": "whsk_" + base64.b64encode(bytes(range(32))).decode(),
    "two halves of two keys": "whsk_" + base64.b64encode(bytes(range(1, 33)) + PRIVATE.public().raw).decode(),
    "full-width digits": "whsec_" + "\uff11" * 44,
    "generate with more": "generate-v2",
    "generate in capitals": "GENERATE",
    "NUL": "whsec_\0",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_what_is_no_secret_or_a_weak_one_is_refused_without_showing_it(secrets: SubscriptionSecrets, text: str) -> None:
    with pytest.raises(InvalidSecret) as caught:
        secrets.change(text)
    assert len(caught.value.detail) < 300
    assert len(text) < 12 or text[6:] not in caught.value.detail


def test_the_refusal_says_what_a_secret_is(secrets: SubscriptionSecrets) -> None:
    with pytest.raises(InvalidSecret) as caught:
        secrets.change("whsec_...")
    assert caught.value.detail == (
        'what follows whsec_ is not padded base64. A secret is "generate" or "generate-v1a", for a new one, or whsec_ '
        "or whsk_ and its bytes in base64"
    )


@given(st.text(max_size=200))
def test_any_other_text_is_refused_with_one_kind_of_error(text: str) -> None:
    with pytest.raises(InvalidSecret):
        SubscriptionSecrets(VAULT, now=Clock(), grace_seconds=GRACE).change("x" + text)


@given(st.binary(min_size=24, max_size=64).filter(lambda raw: len(set(raw)) >= 8))
def test_every_random_secret_of_24_to_64_bytes_is_taken(raw: bytes) -> None:
    secrets = SubscriptionSecrets(VAULT, now=Clock(), grace_seconds=GRACE)
    sealed = change(secrets, whsec(raw))
    assert secrets.signing_keys(ID, sealed.blob) == (SharedSecret(raw),)


def test_without_a_storage_key_the_operator_is_told_of(clock: Clock) -> None:
    secrets = SubscriptionSecrets(None, now=clock, grace_seconds=GRACE)
    assert secrets.change(None) is None
    for text in ("generate", FIRST.text()):
        with pytest.raises(InvalidRequest, match="the operator has to set storage_key_file"):
            secrets.change(text)
    with pytest.raises(InvalidSecret):
        secrets.change("nonsense")


@pytest.mark.parametrize(("grace_seconds", "allow_downgrade"), [(5, False), (None, True)])
def test_what_belongs_to_a_secret_is_refused_without_one(
    secrets: SubscriptionSecrets, grace_seconds: int | None, allow_downgrade: bool
) -> None:
    with pytest.raises(InvalidRequest, match="belong to a 'secret'"):
        secrets.change(None, grace_seconds=grace_seconds, allow_downgrade=allow_downgrade)


@pytest.mark.parametrize("grace_seconds", [-1, 7 * 86_400 + 1, 10**20])
def test_a_grace_has_bounds(secrets: SubscriptionSecrets, grace_seconds: int) -> None:
    with pytest.raises(InvalidRequest, match="secret_grace_seconds is 0 to 604800"):
        secrets.change("generate", grace_seconds=grace_seconds)


# -- rotation ---------------------------------------------------------------------------------------------------------


def test_both_sign_until_the_grace_is_over_then_the_new_one_alone(secrets: SubscriptionSecrets, clock: Clock) -> None:
    sealed = change(secrets, SECOND_KEY.text(), change(secrets, FIRST.text()))
    start = clock.now
    assert secrets.signing_keys(ID, sealed.blob) == (SECOND_KEY, FIRST)
    clock.now = start + GRACE * SECOND - 1
    assert secrets.signing_keys(ID, sealed.blob) == (SECOND_KEY, FIRST)
    clock.now = start + GRACE * SECOND
    assert secrets.signing_keys(ID, sealed.blob) == (SECOND_KEY,)


def test_a_request_may_say_how_long_the_grace_is(secrets: SubscriptionSecrets, clock: Clock) -> None:
    sealed = change(secrets, SECOND_KEY.text(), change(secrets, FIRST.text()), grace_seconds=0)
    assert secrets.signing_keys(ID, sealed.blob) == (SECOND_KEY,)
    sealed = change(secrets, FIRST.text(), sealed, grace_seconds=10)
    clock.now += 10 * SECOND - 1
    assert secrets.signing_keys(ID, sealed.blob) == (FIRST, SECOND_KEY)
    clock.now += 1
    assert secrets.signing_keys(ID, sealed.blob) == (FIRST,)


def test_the_same_secret_again_is_no_rotation(secrets: SubscriptionSecrets, clock: Clock) -> None:
    first = change(secrets, FIRST.text())
    assert change(secrets, FIRST.text(), first) == first
    rotated = change(secrets, SECOND_KEY.text(), first)
    clock.now += 60 * SECOND
    assert change(secrets, SECOND_KEY.text(), rotated, grace_seconds=0) == rotated


def test_an_older_secret_given_again_is_taken_back(secrets: SubscriptionSecrets, clock: Clock) -> None:
    sealed = change(secrets, SECOND_KEY.text(), change(secrets, FIRST.text()))
    for _ in range(10):
        sealed = change(secrets, FIRST.text(), sealed)
        assert secrets.signing_keys(ID, sealed.blob) == (FIRST, SECOND_KEY)
        sealed = change(secrets, SECOND_KEY.text(), sealed)
        assert secrets.signing_keys(ID, sealed.blob) == (SECOND_KEY, FIRST)
    clock.now += GRACE * SECOND
    assert secrets.signing_keys(ID, sealed.blob) == (SECOND_KEY,)


def test_a_rotation_never_prolongs_what_ends_already(secrets: SubscriptionSecrets, clock: Clock) -> None:
    sealed = change(secrets, SECOND_KEY.text(), change(secrets, FIRST.text()), grace_seconds=100)
    sealed = change(secrets, THIRD.text(), sealed, grace_seconds=1000)
    clock.now += 100 * SECOND
    assert secrets.signing_keys(ID, sealed.blob) == (THIRD, SECOND_KEY)


def test_rotating_on_and_on_meets_a_bound_that_says_when_it_goes_on(secrets: SubscriptionSecrets, clock: Clock) -> None:
    sealed = change(secrets, "generate")
    for _ in range(MAX_LIVE_SECRETS - 1):
        clock.now += SECOND
        sealed = change(secrets, "generate", sealed)
    before = secrets.signing_keys(ID, sealed.blob)
    assert len(before) == MAX_LIVE_SECRETS
    for _ in range(20 - MAX_LIVE_SECRETS):
        with pytest.raises(QuotaExceeded, match="4 is the most: the first ends in 3598 s") as caught:
            change(secrets, "generate", sealed)
        assert caught.value.retry_after_seconds == GRACE - 2
    assert secrets.signing_keys(ID, sealed.blob) == before
    assert len(secrets.signing_keys(ID, change(secrets, "generate", sealed, grace_seconds=0).blob)) == 1
    clock.now += (GRACE - 2) * SECOND
    assert len(secrets.signing_keys(ID, change(secrets, "generate", sealed).blob)) == MAX_LIVE_SECRETS


# -- v1 and v1a -------------------------------------------------------------------------------------------------------


def test_from_v1_to_v1a_both_sign_during_the_grace(secrets: SubscriptionSecrets) -> None:
    sealed = change(secrets, PRIVATE.text(), change(secrets, FIRST.text()))
    assert secrets.signing_keys(ID, sealed.blob) == (PRIVATE, FIRST)
    assert (sealed.signature, sealed.public_key) == ("v1a", PRIVATE.public().text())


@pytest.mark.parametrize("secret", ["generate", FIRST.text()])
def test_from_v1a_to_v1_only_with_consent(secrets: SubscriptionSecrets, secret: str) -> None:
    present = change(secrets, PRIVATE.text(), change(secrets, FIRST.text()))
    with pytest.raises(InvalidSecret, match='"allow_downgrade": true'):
        change(secrets, secret, present)
    sealed = change(secrets, secret, present, allow_downgrade=True)
    newest, *_ = secrets.signing_keys(ID, sealed.blob)
    assert isinstance(newest, SharedSecret)
    assert (sealed.signature, sealed.public_key) == ("v1", None)


def test_from_v1a_to_another_v1a_key_needs_none(secrets: SubscriptionSecrets) -> None:
    sealed = change(secrets, "generate-v1a", change(secrets, PRIVATE.text()))
    assert len(secrets.signing_keys(ID, sealed.blob)) == 2


# -- at rest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [FIRST, PRIVATE], ids=["v1", "v1a"])
def test_nothing_of_a_secret_is_in_what_is_stored_or_shown(
    secrets: SubscriptionSecrets, key: SharedSecret | PrivateKey
) -> None:
    wanted = secrets.change(key.text())
    assert wanted is not None
    sealed = wanted(ID, None)
    raw = key.secret if isinstance(key, SharedSecret) else key.seed
    for text in (key.text().encode(), raw, base64.b64encode(raw), raw.hex().encode(), b"whs"):
        assert text not in sealed.blob
        assert text not in repr((secrets, wanted)).encode()
    generated = secrets.change("generate")
    assert generated is not None
    assert generated.generated is not None
    assert generated.generated[6:] not in repr(generated)


def test_the_secrets_of_one_subscription_are_good_for_no_other(secrets: SubscriptionSecrets) -> None:
    sealed = change(secrets, FIRST.text())
    with pytest.raises(Unopenable):
        secrets.signing_keys("sub_b", sealed.blob)


def test_what_says_v1_cannot_be_made_to_say_v1a_nor_the_other_way_round(secrets: SubscriptionSecrets) -> None:
    for key in (FIRST, PRIVATE):
        blob = change(secrets, key.text()).blob
        with pytest.raises(Unopenable):
            secrets.signing_keys(ID, bytes([blob[0] ^ 3]) + blob[1:])


@pytest.mark.parametrize("blob", [b"", b"\1", b"\1" * 40, bytes(200)])
def test_garbage_in_the_database_is_unopenable(secrets: SubscriptionSecrets, blob: bytes) -> None:
    with pytest.raises(Unopenable):
        secrets.signing_keys(ID, blob)


def test_under_a_new_storage_key_the_same_secret_is_sealed_anew(clock: Clock, secrets: SubscriptionSecrets) -> None:
    old = change(secrets, FIRST.text())
    both = SubscriptionSecrets(Vault([bytes(range(50, 82)), bytes(range(32))]), now=clock, grace_seconds=GRACE)
    assert both.signing_keys(ID, old.blob) == (FIRST,)
    new = change(both, FIRST.text(), old)
    assert new.blob != old.blob
    assert change(both, FIRST.text(), new) == new
    alone = SubscriptionSecrets(Vault([bytes(range(50, 82))]), now=clock, grace_seconds=GRACE)
    assert alone.signing_keys(ID, new.blob) == (FIRST,)


def test_when_the_storage_key_is_lost_a_new_secret_begins_again_and_consent_is_still_needed(clock: Clock) -> None:
    lost = SubscriptionSecrets(Vault([bytes(range(50, 82))]), now=clock, grace_seconds=GRACE)
    present = change(lost, FIRST.text())
    secrets = SubscriptionSecrets(VAULT, now=clock, grace_seconds=GRACE)
    assert secrets.signing_keys(ID, change(secrets, SECOND_KEY.text(), present).blob) == (SECOND_KEY,)
    present = change(lost, PRIVATE.text())
    with pytest.raises(InvalidSecret, match="allow_downgrade"):
        change(secrets, SECOND_KEY.text(), present)
    sealed = change(secrets, SECOND_KEY.text(), present, allow_downgrade=True)
    assert secrets.signing_keys(ID, sealed.blob) == (SECOND_KEY,)
    with pytest.raises(Unopenable, match="there is no storage key"):
        SubscriptionSecrets(None, now=clock, grace_seconds=GRACE).signing_keys(ID, present.blob)


def test_keys_in_clear_are_kept_for_a_bounded_number_of_subscriptions(
    secrets: SubscriptionSecrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("httppubsubserver.subscription_secrets._MAX_OPENED", 3)
    wanted = secrets.change(FIRST.text())
    assert wanted is not None
    for number in range(10):
        assert secrets.signing_keys(f"sub_{number}", wanted(f"sub_{number}", None).blob) == (FIRST,)
    assert len(secrets._opened) == 3


# -- the token that all share -----------------------------------------------------------------------------------------

TOKEN = Credentials("token", (Key("k", b"token-of-everybody"),), ())
HMAC = Credentials("hmac", (Key("k", b"x" * 32),), ())


def needed(url: str, shared: Credentials, secrets: SubscriptionSecrets, **settings: object) -> bool:
    config = ServerConfig.model_validate(settings)
    return required_secret(config, shared, secrets, parse_callback_url(url).name) is not None


@pytest.mark.parametrize(
    ("url", "networks", "expected"),
    [
        ("http://127.0.0.1:3002/", ("loopback", "private"), False),
        ("http://partner.example/", ("loopback", "private"), False),
        ("http://partner.example/", ("10.0.0.0/8", "fc00::/8", "::1"), False),
        ("http://partner.example/", ("public",), True),
        ("http://partner.example/", ("loopback", "private", "public"), True),
        ("http://partner.example/", ("0.0.0.0/0",), True),
        ("http://partner.example/", ("0.0.0.0/1",), True),
        ("http://partner.example/", ("10.0.0.0/7",), True),
        ("http://partner.example/", ("private", "8.8.8.8"), True),
        ("http://partner.example/", ("::/0",), True),
        ("http://127.0.0.1:3002/", ("public", "loopback"), False),
        ("http://[::1]:3002/", ("public", "loopback"), False),
        ("http://[fd12::1]/", ("public", "private"), False),
        ("http://10.1.2.3/", ("public", "private"), False),
        ("http://8.8.8.8/", ("public",), True),
        ("http://[2600::1]/", ("public",), True),
        ("http://[::ffff:8.8.8.8]/", ("public",), True),
    ],
)
def test_who_may_be_a_stranger_does_not_get_the_token_of_all(
    secrets: SubscriptionSecrets, url: str, networks: tuple[str, ...], expected: bool
) -> None:
    assert needed(url, TOKEN, secrets, callback_networks=networks) is expected
    assert not needed(url, HMAC, secrets, callback_networks=networks)
    assert not needed(url, Credentials.none(), secrets, callback_networks=networks)


def test_a_host_that_the_operator_names_is_no_stranger(secrets: SubscriptionSecrets) -> None:
    assert not needed("http://backend/", TOKEN, secrets, callback_networks=("public",), callback_hosts=("backend",))

    for spelling in ("Backend", "backend.", "BACKEND."):
        assert not needed("http://backend/", TOKEN, secrets, callback_networks=("public",), callback_hosts=(spelling,))


def test_what_no_token_proves_is_withheld_from_nobody() -> None:
    config = ServerConfig(callback_networks=("public",))
    for shared in (HMAC, Credentials.none()):
        assert withheld_from(config, shared) is None, "and nobody pays for the question"


def test_who_may_be_a_stranger_is_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    withheld = withheld_from(ServerConfig(callback_networks=("public",)), TOKEN)
    assert withheld is not None
    assert [withheld(host) for host in ("partner.example", "127.0.0.1", "8.8.8.8", "fe80::1%eth0")] == [
        True,
        False,
        True,
        True,
    ]
    monkeypatch.setattr("httppubsubserver.subscription_secrets.parse_address", None)
    assert withheld("partner.example")
    assert not withheld("127.0.0.1")


def test_what_is_required_is_there_or_refused(secrets: SubscriptionSecrets, clock: Clock) -> None:
    required = secrets.required("a secret, please")
    with pytest.raises(InvalidRequest, match="a secret, please"):
        required(ID, None)
    present = change(secrets, SECOND_KEY.text(), change(secrets, PRIVATE.text()), allow_downgrade=True)
    assert required(ID, present.blob) == present
    with pytest.raises(PubSubError, match="a secret, please"):
        SubscriptionSecrets(None, now=clock, grace_seconds=GRACE).required("a secret, please")(ID, present.blob)
    with pytest.raises(InvalidSecret, match="cannot be read any more"):
        required("sub_b", present.blob)
