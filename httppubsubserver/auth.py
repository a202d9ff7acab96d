"""Who may talk to the broadcaster: the proof in a request, checked once and never twice the same; and who that is.

A request proves itself with a key of the secrets file, or, where `jwt_issuer` is set, with a token of that issuer
instead, whatever the type of the keys.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.credentials import Credentials, verify_request
from httppubsubclient.protocol.errors import ConfigurationError, Forbidden, InvalidUrl, Replayed, Unauthorized
from httppubsubclient.protocol.permissions import Permissions
from httppubsubserver.audit import By
from httppubsubserver.config import ServerConfig
from httppubsubserver.jwt_keys import IssuerKeys, fetch_jwks, read_jwks_file
from httppubsubserver.jwt_tokens import JwtTokens, looks_like_jwt, require_pyjwt
from httppubsubserver.stores import Only, Store

__all__ = ["NOBODY", "Authenticator", "Principal", "check_jwt_settings", "open_jwt_tokens"]

_CHALLENGES: Final = {"hmac": "Signature", "token": "Bearer", "none": None}
_BEARER = re.compile(r"bearer +([!-~]+) *", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who made a request, and what he may do."""

    key_id: str | None
    """The id of the key that proved it; None where no proof is asked for, and with a token of an issuer."""
    owner: str | None
    """Whose what he makes is; None where no proof is asked for: everybody's. For one who may not do everything there is
    only his own (`Only`)."""
    permissions: Permissions
    publishes_freely: bool = field(init=False)
    """Nothing of what he publishes has to be looked at."""

    def __post_init__(self) -> None:
        quotas = self.permissions.quotas
        if self.owner is not None and (self.permissions.publish, self.permissions.subscribe) != (None, None):
            object.__setattr__(self, "owner", Only(self.owner))
        limits = (self.permissions.publish, quotas.messages_per_second, quotas.bytes_per_second)
        object.__setattr__(self, "publishes_freely", all(limit is None for limit in limits))

    @property
    def scope(self) -> str | None:
        """Whose things he sees and removes; None: everybody's."""
        return None if self.permissions.admin else self.owner

    @property
    def by(self) -> By:
        """For the audit log."""
        return By(self.owner, self.key_id)

    def max_subscriptions(self, of_everybody: int | None) -> int | None:
        """How many he may have: the smaller one of his quota and what nobody may exceed."""
        limits = [limit for limit in (self.permissions.quotas.subscriptions, of_everybody) if limit is not None]
        return min(limits, default=None)

    def check_permanent(self) -> None:
        """Whether his subscriptions may last for ever. Raises `Forbidden`."""
        if self.owner is not None and not self.permissions.admin:
            raise Forbidden(
                "only a key or token with 'admin' may subscribe without a lease: give lease_seconds instead"
            )


NOBODY: Final = Principal(None, None, Permissions(admin=True))
"""Whoever comes where no proof is asked for: he may do everything."""


