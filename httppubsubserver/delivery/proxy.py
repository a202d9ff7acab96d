"""The egress proxy: every connection to a callback becomes a tunnel (CONNECT, RFC 9110 section 9.3.6), http too.

The proxy is told an address that was checked before, never a name: what it may reach is what we may, and it resolves
nothing. TLS and the request go through the tunnel as over any other connection.

What goes wrong with the proxy is no receiver's fault (`ProxyFailed`). Often it says nothing, or a 5xx, when it was the
receiver that could not be reached. Whose fault that was, shows a little later: if the proxy has opened a tunnel to
somebody else since, the receiver's. Until then the proxy is to blame.

| what happens                                                | whose fault                        |
|-------------------------------------------------------------|------------------------------------|
| no connection to the proxy, no answer in HTTP, 407          | the proxy's                        |
| any other answer but 2xx; none at all; the connection ends  | the proxy's, unless it works since |
| after 2xx                                                   | the receiver's                     |
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias
from urllib.parse import unquote_to_bytes

from httppubsubclient.protocol.addresses import parse_address
from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.errors import ConfigurationError, InvalidUrl
from httppubsubserver.delivery.answers import AttemptFailed
from httppubsubserver.delivery.tcp import connected_to, first_connected

__all__ = ["PROXY_ERROR", "Proxy", "ProxyFailed", "parse_proxy_url"]

_LOG = logging.getLogger("httppubsub.server.outbound")

PROXY_ERROR: Final = "proxy_error"

MAX_HEAD_BYTES: Final = 8192
"""Of the proxy's answer."""
_CONNECT_SECONDS: Final = 3.0
"""How long the proxy has to take a connection."""
_HEAD: Final = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*+)?\r\n(?:[^\r\n]++\r\n)*+\r\n")
_WANTS_PROOF: Final = 407

# RFC 3986 section 3.2.1, with what people leave as it is. The last @ ends it.
_USER_INFO: Final = re.compile(r"(http://)([!-~]{1,1000})@([^@]+)")


_Began: TypeAlias = tuple[tuple[str, int], int]
"""The target of a tunnel, and how many tunnels had been opened when it was asked for."""


class ProxyFailed(AttemptFailed):
    """The proxy did not open a tunnel."""

    def __init__(self, why: str, *, excused: Callable[[], bool] = lambda: True) -> None:
        super().__init__(PROXY_ERROR, again=True)
        self.why = why
        """For the log; nothing that the proxy has said."""
        self.excused = excused
        """Whether it is the proxy's fault as far as one knows by now; asked again a little later."""

    def of_receiver(self) -> AttemptFailed:
        """The same when the proxy turns out to work."""
        return AttemptFailed("connect_error", again=True)


