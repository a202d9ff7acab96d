"""The public keys of an issuer of tokens (JWKS, RFC 7517): from a file or a URL, remembered, fetched again when needed.

Who sends a token with a key id that is not known here makes us look for it again, at most once a minute, all who wait
share one look. What was fetched is looked at again after ten minutes, so that keys that the issuer withdraws are
forgotten; while the issuer cannot be reached, those that are known stay.

The URL is the operator's: the policy for callbacks does not apply to it, and no variable of the environment does. It is
not left for another by a redirect, and what it answers is bounded in size and time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx

from httppubsubclient.protocol.errors import ConfigurationError, PubSubError, Unavailable

__all__ = ["ALGORITHMS", "IssuerKeys", "PublicKey", "fetch_jwks", "read_jwks", "read_jwks_file", "why_not_fetched"]

_LOG = logging.getLogger("httppubsub.server.auth")

_BY_CURVE: Final = {
    ("EC", "P-256"): "ES256",
    ("EC", "P-384"): "ES384",
    ("EC", "P-521"): "ES512",
    ("OKP", "Ed25519"): "EdDSA",
}
_OF_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS: Final = frozenset({*_BY_CURVE.values(), *_OF_RSA})
"""Those with a public key. `none` and those whose key would be a shared secret are never accepted."""

MAX_JWKS_BYTES: Final = 256 * 1024
_MAX_KEYS: Final = 100
_RSA_BITS: Final = range(2048, 8193)
_PUBLIC: Final = ("kty", "crv", "n", "e", "x", "y")
"""What is read of a key: nothing private, even where it is there."""
_FETCH_SECONDS: Final = 5.0
_MAX_CAUSES: Final = 10
_LOOK_AGAIN_SECONDS: Final = 60.0
_REFRESH_SECONDS: Final = 600.0


class PublicKey(NamedTuple):
    """One key of the issuer."""

    kid: str | None
    algorithms: frozenset[str]
    """By which its signatures may have been made."""
    key: Any
    """As PyJWT takes it."""


def read_jwks(text: bytes) -> tuple[PublicKey, ...]:
    """The keys of a JWKS that can verify; others in it are passed over. Raises `ConfigurationError` when there is none,
    or the text is no JWKS; it is not repeated."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigurationError("it is not JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list) or len(entries) > _MAX_KEYS:
        raise ConfigurationError(f"a JWKS is an object whose member 'keys' is a list of at most {_MAX_KEYS} keys")
    keys = tuple(key for entry in entries if isinstance(entry, dict) and (key := _public_key(entry)) is not None)
    if not keys:
        raise ConfigurationError(f"none of its {len(entries)} keys can verify signatures: RSA, EC or Ed25519")
    return keys


def _public_key(entry: Mapping[str, Any]) -> PublicKey | None:
    import jwt
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    kid, use, operations = entry.get("kid"), entry.get("use", "sig"), entry.get("key_ops", ["verify"])
    if use != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    if kid is not None and not isinstance(kid, str):
        return None
    algorithms: tuple[str, ...] = _OF_RSA
    if entry.get("kty") != "RSA":
        kind = (str(entry.get("kty")), str(entry.get("crv")))
        algorithms = (_BY_CURVE[kind],) if kind in _BY_CURVE else ()
    named = entry.get("alg")
    if named is not None:
        algorithms = tuple(each for each in algorithms if each == named)
    if not algorithms:
        return None
    try:
        key = jwt.PyJWK({name: entry[name] for name in _PUBLIC if name in entry}, algorithms[0]).key
    except Exception:  # many kinds for what is wrong with a key; its parts are not for the log
        return None
    if isinstance(key, RSAPublicKey) and key.key_size not in _RSA_BITS:
        return None
    return PublicKey(kid, frozenset(algorithms), key)