class Authenticator:
    """Checks requests to the broadcaster. Nonces are remembered in the store: over restarts and over processes."""

    def __init__(
        self,
        credentials: Credentials,
        store: Store,
        *,
        tolerance_seconds: int,
        clock: Callable[[], float],
        tokens: JwtTokens | None = None,
    ) -> None:
        self._credentials = credentials
        self._store = store
        self._tolerance_seconds = tolerance_seconds
        self._clock = clock
        self._tokens = tokens
        self._principals: dict[str | None, Principal] = {
            key.id: Principal(key.id, key.owner, key.permissions) for key in credentials.keys
        }
        self._principals[None] = NOBODY
        self._challenge = _CHALLENGES[credentials.type]
        if tokens is not None and credentials.type == "hmac":
            self._challenge = "Signature, Bearer"

    async def authenticate(
        self, *, method: str, path: str, query: str, headers: Mapping[str, str], has_body: bool
    ) -> Principal:
        """Raises `Unauthorized` or `Replayed`, with a token also `Forbidden` and `Unavailable`. Reads nothing of the
        body: its digest is among the headers."""
        if self._credentials.type == "none":
            _check_no_page(headers)
        now = self._clock()
        try:
            if self._tokens is not None:
                token = self._token_of_issuer(headers)
                if token is not None:
                    holder = await self._tokens.holder(token)
                    return Principal(None, holder.owner, holder.permissions)
            proof = verify_request(
                self._credentials,
                method=method,
                path=path,
                query=query,
                headers=headers,
                has_body=has_body,
                now=now,
                tolerance_seconds=self._tolerance_seconds,
            )
            if proof.nonce is not None and proof.replay_until is not None:
                # Here and not in a method: a notify pays for each coroutine.
                first = await self._store.remember_once(
                    f"{proof.key_id}:{proof.nonce}",
                    until=int(proof.replay_until * 1_000_000),
                    now=int(now * 1_000_000),
                )
                if not first:
                    raise Replayed("this signature was used before; sign each request anew, with a nonce of its own")
        except Unauthorized as error:
            error.challenge = self._challenge
            raise
        return self._principals[proof.key_id]

    def _token_of_issuer(self, headers: Mapping[str, str]) -> str | None:
        """The bearer token of a request that does not prove itself with a key."""
        if "signature-input" in headers and self._credentials.type == "hmac":
            return None
        match = _BEARER.fullmatch(headers.get("authorization", "").strip(" \t"))
        if match is None:
            return None
        if self._credentials.type == "hmac":
            return match[1]  # Whatever it is, it can be meant as nothing else.
        if not looks_like_jwt(match[1]):
            return None
        if self._credentials.type == "token":
            # A token in the secrets file may look like anything. All of them, so that the time tells nothing.
            sent = match[1].encode("ascii")
            equal = [hmac.compare_digest(key.secret, sent) for key in self._credentials.keys]
            if True in equal:
                return None
        return match[1]


def _check_no_page(headers: Mapping[str, str]) -> None:
    """Where nothing has to be proven, a page that a browser near us shows could do everything: browsers send POSTs of
    any page to any address, and say so (Fetch standard section 3.2, W3C Fetch Metadata section 2.4). Raises
    `Forbidden`."""
    if "origin" in headers or headers.get("sec-fetch-site", "none") != "none":
        raise Forbidden(
            "this came from a web page, and nothing has to be proven here: with to_broadcasters of type 'hmac' or "
            "'token' a page that may can do this"
        )


# -- tokens of an issuer ----------------------------------------------------------------------------------------------


def check_jwt_settings(config: ServerConfig, credentials: Credentials) -> None:
    """Raises `ConfigurationError` for settings that would let in nobody, or anybody."""
    settings = (config.jwt_issuer, config.jwt_audience, config.jwks_file, config.jwks_url)
    if all(setting is None for setting in settings):
        return
    missing = [name for name in ("jwt_issuer", "jwt_audience") if getattr(config, name) is None]
    if config.jwks_file is None and config.jwks_url is None:
        missing.append("one of jwks_file and jwks_url")
    if missing:
        raise ConfigurationError(f"tokens of an issuer need {' and '.join(missing)}, too")
    if config.jwks_file is not None and config.jwks_url is not None:
        raise ConfigurationError("jwks_file and jwks_url are both set: the keys of the issuer are in one of them")
    if credentials.type == "none":
        raise ConfigurationError(
            "jwt_issuer is set, but the type of to_broadcasters in the secrets file is 'none': nobody would have to "
            "show a token; use 'hmac' or 'token'"
        )
    require_pyjwt()
    if config.jwks_file is not None:
        read_jwks_file(config.jwks_file)
    else:
        _jwks_url(config)


def _jwks_url(config: ServerConfig) -> str:
    """Raises `ConfigurationError`."""
    try:
        return parse_callback_url(config.jwks_url or "").request_url
    except InvalidUrl as error:
        raise ConfigurationError(f"jwks_url: {error.detail.replace('callback URL', 'URL')}") from None


async def open_jwt_tokens(config: ServerConfig, *, clock: Callable[[], float]) -> JwtTokens | None:
    """What checks tokens of the issuer that is set, if one is; with its keys, as far as they can be had now. Raises
    `ConfigurationError`."""
    if config.jwt_issuer is None or config.jwt_audience is None:
        return None
    if config.jwks_file is not None:
        keys = IssuerKeys(
            partial(asyncio.to_thread, read_jwks_file, config.jwks_file), read_jwks_file(config.jwks_file)
        )
    else:
        keys = IssuerKeys(partial(fetch_jwks, _jwks_url(config)))
        await keys.refresh()
    return JwtTokens(issuer=config.jwt_issuer, audience=config.jwt_audience, keys=keys, clock=clock)