class Proxy:
    """One proxy, and what it did lately. Its credentials are shown nowhere."""

    def __init__(self, host: str, port: int, credentials: bytes | None = None) -> None:
        """`credentials`: `user:password` (RFC 7617)."""
        self.host = host
        self.port = port
        self._proof = b"" if credentials is None else b"proxy-authorization: Basic %b\r\n" % b64encode(credentials)
        self._count_opened = 0
        self._opened: OrderedDict[tuple[str, int], int] = OrderedDict()
        """The two targets that a tunnel was opened to last, and which tunnel that was."""
        self._opening: dict[object, _Began] = {}
        """Who is waiting for a tunnel."""
        self._failing = False

    def __repr__(self) -> str:
        return f"Proxy({self.host!r}, {self.port})"

    async def tunnel(
        self, address: str, port: int, resolve: Callable[[str, int], Awaitable[list[str]]], owner: object
    ) -> socket.socket:
        """A socket whose other end is there. No deadline of its own, see `late`. Raises `ProxyFailed`, `OSError`."""
        target = (address, port)
        authority = _authority(address, port)
        began: _Began = (target, self._count_opened)
        self._opening[owner] = began
        try:
            connected = await self._connected(resolve)
            try:
                await self._ask(connected, authority, began)
            except BaseException as error:
                connected.close()
                if isinstance(error, OSError):
                    raise self._unclear("the egress proxy has closed the connection", began) from None
                raise
        except ProxyFailed as failure:
            self._log(failure)
            raise
        finally:
            del self._opening[owner]
        self._log(None)
        self._count_opened += 1
        self._opened[target] = self._count_opened
        self._opened.move_to_end(target)
        if len(self._opened) > 2:
            self._opened.popitem(last=False)
        return connected

    def late(self, owner: object) -> ProxyFailed | None:
        """What becomes of an attempt whose time is over: None unless it is the proxy that it has waited for."""
        began = self._opening.get(owner)
        if began is None:
            return None
        failure = self._unclear("the egress proxy does not answer", began)
        self._log(failure)
        return failure

    def _log(self, failure: ProxyFailed | None) -> None:
        """One warning until it works again."""
        if failure is None and self._failing:
            _LOG.info("the egress proxy works again")
        elif failure is not None:
            _LOG.log(logging.INFO if self._failing else logging.WARNING, "no way out for a delivery: %s", failure.why)
        self._failing = failure is not None

    async def _connected(self, resolve: Callable[[str, int], Awaitable[list[str]]]) -> socket.socket:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                found = await resolve(self.host, self.port)
                return (await first_connected(found, lambda address: connected_to(address, self.port)))[0]
        except OSError as error:  # TimeoutError is one
            number = error.errno or 0  # negative for names that cannot be resolved
            why = os.strerror(number) if number > 0 else error.strerror or type(error).__name__
            # Its cause is looked at: this machine may have no room for another connection.
            raise ProxyFailed(f"the egress proxy cannot be reached: {why}") from error

    async def _ask(self, connected: socket.socket, authority: bytes, began: _Began) -> None:
        loop = asyncio.get_running_loop()
        request = b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (authority, authority, self._proof)
        await loop.sock_sendall(connected, request)
        head = b""
        while b"\r\n\r\n" not in head:
            data = await loop.sock_recv(connected, MAX_HEAD_BYTES + 1 - len(head))
            if not data:
                raise self._unclear("the egress proxy has closed the connection", began)
            head += data
            if len(head) > MAX_HEAD_BYTES:
                raise ProxyFailed("the answer of the egress proxy is too long")
        answer = _HEAD.match(head)
        if answer is None:
            raise ProxyFailed("the egress proxy does not speak HTTP/1.1")
        status = int(answer[1])
        if not 200 <= status <= 299:
            why = f"the egress proxy answered {status}"
            raise ProxyFailed(why) if status == _WANTS_PROOF else self._unclear(why, began)
        if answer.end() < len(head):
            # We speak first, in TLS and in HTTP: whoever has sent this, it is not the other end of a tunnel.
            raise ProxyFailed("the egress proxy sent something behind its answer")

    def _unclear(self, why: str, began: _Began) -> ProxyFailed:
        target, since = began

        def excused() -> bool:
            return not any(other != target and number > since for other, number in self._opened.items())

        return ProxyFailed(why, excused=excused)


def parse_proxy_url(text: str) -> Proxy:
    """`http://host:port` or `http://user:password@host:port`, escaped as in any URL. Raises `ConfigurationError`,
    whose text never holds any of it."""
    expected = "egress_proxy should be http://host:port or http://user:password@host:port"
    credentials: bytes | None = None
    match = _USER_INFO.fullmatch(text)
    if match is not None:
        credentials = unquote_to_bytes(match[2])
        text = match[1] + match[3]
        if b":" not in credentials or re.search(rb"[\x00-\x1f\x7f]", credentials):
            raise ConfigurationError(f"{expected}; the user's name and password are separated by ':'")
    try:
        url = parse_callback_url(text)
    except InvalidUrl:
        raise ConfigurationError(expected) from None
    if url.scheme != "http" or url.target != "/" or url.fragment is not None:
        raise ConfigurationError(f"{expected}, without anything behind it")
    return Proxy(url.host, url.port, credentials)


def _authority(address: str, port: int) -> bytes:
    parsed = parse_address(address)
    # A zone is a matter of this machine. The policy allows none unless somebody wrote down that network.
    if parsed is None or "%" in address:
        raise OSError("an address with a zone cannot be reached by way of a proxy")
    return (f"[{parsed}]:{port}" if ":" in str(parsed) else f"{parsed}:{port}").encode("ascii")
