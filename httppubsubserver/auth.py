"""Who may talk to the broadcaster: the proof in a request, checked once and never twice the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from httppubsubclient.protocol.credentials import Credentials, verify_request
from httppubsubclient.protocol.errors import Replayed, Unauthorized
from httppubsubserver.stores import Store

__all__ = ["Authenticator", "Principal"]


_CHALLENGES = {"hmac": "Signature", "token": "Bearer", "none": None}


class Principal(NamedTuple):
    """Who made a request: the id of the key that proved it, None where no proof is asked for."""

    key_id: str | None


class Authenticator:
    """Checks requests to the broadcaster. Nonces are remembered in the store: over restarts and over processes."""

    def __init__(
        self, credentials: Credentials, store: Store, *, tolerance_seconds: int, clock: Callable[[], float]
    ) -> None:
        self._credentials = credentials
        self._store = store
        self._tolerance_seconds = tolerance_seconds
        self._clock = clock

    async def authenticate(
        self, *, method: str, path: str, query: str, headers: Mapping[str, str], has_body: bool
    ) -> Principal:
        """Raises `Unauthorized` or `Replayed`. Reads nothing of the body: its digest is among the headers."""
        now = self._clock()
        try:
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
                first = await self._store.remember_once(
                    f"{proof.key_id}:{proof.nonce}",
                    until=int(proof.replay_until * 1_000_000),
                    now=int(now * 1_000_000),
                )
                if not first:
                    raise Replayed("this signature was used before; sign each request anew, with a nonce of its own")
        except Unauthorized as error:
            error.challenge = _CHALLENGES[self._credentials.type]
            raise
        return Principal(proof.key_id)
