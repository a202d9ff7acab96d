"""JSON Web Tokens (RFC 7519) instead of keys: who somebody is and what he may do, signed by an issuer.

| in the token          | has to be                                                                                   |
|-----------------------|---------------------------------------------------------------------------------------------|
| `alg`                 | RS/PS 256..512, ES 256..512 or EdDSA, and one that the issuer's key is for                  |
| `typ`, `crit`, `b64`  | `JWT` or `at+jwt`, if at all; the other two are not understood, so not there                |
| `iss`, `aud`          | exactly `jwt_issuer`; `jwt_audience`, or a list with it                                     |
| `exp`                 | there, and to come                                                                          |
| `nbf`, `iat`          | over, if they are there, but for 60 s                                                       |
| `sub`                 | there; what is made belongs to the owner `jwt:<sub>`                                        |
| `httppubsub`          | an object with `publish`, `subscribe`, `admin`, `quotas` as a key has them (permissions.py) |

Other than with keys, what the claim `httppubsub` leaves out is not permitted: without `publish` nothing may be
published. A token without the claim may do nothing at all. Keys that a token brings along (`jwk`, `jku`, `x5c`, ...)
are not looked at.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import re
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from httppubsubclient.protocol.errors import ConfigurationError, Forbidden, Unauthorized
from httppubsubclient.protocol.permissions import Permissions, permissions_from_json
from httppubsubserver.jwt_keys import ALGORITHMS, IssuerKeys

__all__ = ["JwtTokens", "TokenHolder", "looks_like_jwt", "require_pyjwt"]

CLAIM: Final = "httppubsub"
MAX_TOKEN_LENGTH: Final = 16 * 1024
_LEEWAY_SECONDS: Final = 60
_MAX_SUBJECT: Final = 255
_MAX_REMEMBERED: Final = 1024
_LATEST: Final = 2**53

_TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_TYPES: Final = ("jwt", "at+jwt", "application/at+jwt")
_CLAIMED: Final = frozenset({"publish", "subscribe", "admin", "quotas"})


class TokenHolder(NamedTuple):
    """Whom a token is about."""

    owner: str
    """`jwt:` and the subject."""
    permissions: Permissions


class _Remembered(NamedTuple):
    holder: TokenHolder
    expires: float
    generation: int


def looks_like_jwt(token: str) -> bool:
    """Whether this can only be meant as one."""
    return token.startswith("eyJ") and token.count(".") == 2


def require_pyjwt() -> None:
    """Raises `ConfigurationError` when the library is not there."""
    try:
        import jwt
    except ImportError:
        jwt = None  # type: ignore[assignment]
    # Another distribution has a module of this name, too.
    if not hasattr(jwt, "PyJWS") or not hasattr(jwt, "PyJWK"):
        raise ConfigurationError("jwt_issuer needs PyJWT: pip install 'httppubsub[jwt]'")


class JwtTokens:
    """Checks tokens. `clock` gives Unix seconds."""

    def __init__(self, *, issuer: str, audience: str, keys: IssuerKeys, clock: Callable[[], float]) -> None:
        """Raises `ConfigurationError` when PyJWT is not installed."""
        require_pyjwt()
        self._issuer = issuer
        self._audience = audience
        self._keys = keys
        self._clock = clock
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()

    async def holder(self, token: str) -> TokenHolder:
        """Whom this token is about. Raises `Unauthorized`; `Forbidden` when it is good, but permits nothing;
        `Unavailable` while the issuer's keys are not known. No text holds any of it."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        known = self._remembered.get(digest)
        if known is not None and known.generation == self._keys.generation and self._clock() < known.expires:
            return known.holder
        claims = await self._verified(token)
        expires = self._check_times(claims)
        self._check_names(claims)
        holder = TokenHolder(_owner(claims), _permissions(claims))
        self._remembered[digest] = _Remembered(holder, expires, self._keys.generation)
        while len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return holder

    async def close(self) -> None:
        """Let go of what is under way."""
        await self._keys.close()

    async def _verified(self, token: str) -> Mapping[str, Any]:
        """The claims, once the signature holds."""
        import jwt

        if len(token) > MAX_TOKEN_LENGTH or not _TOKEN.fullmatch(token):
            raise Unauthorized(
                "the token is none of the issuer: it does not have the form of a JWT", reason="malformed"
            )
        kid, algorithm = _head(token)
        keys = await self._keys.find(kid, algorithm)
        if not keys:
            raise Unauthorized("the token is signed with a key that its issuer does not have", reason="unknown_key")
        for key in keys:
            try:
                payload = jwt.PyJWS().decode_complete(token, key.key, algorithms=[algorithm])["payload"]
            except jwt.InvalidSignatureError:
                continue
            except (jwt.PyJWTError, ValueError, RecursionError):
                raise Unauthorized("the token cannot be read as a JWT", reason="malformed") from None
            claims = _object(payload)
            if claims is None:
                raise Unauthorized("the token says nothing that can be read", reason="malformed")
            return claims
        raise Unauthorized("the signature of the token does not hold", reason="mismatch")

    def _check_times(self, claims: Mapping[str, Any]) -> float:
        now = self._clock()
        expires = _moment(claims, "exp")
        if expires is None:
            raise Unauthorized("the token has no 'exp': one that never ends is not taken", reason="malformed")
        if expires <= now:
            raise Unauthorized(f"the token has expired, {now - expires:.0f} s ago", reason="expired")
        for name in ("nbf", "iat"):
            moment = _moment(claims, name)
            if moment is not None and moment > now + _LEEWAY_SECONDS:
                raise Unauthorized(f"the token counts only later: its '{name}' is to come", reason="outside_tolerance")
        return expires

    def _check_names(self, claims: Mapping[str, Any]) -> None:
        if claims.get("iss") != self._issuer:
            raise Unauthorized("the token is from another issuer ('iss')", reason="mismatch")
        audience = claims.get("aud")
        if audience != self._audience and not (isinstance(audience, list) and self._audience in audience):
            raise Unauthorized("the token is for somebody else ('aud')", reason="mismatch")


