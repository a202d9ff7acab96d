"""How a connection to an origin is made: addresses that may be dialled, TCP, TLS.

Nothing of the environment takes part.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from functools import partial
from typing import Final

from httppubsubclient.protocol.callback_urls import CallbackUrl
from httppubsubserver.delivery.answers import AttemptFailed
from httppubsubserver.delivery.egress import Egress, blocked
from httppubsubserver.delivery.tcp import first_connected
from httppubsubserver.delivery.tls_sessions import TlsSessions

__all__ = ["dial", "reason_of"]

_HANDSHAKE_SECONDS: Final = 86_400.0
"""Never reached: the deadline of the attempt ends a handshake, not a second clock beside it."""

_CLOSE_NOTIFY_SECONDS: Final = 1.0


async def dial(
    callback: CallbackUrl,
    protocol: asyncio.Protocol,
    tls: TlsSessions,
    egress: Egress,
    dialled: Callable[[str], None] = lambda address: None,
) -> None:
    """Connect `protocol` to the callback's host, at an address that `egress` allows; `dialled` is told which.

    Raises `AttemptFailed`; has no deadline of its own.
    """
    try:
        addresses = await egress.addresses(callback.host, callback.port)
        connected, address = await first_connected(addresses, partial(egress.connected, callback.port, protocol))
        if not egress.allows(address, callback.port):
            # Not any more: the policy has changed meanwhile.
            connected.close()
            raise blocked()
        dialled(address)
        loop = asyncio.get_running_loop()
        # From here on the transport owns the socket and closes it, whatever happens.
        if callback.scheme == "http":
            await loop.create_connection(lambda: protocol, sock=connected)
        else:
            try:
                await loop.create_connection(
                    lambda: protocol,
                    sock=connected,
                    ssl=tls.context(callback.origin),
                    server_hostname=callback.host,
                    ssl_handshake_timeout=_HANDSHAKE_SECONDS,
                    ssl_shutdown_timeout=_CLOSE_NOTIFY_SECONDS,
                )
            except BaseException:
                tls.forget(callback.origin)
                raise
    except OSError as error:
        reason = reason_of(error, otherwise="connect_error")
        raise AttemptFailed(reason, again=reason != "tls_error") from error


def reason_of(error: BaseException | None, *, otherwise: str) -> str:
    """`tls_error` when the other side speaks TLS and the two do not get on; a connection that just ends is another."""
    ended = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
    return "tls_error" if isinstance(error, ssl.SSLError) and not isinstance(error, ended) else otherwise
