"""How a connection to an origin is made: addresses that may be dialled, TCP, TLS.

Nothing of the environment takes part.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final

from httppubsubclient.protocol.callback_urls import CallbackUrl
from httppubsubserver.delivery.answers import AttemptFailed
from httppubsubserver.delivery.egress import Egress, blocked
from httppubsubserver.delivery.tls_sessions import TlsSessions

__all__ = ["dial", "reason_of"]

_MAX_ADDRESSES: Final = 4
"""How many addresses of one name are tried, in the order in which the resolver gives them."""

_NEXT_ADDRESS_SECONDS: Final = 2.0
"""An address that has not answered by then is passed over, when there is another one."""

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
        connected, address = await _connected(callback.host, callback.port, egress)
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


async def _connected(host: str, port: int, egress: Egress) -> tuple[socket.socket, str]:
    """A socket that is connected to one of the host's addresses, and which. Raises `OSError`, `AttemptFailed`."""
    addresses = (await egress.addresses(host, port))[:_MAX_ADDRESSES]
    for address in addresses[:-1]:
        try:
            async with asyncio.timeout(_NEXT_ADDRESS_SECONDS):
                return await _connected_to(address, port), address
        except OSError:  # TimeoutError is one
            continue
    return await _connected_to(addresses[-1], port), addresses[-1]


async def _connected_to(address: str, port: int) -> socket.socket:
    unconnected = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        unconnected.setblocking(False)
        # An address, never a name: nothing is resolved here.
        await asyncio.get_running_loop().sock_connect(unconnected, (address, port))
    except BaseException:
        unconnected.close()
        raise
    return unconnected