def _head(token: str) -> tuple[str | None, str]:
    """The key id and the algorithm. Raises `Unauthorized`."""
    head = _object(_decoded(token.partition(".")[0]))
    if head is None:
        raise Unauthorized("the head of the token is not JSON", reason="malformed")
    algorithm, kid, kind = head.get("alg"), head.get("kid"), head.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise Unauthorized("the token is not signed by an algorithm that is accepted here", reason="wrong_algorithm")
    if "crit" in head or "b64" in head:
        raise Unauthorized("the token has extensions ('crit', 'b64') that are not known here", reason="malformed")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise Unauthorized("the token is of another type ('typ')", reason="malformed")
    if kid is not None and not isinstance(kid, str):
        raise Unauthorized("the 'kid' of the token is not a text", reason="malformed")
    return kid, algorithm


def _decoded(part: str) -> bytes:
    try:
        return urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError):
        return b""


def _object(text: bytes) -> Mapping[str, Any] | None:
    """A JSON object in which no name stands twice, or None."""
    try:
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _no_constant(_: str) -> None:
    raise ValueError


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LATEST:
        raise Unauthorized(f"the '{name}' of the token is not a moment", reason="malformed")
    return value


def _owner(claims: Mapping[str, Any]) -> str:
    subject = claims.get("sub")
    # Not printable: control characters, and halves of characters that no database takes.
    if not isinstance(subject, str) or not 1 <= len(subject) <= _MAX_SUBJECT or not subject.isprintable():
        raise Unauthorized(f"the 'sub' of the token is 1 to {_MAX_SUBJECT} printable characters", reason="malformed")
    return f"jwt:{subject}"


def _permissions(claims: Mapping[str, Any]) -> Permissions:
    claimed = claims.get(CLAIM)
    if claimed is None:
        raise Forbidden(f"this token permits nothing: it has no claim '{CLAIM}'")
    if isinstance(claimed, dict):
        for name in claimed.keys() - _CLAIMED:
            raise Forbidden(f"the claim '{CLAIM}' of this token has the member {ascii(name)[:42]}, which is not known")
        claimed = {"publish": [], "subscribe": []} | claimed
    try:
        return replace(permissions_from_json(claimed, CLAIM), whose="this token")
    except ConfigurationError as error:
        raise Forbidden(f"the permissions of this token cannot be read: {error.detail}") from None
