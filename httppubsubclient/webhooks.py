"""Subscriptions with a secret of their own, and with a format: what is asked for, and the keys that verify what comes.

    client.subscribe_exact(b"orders", secret="generate", format="cloudevents-structured")

| `secret`           | what proves a delivery                                                                   |
|--------------------|------------------------------------------------------------------------------------------|
| None               | the authentication that all subscribers share                                            |
| `"generate"`       | Standard Webhooks v1, with a secret that this process makes, one for each pattern         |
| `"generate-v1a"`   | Standard Webhooks v1a (ed25519), likewise                                                |
| `whsec_`, `whsk_`  | v1, v1a with this key, which survives a restart; it is for one pattern and no other       |

The key is made here and given to the broadcaster, never asked of it: so a call whose outcome is unknown can be
repeated, and does the same; so does subscribing again after it failed or was left. For a subscription with a secret of
its own nothing else counts, neither the signature nor the token that all share; what verifies is chosen by the
subscription, never by the request.

A key is changed by `Subscription.rotate_secret`. The new one and the old one verify from before the broadcaster is told
until the grace period is over, counted from its confirmation.
"""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, get_args

from httppubsubclient.protocol.errors import ConfigurationError, InvalidRequest, PubSubError, Unauthorized
from httppubsubclient.protocol.intent import Handshake
from httppubsubclient.protocol.messages import Subscription
from httppubsubclient.protocol.options import DeliveryFormat
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.standard_webhooks import PrivateKey, PublicKey, SharedSecret, parse_key

__all__ = [
    "DEFAULT_GRACE_SECONDS",
    "NO_OPTIONS",
    "Agreements",
    "Keyring",
    "Rotation",
    "Terms",
    "WebhookOptions",
    "check_webhook_options",
    "rotation",
]

_FORMATS: Final[tuple[DeliveryFormat, ...]] = get_args(DeliveryFormat)
_HANDSHAKES: Final[tuple[Handshake, ...]] = get_args(Handshake)
_GENERATED: Final = ("generate", "generate-v1a")
DEFAULT_GRACE_SECONDS: Final = 300
"""How long the old key counts beside the new one after a rotation."""
_SUCCESSION_GRACE_SECONDS: Final = 60
"""The same for the key of an earlier life of this process, which made one of its own: long enough for a rolling
restart, and short enough for a process that dies again and again not to use up what a broadcaster keeps."""
_MAX_GRACE_SECONDS: Final = 7 * 86_400

Secret = SharedSecret | PrivateKey


@dataclass(frozen=True, slots=True)
class WebhookOptions:
    """What a subscription asks for."""

    format: DeliveryFormat = "raw"
    secret: str | None = field(default=None, repr=False)
    """`"generate"`, `"generate-v1a"` or the text of a key."""
    handshake: Handshake = "websub"
    """How the broadcaster shall ask whether we agree."""


class Rotation(NamedTuple):
    """The keys of a subscription shall be others."""

    secret: str
    grace_seconds: int
    allow_downgrade: bool

    @property
    def is_given(self) -> bool:
        """Whether it is one key, instead of one for each pattern."""
        return self.secret not in _GENERATED

    def __repr__(self) -> str:
        return f"<Rotation with {self.grace_seconds} s of grace>"


def check_webhook_options(form: object, secret: object, handshake: object = "websub") -> WebhookOptions:
    """The options as they were given. Raises `InvalidRequest`, which never shows a secret."""
    known = next((one for one in _FORMATS if one == form), None)
    if known is None:
        raise InvalidRequest(f"format is one of {', '.join(map(repr, _FORMATS))}")
    if secret is not None:
        _made(secret)
    by = next((one for one in _HANDSHAKES if one == handshake), None)
    if by is None:
        raise InvalidRequest(f"handshake is one of {', '.join(map(repr, _HANDSHAKES))}")
    if by == "cloudevents" and known == "raw":
        raise InvalidRequest("handshake='cloudevents' goes with the formats of CloudEvents, not with 'raw'")
    return WebhookOptions(known, secret if isinstance(secret, str) else None, by)


