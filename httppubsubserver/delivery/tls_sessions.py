"""TLS for connections that go out, resumed where an earlier one left a session (RFC 8446 section 2.2, RFC 5077).

A resumed handshake sends no certificate and makes no signature: a third less work for this side, and half for a
server with an RSA key. Who proves to know the session's secret is who was verified when the session began; so that a
certificate that has expired since does not live on in a chain of sessions, a verification is good for
`VERIFIED_SECONDS` only.

Neither asyncio nor uvloop can be given a session. Both call `wrap_bio` of the context, once for each connection, and
nothing else; so they are given `_Resuming`, which has this one method and leaves the context as its owner made it.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, cast
from weakref import WeakKeyDictionary

__all__ = ["VERIFIED_SECONDS", "TlsSessions"]

VERIFIED_SECONDS: Final = 3600.0
"""After this long the next handshake is a whole one again, with the certificate."""

_MAX_ORIGINS: Final = 1000
"""Origins whose session is remembered; the one that was used least recently goes first."""


class TlsSessions:
    """A context and the last session of each origin (`https://host:port`)."""

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        max_origins: int = _MAX_ORIGINS,
        verified_seconds: float = VERIFIED_SECONDS,
    ) -> None:
        self._context = context
        self._max_origins = max_origins
        self._verified_seconds = verified_seconds
        self._sessions: OrderedDict[str, tuple[ssl.SSLSession, float]] = OrderedDict()
        """Each with the moment until which its verification is good."""
        self._resumed: WeakKeyDictionary[ssl.SSLObject, float] = WeakKeyDictionary()
        """The same moment, of connections that resumed a session."""

    def context(self, origin: str) -> ssl.SSLContext:
        """For one `create_connection`: resumes the session of the origin when there is one."""
        session, until = self._sessions.get(origin, (None, 0.0))
        if session is None:
            return self._context
        if time.monotonic() >= until:
            self.forget(origin)
            return self._context
        self._sessions.move_to_end(origin)

        def made(connecting: ssl.SSLObject) -> None:
            self._resumed[connecting] = until

        return cast(ssl.SSLContext, _Resuming(self._context, session, made))

    def remember(self, origin: str, transport: asyncio.BaseTransport) -> None:
        """To be called after the first answer: tickets of TLS 1.3 arrive after the handshake. Does nothing for TCP."""
        connected: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        session = None if connected is None else connected.session
        if connected is None or session is None:
            return
        until = time.monotonic() + self._verified_seconds
        if connected.session_reused:
            until = self._resumed.get(connected, 0.0)
            if origin not in self._sessions:
                return  # forgotten since, for a reason
        self._sessions[origin] = (session, until)
        self._sessions.move_to_end(origin)
        if len(self._sessions) > self._max_origins:
            self._sessions.popitem(last=False)

    def forget(self, origin: str) -> None:
        """A handshake failed, or what came right after it: the next one starts from nothing."""
        self._sessions.pop(origin, None)


class _Resuming:
    """What the event loops use of an `ssl.SSLContext`."""

    def __init__(
        self, context: ssl.SSLContext, session: ssl.SSLSession, made: Callable[[ssl.SSLObject], object]
    ) -> None:
        self._context = context
        self._session = session
        self._made = made

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
    ) -> ssl.SSLObject:
        """See `ssl.SSLContext.wrap_bio`."""
        resuming = self._context.wrap_bio(incoming, outgoing, server_side, server_hostname, self._session)
        self._made(resuming)
        return resuming
