"""One POST to a subscriber, bounded in time and in what is read of the answer.

`Outbound` is the seam: the dispatcher knows nothing below it. `HttpxOutbound` keeps one small connection pool per
origin, because a single pool slows down badly with the number of requests in flight.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx

from httppubsubclient import __version__
from httppubsubclient.bodies import Body
from httppubsubclient.protocol.callback_urls import CallbackUrl
from httppubsubclient.protocol.errors import ConfigurationError

__all__ = ["Answer", "AttemptFailed", "HttpxOutbound", "Outbound", "open_outbound"]

_LOG = logging.getLogger("httppubsub.server.outbound")

_IDLE_SECONDS = 30.0
"""An origin that nothing was sent to for this long loses its connections."""

_DRAIN_SECONDS = 1.0
"""How long the rest of an answer may take before its connection is given up; the status is known by then."""

_CONSTANT_HEADERS = {
    "user-agent": f"httppubsub/{__version__}",
    "accept": "*/*",
    # A compressed answer could unpack into something a thousand times its size; nothing of it is of use here.
    "accept-encoding": "identity",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the dispatcher needs of a subscriber's answer."""

    status: int
    retry_after: str | None


class AttemptFailed(Exception):
    """There was no answer. `again`: a quick second attempt makes sense; `hanging`: the time ran out."""

    def __init__(self, reason: str, *, again: bool, hanging: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.again = again
        self.hanging = hanging


class Outbound(Protocol):
    """POST `body` to `callback`, within `timeout_seconds` altogether. Raises `AttemptFailed`."""

    async def post(
        self, callback: CallbackUrl, headers: Mapping[str, str], body: Body, *, timeout_seconds: float
    ) -> Answer: ...


@dataclass(slots=True)
class _Pool:
    transport: httpx.AsyncHTTPTransport
    in_use: int = 0
    last_used: float = field(default=0.0)


class HttpxOutbound:
    """`Outbound` over httpx transports, one per origin; proxies and netrc of the environment are ignored."""

    def __init__(self, *, connections_per_origin: int, max_answer_bytes: int, tls: ssl.SSLContext) -> None:
        self._connections_per_origin = connections_per_origin
        self._max_answer_bytes = max_answer_bytes
        self._tls = tls
        self._pools: dict[str, _Pool] = {}

    async def post(
        self, callback: CallbackUrl, headers: Mapping[str, str], body: Body, *, timeout_seconds: float
    ) -> Answer:
        """See `Outbound`."""
        request = httpx.Request(
            "POST",
            callback.request_url,
            headers={**_CONSTANT_HEADERS, **headers, "content-length": str(body.size)},
            content=body.data if body.data is not None else body.chunks(),
        )
        pool = self._pool(callback.origin)
        pool.in_use += 1
        try:
            # httpx counts its timeouts per read: a receiver that drips would never meet them. This one is total.
            async with asyncio.timeout(timeout_seconds):
                response = await pool.transport.handle_async_request(request)
            try:
                answer = Answer(response.status_code, response.headers.get("retry-after"))
                await self._drain(response)
            finally:
                await response.aclose()
        except TimeoutError:
            raise AttemptFailed("timeout", again=False, hanging=True) from None
        except httpx.ConnectError as error:
            tls = isinstance(_cause(error), ssl.SSLError)
            raise AttemptFailed("tls_error" if tls else "connect_error", again=not tls) from None
        except httpx.TransportError as error:
            raise AttemptFailed(type(error).__name__, again=True) from None
        except httpx.InvalidURL:
            raise AttemptFailed("invalid_url", again=False) from None
        else:
            return answer
        finally:
            pool.in_use -= 1
            pool.last_used = asyncio.get_running_loop().time()

    async def sweep(self) -> None:
        """Close the connections of origins that have been idle for long."""
        now = asyncio.get_running_loop().time()
        idle = [
            origin for origin, pool in self._pools.items() if not pool.in_use and now - pool.last_used > _IDLE_SECONDS
        ]
        for origin in idle:
            await self._pools.pop(origin).transport.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        while self._pools:
            await self._pools.popitem()[1].transport.aclose()

    def _pool(self, origin: str) -> _Pool:
        pool = self._pools.get(origin)
        if pool is None:
            limits = httpx.Limits(
                max_connections=self._connections_per_origin,
                max_keepalive_connections=self._connections_per_origin,
                keepalive_expiry=_IDLE_SECONDS,
            )
            pool = _Pool(httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False, limits=limits))
            self._pools[origin] = pool
        return pool

    async def _drain(self, response: httpx.Response) -> None:
        """Read a short rest, so that the connection can be used again; leave a long or slow one."""
        count = 0
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                async for chunk in response.aiter_raw():
                    count += len(chunk)
                    if count > self._max_answer_bytes:
                        return
        except (TimeoutError, httpx.TransportError):
            # The status line has arrived, and that is the answer.
            return


@asynccontextmanager
async def open_outbound(
    *, connections_per_origin: int, max_answer_bytes: int, ca_file: Path | None
) -> AsyncIterator[HttpxOutbound]:
    """An `HttpxOutbound` that closes idle connections while the context lasts, and all of them at its end."""
    outbound = HttpxOutbound(
        connections_per_origin=connections_per_origin,
        max_answer_bytes=max_answer_bytes,
        tls=_tls_context(ca_file),
    )
    sweeper = asyncio.create_task(_sweep_now_and_then(outbound))
    try:
        yield outbound
    finally:
        sweeper.cancel()
        await asyncio.wait({sweeper})
        await outbound.aclose()


async def _sweep_now_and_then(outbound: HttpxOutbound) -> None:
    while True:
        await asyncio.sleep(_IDLE_SECONDS / 3)
        try:
            await outbound.sweep()
        except Exception:
            _LOG.exception("closing idle connections failed")


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    if ca_file is None:
        return httpx.create_ssl_context(trust_env=False)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"callback_ca_file {ca_file}: not readable as PEM certificates ({error})") from None


def _cause(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