def rotation(secret: object, grace_seconds: object, allow_downgrade: object) -> Rotation:
    """A rotation as it was asked for. Raises `InvalidRequest`, which never shows a secret."""
    _made(secret)
    if isinstance(grace_seconds, bool) or not isinstance(grace_seconds, int):
        raise InvalidRequest(f"grace_seconds is a whole number; got {grace_seconds!r:.60}")
    if not 0 <= grace_seconds <= _MAX_GRACE_SECONDS:
        raise InvalidRequest(f"grace_seconds is 0 to {_MAX_GRACE_SECONDS}; got {grace_seconds}")
    if not isinstance(allow_downgrade, bool):
        raise InvalidRequest(f"allow_downgrade is True or False; got {allow_downgrade!r:.60}")
    return Rotation(str(secret), grace_seconds, allow_downgrade)


class _Older(NamedTuple):
    key: Secret
    until: float | None
    """In the clock of time.monotonic; None: the broadcaster has not confirmed the key after it."""


class Keyring:
    """The keys of one pattern: the one that the broadcaster is told, and those before it until their grace is over."""

    def __init__(self, secret: str, raw: bytes | None = None) -> None:
        """`raw`: the 32 random bytes of a key that is generated."""
        self.key = _made(secret, raw)
        self._grace_seconds = _SUCCESSION_GRACE_SECONDS if secret in _GENERATED else None
        self._allow_downgrade = False
        self._older: list[_Older] = []
        self._verifying: dict[Secret, SharedSecret | PublicKey] = {}

    def keys(self) -> list[SharedSecret | PublicKey]:
        """What a delivery may be verified with now, the newest first."""
        self._drop_old()
        return [self._verifier(key) for key in (self.key, *(older.key for older in reversed(self._older)))]

    def fields(self) -> dict[str, Any]:
        """The members of a request that subscribes. They hold the secret."""
        fields: dict[str, Any] = {"secret": self.key.text()}
        if self._grace_seconds is not None:
            fields["secret_grace_seconds"] = self._grace_seconds
        if self._allow_downgrade:
            fields["allow_downgrade"] = True
        return fields

    def rotate(self, wanted: Rotation) -> _Undo:
        """Another key from now on, with the old one beside it until `confirmed`, and then for its grace."""
        before = _Undo(self, self.key, self._grace_seconds, self._allow_downgrade, tuple(self._older))
        key = _made(wanted.secret)
        if key != self.key:
            self._older = [one for one in self._older if one.key != key]
            self._older.append(_Older(self.key, None))
            self.key = key
        self._grace_seconds, self._allow_downgrade = wanted.grace_seconds, wanted.allow_downgrade
        return before

    def restore(self, key: Secret, grace_seconds: int | None, allow_downgrade: bool, older: Iterable[_Older]) -> None:
        """As it was; see `_Undo`."""
        self.key, self._grace_seconds, self._allow_downgrade = key, grace_seconds, allow_downgrade
        self._older = list(older)

    def confirmed(self) -> None:
        """The broadcaster has the key: the grace of those before it begins."""
        self._allow_downgrade = False
        until = time.monotonic() + (self._grace_seconds or 0)
        self._older = [one if one.until is not None else _Older(one.key, until) for one in self._older]
        self._drop_old()

    def check(self, kept: Subscription) -> None:
        """Whether the broadcaster signs with this key. Raises `PubSubError`."""
        signature = "v1" if isinstance(self.key, SharedSecret) else "v1a"
        if kept.signature != signature:
            raise PubSubError(
                f"the broadcaster does not sign {kept.pattern} with {signature}, as its own secret needs it, but "
                f"{'not at all' if kept.signature is None else f'with {kept.signature}'}"
            )
        verifier = self._verifier(self.key)
        if isinstance(verifier, PublicKey) and kept.public_key != verifier.text():
            raise PubSubError(f"the broadcaster signs {kept.pattern} with another key than it was given")

    def _drop_old(self) -> None:
        now = time.monotonic()
        self._older = [one for one in self._older if one.until is None or now < one.until]
        for key in self._verifying.keys() - {self.key, *(one.key for one in self._older)}:
            del self._verifying[key]

    def _verifier(self, key: Secret) -> SharedSecret | PublicKey:
        known = self._verifying.get(key)
        if known is None:
            known = self._verifying[key] = key if isinstance(key, SharedSecret) else key.public()
        return known


