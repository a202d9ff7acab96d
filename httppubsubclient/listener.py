"""A uvicorn inside the running event loop: ready when entered, gone when left, and nothing of the host application
is touched: no signals, no logging, no lifespan."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn

from httppubsubclient.admission import AdmittingServer
from httppubsubclient.config import HttpPubSubBindUvicornConfig
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.request_heads import bounded_http_protocol
from httppubsubclient.tls import Identity, ServerTls

__all__ = ["bound_socket", "listener_tls", "listening"]

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

logger = logging.getLogger(__name__)

_STOP_SECONDS = 3
"""How long requests that are being answered may take when the listener stops; then their connections are cut."""

_MAX_CONNECTIONS = 1000
"""A broadcaster needs 32 for each of its processes, unless it is told otherwise."""

_KEEP_ALIVE_SECONDS = 75
"""Broadcasters keep their connections: closing them early would only cost them another handshake."""


def bound_socket(address: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `ConfigurationError` that says what is wrong."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = "another process listens there: stop it, or choose another port (0 takes a free one)"
        elif error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
            reason = "it is not an address of this machine; '0.0.0.0' stands for all of them"
        elif error.errno == errno.EACCES:
            reason = "this process may not use that port"
        else:
            reason = error.strerror or str(error)
        raise ConfigurationError(f"bind: cannot listen on {address} port {port}: {reason}") from error


def listener_tls(bind: HttpPubSubBindUvicornConfig) -> ServerTls | None:
    """None when it names no certificate. Raises `ConfigurationError`."""
    names = "bind['ssl_certfile']", "bind['ssl_keyfile']"
    identity = Identity.of(bind.get("ssl_certfile"), bind.get("ssl_keyfile"), *names)
    if identity is None:
        return None
    ca_certs = bind.get("ssl_ca_certs")
    return ServerTls(
        identity, client_ca_file=None if ca_certs is None else Path(ca_certs), ca_setting="bind['ssl_ca_certs']"
    )


@asynccontextmanager
async def listening(app: ASGIApp, sock: socket.socket, tls: ServerTls | None = None) -> AsyncIterator[None]:
    """Serve `app` on `sock` while the context lasts; the socket is closed at its end."""
    server = _Server(
        _Config(
            app,
            http=bounded_http_protocol(),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_STOP_SECONDS,
        ),
        tls,
    )
    watching = None if tls is None else asyncio.create_task(tls.keep_watch(), name="watch the certificate")
    serving = asyncio.create_task(server.serve(sockets=[sock]), name="listen for deliveries")
    try:
        ready = asyncio.create_task(server.ready.wait())
        try:
            await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if serving.done():
            serving.result()
            raise ConfigurationError("bind: uvicorn ended as soon as it was started")
        yield
    finally:
        if watching is not None:
            watching.cancel()
        server.stop.set()
        _, running = await asyncio.wait({serving}, timeout=_STOP_SECONDS + 2)
        if running:
            logger.warning("the listener did not stop in time; it is cut off")
            serving.cancel()
            await asyncio.wait({serving})
        sock.close()


class _Config(uvicorn.Config):
    def configure_logging(self) -> None:
        """Leave logging alone: with access_log off, uvicorn would mute the access log of the whole process."""


class _Server(AdmittingServer):
    def __init__(self, config: uvicorn.Config, tls: ServerTls | None) -> None:
        super().__init__(config, max_connections=_MAX_CONNECTIONS, tls=None if tls is None else lambda: tls.context)
        self.stop = asyncio.Event()

    async def main_loop(self) -> None:
        """Wait until it is time to stop, instead of asking ten times a second."""
        await self.stop.wait()
