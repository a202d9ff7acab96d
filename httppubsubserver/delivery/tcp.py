"""TCP connections to addresses. Nothing is resolved here, so what is connected to is what was checked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from httppubsubserver.delivery.answers import AttemptFailed

__all__ = ["connected_to", "first_connected"]

_MAX_TRIED: Final = 4
"""How many addresses of one name are tried, in the order in which the resolver gives them."""

_NEXT_SECONDS: Final = 2.0
"""An address that has not answered by then is passed over, when there is another one."""


async def first_connected(
    addresses: Sequence[str], connect: Callable[[str], Awaitable[socket.socket]]
) -> tuple[socket.socket, str]:
    """What `connect` gives for the first address that it succeeds with, and which. Raises what the last try raised."""
    *others, last = addresses[:_MAX_TRIED]
    for address in others:
        try:
            async with asyncio.timeout(_NEXT_SECONDS):
                return await connect(address), address
        except (OSError, AttemptFailed):  # TimeoutError is an OSError
            continue
    return await connect(last), last


async def connected_to(address: str, port: int) -> socket.socket:
    """A socket, not blocking. Raises `OSError`; has no deadline of its own."""
    unconnected = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        unconnected.setblocking(False)
        await asyncio.get_running_loop().sock_connect(unconnected, (address, port))
    except BaseException:
        unconnected.close()
        raise
    return unconnected