class _Undo(NamedTuple):
    """A keyring as it was before a rotation that the broadcaster has refused."""

    keyring: Keyring
    key: Secret
    grace_seconds: int | None
    allow_downgrade: bool
    older: tuple[_Older, ...]

    def __call__(self) -> None:
        self.keyring.restore(self.key, self.grace_seconds, self.allow_downgrade, self.older)

    def __repr__(self) -> str:
        return "<undo a rotation>"


class Terms:
    """How the deliveries of one pattern come, and what proves them."""

    __slots__ = ("asked", "format", "keyring")

    def __init__(self, asked: WebhookOptions, raw: bytes | None = None) -> None:
        self.asked = asked
        self.format: DeliveryFormat = asked.format
        self.keyring = None if asked.secret is None else Keyring(asked.secret, raw)

    def fields(self) -> dict[str, Any]:
        """The members of a request that subscribes; none for what is plain."""
        fields: dict[str, Any] = {} if self.format == "raw" else {"format": self.format}
        if self.asked.handshake != "websub":
            fields["handshake"] = self.asked.handshake
        if self.keyring is not None:
            fields |= self.keyring.fields()
        return fields

    def stand(self) -> tuple[DeliveryFormat, Secret | None]:
        """What the broadcaster has to have confirmed."""
        return self.format, None if self.keyring is None else self.keyring.key

    def own_keys(self) -> list[SharedSecret | PublicKey]:
        """What verifies a webhook. Raises `Unauthorized` where that is no proof."""
        if self.keyring is None:
            raise Unauthorized("this subscription has no secret of its own: a webhook signature is no proof for it")
        return self.keyring.keys()

    def check_shared(self) -> None:
        """Raises `Unauthorized` where the proof that all subscribers share is none."""
        if self.keyring is not None:
            raise Unauthorized("this subscription has a secret of its own, and only its webhook signature counts")

    def check(self, kept: Subscription) -> None:
        """Whether the broadcaster does what was asked for. Raises `PubSubError`."""
        if kept.format != self.format:
            raise PubSubError(f"the broadcaster subscribed {kept.pattern} with the format {kept.format!r}")
        if self.keyring is not None:
            self.keyring.check(kept)

    def is_foreign(self, kept: Subscription) -> bool:
        """Whether the broadcaster signs with a secret that is not known here: an earlier life's."""
        return self.keyring is None and kept.signature is not None


NO_OPTIONS: Final = WebhookOptions()
PLAIN: Final = Terms(NO_OPTIONS)
_PLAIN_STAND: Final = PLAIN.stand()


