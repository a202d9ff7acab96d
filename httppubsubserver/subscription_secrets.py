"""The secrets of single subscriptions: given or generated, rotated with a grace, and sealed wherever they lie.

| `"secret"` of a subscribe | what its deliveries are signed with                                             |
|---------------------------|---------------------------------------------------------------------------------|
| absent                    | what they are signed with already, if that is anything                          |
| `"generate"`              | a new `whsec_` key (v1), which the answer tells, once                           |
| `"generate-v1a"`          | a new `whsk_` key (v1a), of which the answer has the public half; nobody else   |
|                           | ever sees the private one                                                       |
| `whsec_...`, `whsk_...`   | this key                                                                        |

The key that it has already changes nothing. Another one takes its place, and the present ones go on signing beside it
until their grace is over; giving one of those takes it back. At most `MAX_LIVE_SECRETS` sign at a time, so whoever
rotates faster than they end is told to wait, or to say that the grace is 0. From v1a, which only the broadcaster can
make, back to v1 it goes with `"allow_downgrade": true` alone, so that nobody gets there by mistake.

In the database lies, for each subscription:

| bytes | meaning                                                                                               |
|-------|-------------------------------------------------------------------------------------------------------|
| 1     | 1: its newest key is v1; 2: v1a                                                                       |
| n     | vault.py: JSON `[[key as text, when it ends in microseconds or null], ...]`, the newest first; sealed |
|       | for the byte before and the id of the subscription                                                    |
"""

from __future__ import annotations

import base64
import json
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, Literal, NamedTuple, TypeAlias

from httppubsubclient.protocol.addresses import parse_address
from httppubsubclient.protocol.callback_urls import split_callback_url
from httppubsubclient.protocol.errors import ConfigurationError, InvalidRequest, InvalidSecret, QuotaExceeded
from httppubsubclient.protocol.keys import Credentials
from httppubsubclient.protocol.standard_webhooks import PrivateKey, PublicKey, SharedSecret, parse_key
from httppubsubserver.config import ServerConfig
from httppubsubserver.stores import Sealed
from httppubsubserver.vault import Unopenable, Vault

__all__ = [
    "MAX_GRACE_SECONDS",
    "MAX_LIVE_SECRETS",
    "MAX_SECRET_LENGTH",
    "Change",
    "Required",
    "SigningKey",
    "SubscriptionSecrets",
    "required_secret",
    "withheld_from",
]

MAX_LIVE_SECRETS: Final = 4
"""Of one subscription; each signs each of its deliveries."""
MAX_GRACE_SECONDS: Final = 7 * 86_400
MAX_SECRET_LENGTH: Final = 128
"""Characters; the longest key has 94."""

_KEY_BYTES: Final = 32
_SHARED: Final = "whsec_"
_CONTEXT: Final = b"secrets of subscription "
_KINDS: Final[dict[Literal["v1", "v1a"], bytes]] = {"v1": b"\x01", "v1a": b"\x02"}
_MAX_OPENED: Final = 4096
"""Subscriptions whose keys are kept in clear for the next delivery, in memory."""
_MAX_HOSTS: Final = 4096
"""Hosts of which is remembered whether they may be strangers."""

