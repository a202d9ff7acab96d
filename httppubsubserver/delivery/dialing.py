"""How a connection to an origin is made: addresses, TCP, TLS. No proxy and nothing of the environment takes part."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from typing import Final

from httppubsubclient.protocol.callback_urls import CallbackUrl
from httppubsubserver.delivery.answers import AttemptFailed
from httppubsubserver.delivery.tls_sessions import TlsSessions

__all__ = ["dial", "reason_of"]

_MAX_ADDRESSES: Final = 4
"""How many addresses of one name are tried, in the order in which the resolver gives them."""

_NEXT_ADDRESS_SECONDS: Final = 2.0
"""An address that has not answered by then is passed over, when there is another one."""

_HANDSHAKE_SECONDS: Final = 86_400.0
"""Never reached: the deadline of the attempt ends a handshake, not a second clock beside it."""

_CLOSE_NOTIFY_SECONDS: Final = 1.0


async def dial(callback: CallbackUrl, protocol: asyncio.Protocol, tls: TlsSessions) -> None:
    """Connect `protocol` to the callback's host. Raises `AttemptFailed`; has no deadline of its own."""
    try:
        connected = await _connected(callback.host, callback.port)
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


async def _connected(host: str, port: int) -> socket.socket:
    """A socket that is connected to one of the host's addresses. Raises `OSError`."""
    addresses = (await _addresses(host, port))[:_MAX_ADDRESSES]
    for family, address in addresses[:-1]:
        try:
            async with asyncio.timeout(_NEXT_ADDRESS_SECONDS):
                return await _connected_to(family, address, port)
        except OSError:  # TimeoutError is one
            continue
    family, address = addresses[-1]
    return await _connected_to(family, address, port)


async def _addresses(host: str, port: int) -> list[tuple[int, str]]:
    """At least one (family, address). Raises `OSError`."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        addresses = list(dict.fromkeys((int(family), str(where[0])) for family, _, _, _, where in found))
        if not addresses:
            raise OSError("the name has no address") from None
        return addresses
    return [(socket.AF_INET6 if version == 6 else socket.AF_INET, host)]


async def _connected_to(family: int, address: str, port: int) -> socket.socket:
    unconnected = socket.socket(family, socket.SOCK_STREAM)
    try:
        unconnected.setblocking(False)
        await asyncio.get_running_loop().sock_connect(unconnected, (address, port))
    except BaseException:
        unconnected.close()
        raise
    return unconnected