class Agreements:
    """The terms of the patterns of one callback URL, and what of them the broadcaster has confirmed.

    `given` are the keys that all URLs of a client were given: no two subscriptions may share one, or what is sent for
    one could be replayed to the other.
    """

    def __init__(self, given: dict[Secret, object] | None = None) -> None:
        self._terms: dict[Pattern, Terms] = {}
        self._confirmed: dict[Pattern, tuple[DeliveryFormat, Secret | None]] = {}
        self._given: dict[Secret, object] = {} if given is None else given
        self._root = os.urandom(32)

    def of(self, pattern: Pattern) -> Terms:
        """The terms of a pattern."""
        return self._terms.get(pattern, PLAIN)

    def ask_for_handshake(self) -> bool:
        """Whether the broadcaster was told to ask by `OPTIONS` for any of them."""
        return any(terms.asked.handshake == "cloudevents" for terms in self._terms.values())

    def agree(self, patterns: Collection[Pattern], asked: WebhookOptions, wanted: Container[Pattern]) -> None:
        """Somebody subscribes to these. Raises `InvalidRequest` when one is `wanted` already with other terms."""
        key = None if asked.secret is None or asked.secret in _GENERATED else _made(asked.secret)
        if key is not None and len(set(patterns)) > 1:
            raise InvalidRequest("a given secret is for one pattern: secret='generate' makes one for each")
        for pattern in patterns:
            if pattern in wanted and self.of(pattern).asked != asked:
                raise InvalidRequest(f"{pattern} is entered with another `secret`, `format` or `handshake`")
            if key is not None:
                self._give(key, pattern)
        for pattern in patterns:
            if pattern not in wanted and asked != NO_OPTIONS:
                self._terms[pattern] = Terms(asked, self._generated(asked, pattern))

    def rotate(self, pattern: Pattern, wanted: Rotation) -> Callable[[], None]:
        """Other keys from now on; what is returned takes that back. Raises `InvalidRequest` where there are none, or
        the key is that of another subscription."""
        terms = self._terms.get(pattern)
        if terms is None or terms.keyring is None:
            raise InvalidRequest(f"{pattern} has no secret of its own that could be changed: subscribe with secret=")
        if wanted.is_given:
            self._give(_made(wanted.secret), pattern)
        # What is generated from now on is not what was, in case that has come to be known.
        self._root = os.urandom(32)
        asked, undo = terms.asked, terms.keyring.rotate(wanted)
        terms.asked = replace(asked, secret=wanted.secret)

        def take_back() -> None:
            terms.asked = asked
            undo()

        return take_back

    def forget(self, pattern: Pattern) -> None:
        """Nobody wants this pattern any more."""
        if self._terms.pop(pattern, None) is not None:
            for key in [key for key, owner in self._given.items() if owner == (self, pattern)]:
                del self._given[key]

    def confirm(self, kept: Subscription) -> None:
        """The broadcaster has answered. Raises `PubSubError` when it does not do what was asked for."""
        terms = self.of(kept.pattern)
        terms.check(kept)
        if terms.keyring is not None:
            terms.keyring.confirmed()
        if terms is PLAIN:
            self._confirmed.pop(kept.pattern, None)
        else:
            self._confirmed[kept.pattern] = terms.stand()

    def keep_only(self, patterns: Container[Pattern]) -> None:
        """The broadcaster has only these."""
        for pattern in [one for one in self._confirmed if one not in patterns]:
            del self._confirmed[pattern]

    def confirmed(self, pattern: Pattern) -> bool:
        """Whether what stands was confirmed, if anything was."""
        return self._confirmed.get(pattern, _PLAIN_STAND) == self.of(pattern).stand()

    def _generated(self, asked: WebhookOptions, pattern: Pattern) -> bytes:
        """The bytes of a key that is generated: another one for each pattern, and the same each time."""
        return hmac.digest(self._root, f"{asked.secret}\0{pattern}".encode(), "sha256")

    def _give(self, key: Secret, pattern: Pattern) -> None:
        if self._given.setdefault(key, (self, pattern)) != (self, pattern):
            raise InvalidRequest("this secret is that of another subscription: each has its own")


def _made(secret: object, raw: bytes | None = None) -> Secret:
    """The key that a text stands for, or a new one. Raises `InvalidRequest`, which never shows the text."""
    if secret == "generate":  # noqa: S105 - a word, no secret
        return SharedSecret(raw or os.urandom(32))
    if secret == "generate-v1a":  # noqa: S105 - a word, no secret
        return PrivateKey(raw or os.urandom(32))
    if not isinstance(secret, str):
        raise InvalidRequest(f"a secret is text, not {type(secret).__name__}")
    try:
        key = parse_key(secret)
    except ConfigurationError as error:
        raise InvalidRequest(f"secret is 'generate', 'generate-v1a', whsec_... or whsk_...: {error.detail}") from None
    if isinstance(key, PublicKey):
        raise InvalidRequest("a whpk_ key is public: the secret of a subscription is whsec_... or whsk_...")
    return key