_OWN_IPV4: Final = tuple(
    map(IPv4Network, ("0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
)
_OWN_IPV6: Final = tuple(map(IPv6Network, ("::/127", "fc00::/7")))

SigningKey: TypeAlias = SharedSecret | PrivateKey


class _Kept(NamedTuple):
    """One key as it is kept. Nothing is computed with it within a transaction."""

    text: str
    ends_at: int | None
    """Microseconds since 1970; None: it is the newest."""


@dataclass(frozen=True, slots=True)
class Change:
    """The secret that a subscribe brings: a `SecretsChange` of the store."""

    _vault: Vault = field(repr=False)
    _text: str = field(repr=False)
    """The key, which is one."""
    _now: int
    _grace_seconds: int
    _allow_downgrade: bool
    generated: str | None = field(default=None, repr=False)
    """The new key as text, to be told in the answer to this one request."""

    def __call__(self, subscription_id: str, present: bytes | None) -> Sealed:
        """The secrets with this one as the newest. Raises `InvalidSecret`, `QuotaExceeded`."""
        if present is None:
            return _sealed(self._vault, subscription_id, [_Kept(self._text, None)], None)
        if present[:1] == _KINDS["v1a"] and self._text.startswith(_SHARED) and not self._allow_downgrade:
            raise InvalidSecret(
                "the deliveries of this subscription are signed with v1a, which only this broadcaster can make, and "
                'would be with v1: say "allow_downgrade": true when that is meant'
            )
        try:
            kept = _opened(self._vault, subscription_id, present)
        except Unopenable:
            kept = []  # Whoever lost the storage key begins again, with new secrets.
        return _sealed(self._vault, subscription_id, self._rotated(kept), present)

    def _rotated(self, kept: list[_Kept]) -> list[_Kept]:
        if kept and kept[0].text == self._text:
            return kept
        end = self._now + self._grace_seconds * 1_000_000
        ends = [(one.text, end if one.ends_at is None else min(end, one.ends_at)) for one in kept]
        live = [_Kept(text, ends_at) for text, ends_at in ends if ends_at > self._now and text != self._text]
        if len(live) >= MAX_LIVE_SECRETS:
            wait_seconds = (min(ends_at for _, ends_at in ends if ends_at > self._now) - self._now) / 1_000_000
            raise QuotaExceeded(
                f"this subscription has {len(live)} secrets in use, and {MAX_LIVE_SECRETS} is the most: the first "
                f'ends in {wait_seconds:.0f} s; rotate again after that, or with "secret_grace_seconds": 0, which '
                "ends them all at once",
                retry_after_seconds=wait_seconds,
            )
        return [_Kept(self._text, None), *live]


@dataclass(frozen=True, slots=True)
class Required:
    """A `SecretsChange` that changes nothing, for those that have a secret of their own; all others are refused."""

    _vault: Vault | None = field(repr=False)
    _otherwise: str

    def __call__(self, subscription_id: str, present: bytes | None) -> Sealed:
        """The secrets as they are. Raises `InvalidRequest` when there are none, `InvalidSecret` for lost ones."""
        if present is None or self._vault is None:
            raise InvalidRequest(self._otherwise)
        try:
            kept = _opened(self._vault, subscription_id, present)
        except Unopenable:
            raise InvalidSecret("the secret of this subscription cannot be read any more: give it a new one") from None
        return _sealed(self._vault, subscription_id, kept, present)


class SubscriptionSecrets:
    """Makes changes, and opens what they made. `vault` is None where no storage key is given: then there are none.

    `now` gives microseconds since 1970; `grace_seconds` is the default.
    """

    def __init__(self, vault: Vault | None, *, now: Callable[[], int], grace_seconds: int) -> None:
        self._vault = vault
        self._now = now
        self._grace_seconds = grace_seconds
        self._opened: OrderedDict[tuple[str, bytes], tuple[tuple[SigningKey, int | None], ...]] = OrderedDict()

    def change(
        self, secret: str | None, *, grace_seconds: int | None = None, allow_downgrade: bool = False
    ) -> Change | None:
        """What a request with this `"secret"` wants; None when it says nothing about it.

        Raises `InvalidSecret`, whose text never holds one, and `InvalidRequest`.
        """
        if secret is None:
            if grace_seconds is not None or allow_downgrade:
                raise InvalidRequest("'secret_grace_seconds' and 'allow_downgrade' belong to a 'secret'")
            return None
        if grace_seconds is None:
            grace_seconds = self._grace_seconds
        elif not 0 <= grace_seconds <= MAX_GRACE_SECONDS:
            raise InvalidRequest(f"secret_grace_seconds is 0 to {MAX_GRACE_SECONDS}; got {grace_seconds}")
        text, generated = _wanted(secret)
        return Change(self._needed_vault(), text, self._now(), grace_seconds, allow_downgrade, generated)

    def required(self, otherwise: str) -> Required:
        """For a request that brings no secret where one is needed; `otherwise` is the detail of the refusal."""
        return Required(self._vault, otherwise)

    def signing_keys(self, subscription_id: str, sealed: bytes) -> tuple[SigningKey, ...]:
        """What a delivery is signed with now, the newest first. Raises `Unopenable`. For the event loop's thread."""
        found = self._opened.get((subscription_id, sealed))
        if found is None:
            if self._vault is None:
                raise Unopenable("there is no storage key")
            kept = _opened(self._vault, subscription_id, sealed)
            found = tuple((_signing_key(one.text), one.ends_at) for one in kept)
            self._opened[subscription_id, sealed] = found
            if len(self._opened) > _MAX_OPENED:
                self._opened.popitem(last=False)
        if len(found) == 1:
            return (found[0][0],)
        now = self._now()
        return tuple(key for key, ends_at in found if ends_at is None or ends_at > now)

    def _needed_vault(self) -> Vault:
        if self._vault is None:
            raise InvalidRequest(
                "subscriptions have no secrets of their own here: the operator has to set storage_key_file "
                "(`httppubsubserver --setup` makes one) or HTTPPUBSUB_STORAGE_KEY"
            )
        return self._vault


def withheld_from(config: ServerConfig, shared: Credentials) -> Callable[[str], bool] | None:
    """Which hosts of callbacks never see what subscribers have in common; None when every one does.

    A bearer token proves a delivery to everybody who has seen one, so whoever may be a stranger gets a secret of their
    own instead. Settings may have been others when a subscription was made: this is asked for each delivery, and
    decided once for each host.
    """
    if shared.type != "token":
        return None
    known = frozenset(host.lower().removesuffix(".") for host in config.callback_hosts)
    only_own = all(map(_is_own, config.callback_networks))

    def may_be_strange(host: str) -> bool:
        if parse_address(host) is not None:
            return not _is_own(f"{host}/{128 if ':' in host else 32}")
        # A name: what it stands for may be any address that may be called.
        return host not in known and not only_own

    return lru_cache(maxsize=_MAX_HOSTS)(may_be_strange)


def required_secret(
    config: ServerConfig, shared: Credentials, secrets: SubscriptionSecrets, url: str
) -> Required | None:
    """What a callback has to have before it is subscribed; None when nothing. `shared` is what subscribers have in
    common."""
    withheld = withheld_from(config, shared)
    if withheld is None or not withheld(split_callback_url(url).host):
        return None
    return secrets.required(
        'deliveries to this callback need a secret of their own ("secret": "generate"): with the type token all '
        "subscribers share one, and this one may be outside the networks loopback and private"
    )


def _is_own(network: str) -> bool:
    """Whether one of `callback_networks` allows only addresses of this machine and of private networks."""
    if network in ("loopback", "private"):
        return True
    try:
        block = ip_network(network, strict=False)
    except ValueError:
        return False
    if isinstance(block, IPv6Network):
        return any(block.subnet_of(own) for own in _OWN_IPV6)
    return any(block.subnet_of(own) for own in _OWN_IPV4)


def _wanted(asked: str) -> tuple[str, str | None]:
    """The key, and once more if it was generated and the subscriber needs it."""
    if asked == "generate":
        text = SharedSecret(secrets.token_bytes(_KEY_BYTES)).text()
        return text, text
    if asked == "generate-v1a":
        return PrivateKey(secrets.token_bytes(_KEY_BYTES)).text(), None
    if len(asked) > MAX_SECRET_LENGTH:
        raise InvalidSecret(f"a secret has at most {MAX_SECRET_LENGTH} characters")
    try:
        given = parse_key(asked)
    except ConfigurationError as error:
        raise InvalidSecret(
            f'{error.detail}. A secret is "generate" or "generate-v1a", for a new one, or whsec_ or whsk_ and its '
            "bytes in base64"
        ) from None
    if isinstance(given, PublicKey):
        raise InvalidSecret("a whpk_ key signs nothing: a secret is whsec_... or whsk_...")
    _check_random(given)
    return asked, None


def _check_random(key: SigningKey) -> None:
    raw = key.secret if isinstance(key, SharedSecret) else key.seed
    # Of 24 random bytes, less than one in 10^24 has so few different ones: this is a pattern or a word, repeated.
    if len(set(raw)) < 8:
        raise InvalidSecret("a secret is random: this one has very few different bytes")


def _sealed(vault: Vault, subscription_id: str, kept: Sequence[_Kept], present: bytes | None) -> Sealed:
    newest = kept[0].text
    signature: Literal["v1", "v1a"] = "v1" if newest.startswith(_SHARED) else "v1a"
    public_key = None if signature == "v1" else _public_text(newest)
    kind = _KINDS[signature]
    # What stays the same is not written anew, so that whoever delivers has nothing to look at again.
    if present is None or not _is_current(vault, subscription_id, present, kept):
        plaintext = json.dumps(kept, separators=(",", ":"))
        present = kind + vault.seal(plaintext.encode("ascii"), context=_context(kind, subscription_id))
    return Sealed(present, signature, public_key)


def _is_current(vault: Vault, subscription_id: str, present: bytes, kept: Sequence[_Kept]) -> bool:
    try:
        return vault.is_current(present[1:]) and _opened(vault, subscription_id, present) == kept
    except Unopenable:
        return False


def _opened(vault: Vault, subscription_id: str, sealed: bytes) -> list[_Kept]:
    plaintext = vault.open(sealed[1:], context=_context(sealed[:1], subscription_id))
    return list(map(_Kept._make, json.loads(plaintext)))


def _signing_key(text: str) -> SigningKey:
    key = parse_key(text)
    assert not isinstance(key, PublicKey), "only keys that sign are sealed"
    return key


def _public_text(private: str) -> str:
    """The `whpk_` key of a `whsk_` key, whose second half it is."""
    return PublicKey(base64.b64decode(private.partition("_")[2])[32:]).text()


def _context(kind: bytes, subscription_id: str) -> bytes:
    return _CONTEXT + kind + subscription_id.encode("utf-8")