def read_jwks_file(path: Path) -> tuple[PublicKey, ...]:
    """See `read_jwks`. Raises `ConfigurationError`."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_JWKS_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"jwks_file {str(path)!r} cannot be read: {error.strerror or error}") from None
    return _checked(text, f"jwks_file {str(path)!r}")


def _checked(text: bytes, source: str) -> tuple[PublicKey, ...]:
    if len(text) > MAX_JWKS_BYTES:
        raise ConfigurationError(f"{source} has more than {MAX_JWKS_BYTES} bytes")
    try:
        return read_jwks(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error.detail}") from None


async def fetch_jwks(url: str, *, seconds: float = _FETCH_SECONDS) -> tuple[PublicKey, ...]:
    """Ask the issuer. Raises `ConfigurationError` for a bad answer, `Unavailable` for none; what is told of the URL is
    where it leads, not its path and query."""
    named = f"jwks_url ({_origin(url)})"
    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=seconds) as client,
            client.stream("GET", url, headers={"accept-encoding": "identity", "accept": "application/json"}) as answer,
        ):
            if answer.status_code != 200:
                raise ConfigurationError(f"{named} was answered {answer.status_code}")
            if answer.headers.get("content-encoding", "identity").lower() != "identity":
                raise ConfigurationError(f"{named} was answered with a Content-Encoding that was not asked for")
            text = b""
            async for chunk in answer.aiter_raw():
                text += chunk
                if len(text) > MAX_JWKS_BYTES:
                    break
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
        raise Unavailable(f"{named} could not be fetched: {why_not_fetched(error, seconds)}") from None
    return _checked(text, f"what {named} answered")


def _origin(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return "not a URL"
    return f"{parsed.scheme}://{parsed.netloc.decode('ascii', 'replace')}"


def why_not_fetched(error: BaseException, seconds: float) -> str:
    """What went wrong, in the words of the system; not in those of the error, which may repeat a URL with a secret."""
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return f"no answer within {seconds:g} s"
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {getattr(cause, 'reason', None) or 'no handshake'}"
        if isinstance(cause, OSError) and cause.errno:
            # asyncio's own text of another OSError names the address.
            return str(cause.strerror) if isinstance(cause, socket.gaierror) else os.strerror(cause.errno)
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        else:
            cause = None if cause is None else cause.__cause__ or cause.__context__
    return type(error).__name__


class IssuerKeys:
    """The issuer's keys as they are known now. `look` reads or fetches them all; `clock` gives seconds, never set."""

    def __init__(
        self,
        look: Callable[[], Awaitable[tuple[PublicKey, ...]]],
        known: tuple[PublicKey, ...] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._clock = clock
        self._keys = known
        self._known_at = clock() if known else float("-inf")
        self._looked_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        self.generation = 0
        """Changes with the keys: what was concluded from others is to be forgotten."""

    async def find(self, kid: str | None, algorithm: str) -> tuple[PublicKey, ...]:
        """Those that may have signed a token with this head; none when there is no such key. Without a `kid`, only a
        key that is the only one of its kind. Raises `Unavailable` when no keys are known at all."""
        now = self._clock()
        found = self._matching(kid, algorithm)
        if found and now - self._known_at < _REFRESH_SECONDS:
            return found
        if now - self._looked_at >= _LOOK_AGAIN_SECONDS and self._looking is None:
            self._looked_at = now
            self._looking = asyncio.create_task(self._look_again(), name="keys of the issuer of tokens")
        if not found and self._looking is not None:
            await asyncio.shield(self._looking)
            found = self._matching(kid, algorithm)
        if not self._keys:
            raise Unavailable("the keys of the issuer of this token are not known yet", retry_after_seconds=5)
        return found

    async def refresh(self) -> None:
        """Look now; what goes wrong is logged, and what is known stays."""
        self._looked_at = self._clock()
        await self._look_again()

    async def close(self) -> None:
        """Let go of what is under way."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    def _matching(self, kid: str | None, algorithm: str) -> tuple[PublicKey, ...]:
        fitting = tuple(key for key in self._keys if algorithm in key.algorithms)
        if kid is None:
            return fitting if len(fitting) == 1 else ()
        return tuple(key for key in fitting if key.kid == kid)

    async def _look_again(self) -> None:
        try:
            keys = await self._look()
        except PubSubError as error:
            known = f"; {len(self._keys)} keys stay known" if self._keys else ""
            _LOG.warning("%s%s", error.detail, known)
        except Exception as error:
            # Not its text: it may repeat the URL.
            _LOG.error("looking for the keys of the issuer of tokens failed unexpectedly: %s", type(error).__name__)
        else:
            if [each[:2] for each in keys] != [each[:2] for each in self._keys]:
                _LOG.info("the issuer of tokens has %d keys", len(keys))
            self._keys = keys
            self._known_at = self._clock()
            self.generation += 1
        finally:
            self._looking = None
