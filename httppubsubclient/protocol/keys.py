"""Who may speak in one direction: keys, the credentials of a direction, and the secrets file that holds both.

Several keys make rotation possible: whoever verifies takes every key until its `valid_until`, whoever signs uses the
last one whose `use_after` has come.

The form of a secrets file, the same for both sides:

    {"version": 1,
     "broadcasters": ["https://pubsub.example"],
     "to_broadcasters": {"type": "hmac", "keys": [{"id": "k1", "secret": "<base64 of 24 bytes or more>"}]},
     "to_subscribers": {"type": "token", "keys": [{"id": "t1", "secret": "<24 or more visible ASCII characters>",
                                                   "use_after": 1790000000, "valid_until": 1800000000}]}}

A key in `to_broadcasters` may also say what it may do (permissions.py) and whose it is: `owner`, by default its own id.
What is made with one key of an owner belongs to all of them; so it survives that a key is replaced.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Set
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.errors import ConfigurationError, InvalidUrl
from httppubsubclient.protocol.permissions import (
    PERMISSION_MEMBERS,
    Permissions,
    permissions_from_json,
    permissions_to_json,
)

__all__ = [
    "MAX_KEYS",
    "MAX_SECRET_LENGTH",
    "MIN_SECRET_LENGTH",
    "Credentials",
    "Key",
    "Secrets",
    "secrets_from_json",
    "secrets_to_json",
]

MIN_SECRET_LENGTH: Final = 24
MAX_SECRET_LENGTH: Final = 512
MAX_KEYS: Final = 256
"""Of one direction."""

_KEY_ID = re.compile(r"[A-Za-z0-9._~-]{1,64}", re.ASCII)
_PERMISSIONS: Final = PERMISSION_MEMBERS - {"valid_until"}
"""Those that a key has beside its end."""
_EVERYTHING: Final = Permissions()
_KEY_MEMBERS: Final = frozenset({"id", "secret", "use_after", "valid_until"})
_TOKEN = re.compile(r"[!-~]+", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_HOW_TO_MAKE: Final = "`head -c 32 /dev/urandom | base64` makes one"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of one direction. Moments are Unix seconds."""

    id: str
    """1 to 64 of `A-Za-z0-9._~-`."""
    secret: bytes = field(repr=False)
    """With token authentication the token, in ASCII."""
    use_after: float = 0
    """Not used for signing before; accepted at any time, so that it can be handed out first."""
    valid_until: float | None = None
    """From then on neither used nor accepted."""
    owner: str = ""
    """Whose what is made with it is; in the form of an id. Left out: its own id."""
    permissions: Permissions = _EVERYTHING
    """Of requests to a broadcaster. Their `valid_until` is not used: the key's own is."""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not _KEY_ID.fullmatch(self.id):
            raise ConfigurationError("the id of a key is 1 to 64 characters of A-Z a-z 0-9 . _ ~ -")
        if not self.owner:
            object.__setattr__(self, "owner", self.id)
        if not isinstance(self.owner, str) or not _KEY_ID.fullmatch(self.owner):
            raise ConfigurationError(f"the owner of the key {self.id!r} is 1 to 64 characters of A-Z a-z 0-9 . _ ~ -")
        if not isinstance(self.secret, bytes) or not self.secret:
            raise ConfigurationError(f"the secret of the key {self.id!r} is bytes, at least one")


