"""One POST to a subscriber, bounded in time and in what is read of the answer.

`Outbound` is the seam: the dispatcher knows nothing below it. `HttpOutbound` is an HTTP/1.1 client for this one verb.
It follows no redirects, keeps no cookies, reads nothing of the environment, and costs a tenth of what a general client
does: answers.py reads, egress.py says which addresses may be dialled, dialing.py connects, connection.py sends,
connections.py keeps what can be used again.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import httpx

from httppubsubclient import __version__
from httppubsubclient.bodies import Body
from httppubsubclient.protocol.callback_urls import CallbackUrl
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.tls import Identity
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.answers import Answer, AttemptFailed
from httppubsubserver.delivery.connection import Exchange
from httppubsubserver.delivery.connections import Connections
from httppubsubserver.delivery.egress import Egress
from httppubsubserver.delivery.tls_sessions import TlsSessions

__all__ = [
    "Answer",
    "AttemptFailed",
    "ClientCertificate",
    "HttpOutbound",
    "Outbound",
    "Post",
    "client_certificate",
    "open_outbound",
    "tls_context",
]

_CONSTANT_HEADERS: Final = (
    f"user-agent: httppubsub/{__version__}\r\n"
    "accept: */*\r\n"
    # A compressed answer could unpack into something a thousand times its size; nothing of it is of use here.
    "accept-encoding: identity\r\n"
)

_MAX_STARTS: Final = 10_000
"""How many callbacks have the beginning of their requests ready; beyond it all are made anew."""


class Post(Protocol):
    """One POST under way."""

    def cancel(self) -> object:
        """Give up: `done` is not called any more, and the connection is closed. Does nothing when it is over."""


class Outbound(Protocol):
    """Sends to subscribers."""

    def post(
        self,
        callback: CallbackUrl,
        head: bytes,
        body: Body,
        *,
        deadline: float,
        done: Callable[[Answer | AttemptFailed], None],
        head_again: Callable[[], bytes] | None = None,
    ) -> Post:
        """POST `body` to `callback`.

        `head`: complete header lines, each ended by CRLF, without Host and Content-Length. `deadline`: event loop
        time at which the attempt ends, from connecting to the end of the answer's head. `done` is called exactly
        once, from the event loop and never from within this; an answer of 2xx is told as soon as its head is there,
        any other within a second of that, with the beginning of its body. The body must stay open until then, and
        until a `cancel`.

        A kept connection may turn out to be closed by the peer, with the request on its way. It is then sent once more
        over a new one, with what `head_again` gives (it may raise `PubSubError`) in place of `head`.
        """


class HttpOutbound:
    """`Outbound` over `Connections`."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self._starts: dict[str, bytes] = {}

    def post(
        self,
        callback: CallbackUrl,
        head: bytes,
        body: Body,
        *,
        deadline: float,
        done: Callable[[Answer | AttemptFailed], None],
        head_again: Callable[[], bytes] | None = None,
    ) -> Post:
        """See `Outbound`."""
        start = self._starts.get(callback.request_url) or self._start(callback)
        exchange = Exchange(callback, start, head, body, deadline, done, head_again)
        self.connections.send(exchange)
        return exchange

    def _start(self, callback: CallbackUrl) -> bytes:
        """Request line, Host and the constant headers. A canonical URL holds no character that could end a line."""
        authority = callback.request_url.split("/", 3)[2]
        start = f"POST {callback.target} HTTP/1.1\r\nhost: {authority}\r\n{_CONSTANT_HEADERS}".encode("ascii")
        if len(self._starts) >= _MAX_STARTS:
            self._starts.clear()
        self._starts[callback.request_url] = start
        return start


@asynccontextmanager
async def open_outbound(
    *,
    connections_per_origin: int,
    max_answer_bytes: int,
    ca_file: Path | None,
    step_seconds: float = math.inf,
    egress: Egress | None = None,
    certificate: ClientCertificate | None = None,
) -> AsyncIterator[HttpOutbound]:
    """An `HttpOutbound` whose connections are all closed at the end; at most so many idle ones are kept per origin.

    `step_seconds` end an attempt before its deadline when connecting takes longer, or when a receiver of a large body
    takes nothing of it for so long, or does not answer for so long after its last byte. `egress` says which addresses
    may be dialled, by default all; whoever gives one closes it. `certificate` is what a server that asks for one is
    shown. Raises `ConfigurationError`.
    """
    tls = tls_context(ca_file, certificate)
    tls.set_alpn_protocols(["http/1.1"])
    connections = Connections(
        idle_per_origin=connections_per_origin,
        max_answer_bytes=max_answer_bytes,
        tls=TlsSessions(tls),
        step_seconds=step_seconds,
        egress=egress,
    )
    try:
        yield HttpOutbound(connections)
    finally:
        await connections.aclose()


class ClientCertificate(NamedTuple):
    """PEM files: a certificate with what is between it and its CA, and its private key, which may be in the same."""

    certfile: Path
    keyfile: Path | None = None


def client_certificate(config: ServerConfig) -> ClientCertificate | None:
    """What callbacks are shown. Raises `ConfigurationError`."""
    if config.callback_client_certfile is not None:
        return ClientCertificate(config.callback_client_certfile, config.callback_client_keyfile)
    if config.callback_client_keyfile is not None:
        raise ConfigurationError("callback_client_keyfile is set and callback_client_certfile is not: set both")
    return None


def tls_context(ca_file: Path | None, certificate: ClientCertificate | None = None) -> ssl.SSLContext:
    """Whom to trust, and what to show. Raises `ConfigurationError`, which names the setting."""
    if ca_file is None:
        # The certificates of certifi, without SSL_CERT_FILE and SSL_CERT_DIR.
        context = httpx.create_ssl_context(trust_env=False)
    else:
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"callback_ca_file {ca_file}: not readable as PEM certificates ({error})"
            ) from None
    # Set by SSLKEYLOGFILE.
    context.keylog_filename = None  # type: ignore[assignment]
    if certificate is not None:
        _load(context, certificate)
    return context


def _load(context: ssl.SSLContext, certificate: ClientCertificate) -> None:
    def no_password() -> str:
        # Without this OpenSSL asks for it at the terminal, and waits.
        raise _HasPasswordError

    certfile, keyfile = certificate
    shown = f"callback_client_certfile {certfile}"
    if keyfile is not None:
        shown += f", callback_client_keyfile {keyfile}"
    try:
        context.load_cert_chain(certfile, keyfile, no_password)
    except _HasPasswordError:
        raise ConfigurationError(f"{shown}: the private key has a password; give one without, at mode 0600") from None
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"{shown}: should be a certificate and its private key in PEM ({_reason(error)})"
        ) from None
    # Everybody who asks for it would refuse one that has expired.
    Identity(certfile, keyfile, "callback_client_certfile", "callback_client_keyfile").check()


class _HasPasswordError(Exception):
    """A private key that cannot be read without asking somebody."""


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return {"KEY_VALUES_MISMATCH": "the key is that of another certificate"}.get(reason, reason)