@dataclass(frozen=True, slots=True)
class Credentials:
    """The keys of one direction. Its repr holds no secret."""

    type: Literal["hmac", "token", "none"]
    keys: tuple[Key, ...] = ()
    broadcasters: tuple[str, ...] = ()
    """URLs of the broadcasters that these are for, from the secrets file."""
    _by_id: dict[str, Key] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_id", {key.id: key for key in self.keys})
        if self.type not in ("hmac", "token", "none"):
            raise ConfigurationError(f"the type of credentials is 'hmac', 'token' or 'none', not {self.type!r}")
        if len(self._by_id) != len(self.keys):
            raise ConfigurationError("two keys have the same id")
        if self.type == "token" and not all(_TOKEN.fullmatch(key.secret.decode("latin-1")) for key in self.keys):
            raise ConfigurationError("a token consists of visible ASCII characters")

    @staticmethod
    def none() -> Credentials:
        """No proof is given and none is asked for."""
        return Credentials("none")

    def signing_key(self, now: float) -> Key:
        """The last key that may be used at `now`. Raises `ConfigurationError` when there is none."""
        for key in reversed(self.keys):
            if key.use_after <= now and (key.valid_until is None or now < key.valid_until):
                return key
        raise ConfigurationError(self._why_none(now))

    def _why_none(self, now: float) -> str:
        """What is wrong with the keys, and what to do, for whoever has them."""
        coming = [key for key in self.keys if key.use_after > now]
        if coming:
            first = min(coming, key=lambda key: key.use_after)
            return (
                f"no {self.type} key may be used now, {first.id!r} only from {_shown_moment(first.use_after)} on: a "
                "new key goes behind the old one in `keys` of the secrets file, where both stay until the old one ends "
                "(`httppubsubserver --rotate` made it)"
            )
        ends = [key.valid_until for key in self.keys if key.valid_until is not None]
        ended = f": the last one ended at {_shown_moment(max(ends))}" if ends else ""
        return (
            f"none of the {len(self.keys)} {self.type} keys may be used any more{ended}; whoever runs the broadcaster "
            "makes new ones (`httppubsubserver --rotate`) and hands them out"
        )

    def key(self, key_id: str) -> Key | None:
        """The key with this id, whether or not it is valid now."""
        return self._by_id.get(key_id)


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a secrets file holds."""

    to_broadcasters: Credentials
    to_subscribers: Credentials
    broadcasters: tuple[str, ...]


def secrets_from_json(obj: object) -> Secrets:
    """The content of a secrets file. Raises `ConfigurationError` that names the place of a fault, never a secret."""
    fields = _object(obj, "the file", {"version", "broadcasters", "to_broadcasters", "to_subscribers"})
    version = fields.get("version")
    if version != 1 or isinstance(version, bool):
        raise ConfigurationError("'version' is 1 in the secrets files that this release reads")
    broadcasters = _broadcasters(fields.get("broadcasters", []))
    for name in ("to_broadcasters", "to_subscribers"):
        if name not in fields:
            raise ConfigurationError(f"{name!r} is missing")
    return Secrets(
        to_broadcasters=_credentials(fields["to_broadcasters"], "to_broadcasters", broadcasters),
        to_subscribers=_credentials(fields["to_subscribers"], "to_subscribers", broadcasters),
        broadcasters=broadcasters,
    )


def secrets_to_json(secrets: Secrets) -> dict[str, Any]:
    """The inverse of `secrets_from_json`."""
    return {
        "version": 1,
        "broadcasters": list(secrets.broadcasters),
        "to_broadcasters": _credentials_to_json(secrets.to_broadcasters),
        "to_subscribers": _credentials_to_json(secrets.to_subscribers),
    }


def _credentials_to_json(credentials: Credentials) -> dict[str, Any]:
    if credentials.type == "none":
        return {"type": "none"}
    keys = []
    for key in credentials.keys:
        text = base64.b64encode(key.secret) if credentials.type == "hmac" else key.secret
        fields: dict[str, Any] = {"id": key.id, "secret": text.decode("ascii")}
        if key.use_after != 0:
            fields["use_after"] = key.use_after
        if key.valid_until is not None:
            fields["valid_until"] = key.valid_until
        if key.owner != key.id:
            fields["owner"] = key.owner
        keys.append(fields | permissions_to_json(key.permissions))
    return {"type": credentials.type, "keys": keys}


def _broadcasters(entries: object) -> tuple[str, ...]:
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ConfigurationError("'broadcasters' is a list of URLs")
    for number, entry in enumerate(entries):
        try:
            url = parse_callback_url(entry)
        except InvalidUrl as error:
            text = error.detail.replace("callback URL", "broadcaster URL")
            raise ConfigurationError(f"broadcasters[{number}]: {text}") from None
        if url.fragment is not None or "?" in url.target:
            raise ConfigurationError(f"broadcasters[{number}]: a broadcaster URL has no query and no fragment")
    return tuple(entries)


def _credentials(obj: object, place: str, broadcasters: tuple[str, ...]) -> Credentials:
    fields = _object(obj, place, {"type", "keys"})
    kind, entries = fields.get("type"), fields.get("keys", [])
    if kind not in ("hmac", "token", "none"):
        raise ConfigurationError(f"{place}.type is 'hmac', 'token' or 'none'")
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise ConfigurationError(f"{place}.keys is a list of at most {MAX_KEYS} keys")
    if (kind == "none") == bool(entries):
        raise ConfigurationError(f"{place}.keys has no key with the type none, and at least one with any other")
    keys = tuple(
        _key(entry, f"{place}.keys[{number}]", kind, may_be_restricted=place == "to_broadcasters")
        for number, entry in enumerate(entries)
    )
    if len({key.id for key in keys}) != len(keys):
        raise ConfigurationError(f"{place}.keys has two keys with the same id")
    by_secret: dict[bytes, Key] = {}
    for key in keys:
        other = by_secret.setdefault(key.secret, key)
        if other is not key:
            # Whoever has the one could do what the other may.
            raise ConfigurationError(
                f"{place}.keys: {other.id!r} and {key.id!r} have the same secret; each key needs one of its own: "
                f"{_HOW_TO_MAKE}"
            )
    return Credentials(kind, keys, broadcasters)


def _key(obj: object, place: str, kind: str, *, may_be_restricted: bool) -> Key:
    fields = _object(obj, place, _KEY_MEMBERS | _PERMISSIONS | {"owner"})
    if not may_be_restricted:
        for name in sorted(fields.keys() - _KEY_MEMBERS):
            raise ConfigurationError(
                f"{place}.{name} means nothing here: it is for keys of to_broadcasters, which say who may do what"
            )
    key_id, secret = fields.get("id"), fields.get("secret")
    if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
        raise ConfigurationError(f"{place}.id is 1 to 64 characters of A-Z a-z 0-9 . _ ~ -")
    owner = fields.get("owner", key_id)
    if not isinstance(owner, str) or not _KEY_ID.fullmatch(owner):
        raise ConfigurationError(f"{place}.owner is 1 to 64 characters of A-Z a-z 0-9 . _ ~ -")
    if not isinstance(secret, str):
        raise ConfigurationError(f"{place}.secret is missing or not a string")
    use_after = _moment(fields.get("use_after", 0), f"{place}.use_after")
    valid_until = fields.get("valid_until")
    return Key(
        id=key_id,
        secret=_hmac_secret(secret, place) if kind == "hmac" else _token(secret, place),
        use_after=use_after,
        valid_until=None if valid_until is None else _moment(valid_until, f"{place}.valid_until"),
        owner=owner,
        permissions=permissions_from_json({name: fields[name] for name in fields.keys() & _PERMISSIONS}, place),
    )


def _hmac_secret(text: str, place: str) -> bytes:
    try:
        secret = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError(f"{place}.secret is not base64: {_HOW_TO_MAKE}") from None
    if not MIN_SECRET_LENGTH <= len(secret) <= MAX_SECRET_LENGTH:
        raise ConfigurationError(
            f"{place}.secret is the base64 of {MIN_SECRET_LENGTH} to {MAX_SECRET_LENGTH} bytes, not {len(secret)}: "
            f"{_HOW_TO_MAKE}"
        )
    if len(set(secret)) == 1:
        raise ConfigurationError(f"{place}.secret is one byte repeated: {_HOW_TO_MAKE}")
    return secret


def _token(text: str, place: str) -> bytes:
    if not MIN_SECRET_LENGTH <= len(text) <= MAX_SECRET_LENGTH or not _TOKEN.fullmatch(text):
        raise ConfigurationError(
            f"{place}.secret, a token, is {MIN_SECRET_LENGTH} to {MAX_SECRET_LENGTH} visible ASCII characters: "
            f"{_HOW_TO_MAKE}"
        )
    return text.encode("ascii")


def _shown_moment(unix_seconds: float) -> str:
    """For people: `2027-01-16 08:00:00 UTC`."""
    try:
        return (_EPOCH + timedelta(seconds=unix_seconds)).strftime("%Y-%m-%d %H:%M:%S UTC")
    except OverflowError:
        return f"{unix_seconds:.0f} (Unix seconds)"


def _moment(value: object, place: str) -> float:
    # The comparison refuses NaN and infinities; 2**53 is the last integer that JSON numbers hold exactly.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2**53:
        raise ConfigurationError(f"{place} is a moment in Unix seconds")
    return value


def _object(obj: object, place: str, known: Set[str]) -> dict[str, Any]:
    if not isinstance(obj, dict):
        raise ConfigurationError(f"{place} is not a JSON object")
    for name in obj:
        if name not in known:
            shown = repr(name)[:42]
            raise ConfigurationError(f"{place} has the member {shown}, which this release does not know")
    return obj
