"""Peers of every temper behind real sockets, and a network that must be empty again when a test is over."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import math
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from httppubsubclient.bodies import Body, spool
from httppubsubclient.protocol.callback_urls import CallbackUrl, parse_callback_url
from httppubsubserver.delivery.egress import Egress
from httppubsubserver.delivery.outbound import Answer, AttemptFailed, Outbound, Post, open_outbound
from httppubsubserver.delivery.resolving import Resolver

LOOP_FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
with suppress(ImportError):
    import uvloop

    LOOP_FACTORIES["uvloop"] = uvloop.new_event_loop

LIMIT = 10.0
"""Seconds after which a test has failed; none comes near it."""

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
HEAD = b"x-one: 1\r\ncontent-type: a/b\r\n"
SMALL = Body.of(b"hello")
LARGE = Body.of(os.urandom(8_000_000))

Outcome = Answer | AttemptFailed


class Wire:
    """One connection as its peer sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> tuple[str, bytes]:
        """Read one: its head, its body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = next((line for line in head.split("\r\n") if line.startswith("content-length: ")), "content-length: 0")
        return head, await self.reader.readexactly(int(length[16:]))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def closed(self) -> None:
        """Wait until the other side has closed, whatever it sends before."""
        with suppress(ConnectionError):
            while await self.reader.read(1 << 20):
                pass

    def reset(self) -> None:
        """Close with an RST."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Temper = Callable[[Wire, int], Awaitable[None]]


class Peer:
    """A server that does with connection number n = 0, 1, ... what its temper says, then closes it."""

    def __init__(self, temper: Temper, host: str, scheme: str) -> None:
        self._temper = temper
        self._host = f"[{host}]" if ":" in host else host
        self._scheme = scheme
        self.port = 0
        self.connections = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self, tls: ssl.SSLContext | None) -> None:
        """Listen: on a port of its own the first time, on the same one later."""
        self._server = await asyncio.start_server(
            self.serve, self._host.strip("[]"), self.port, ssl=tls, limit=1 << 20, backlog=1000
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening, and end what is left."""
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()
        while pending := [task for task in self.tasks if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        number, self.connections = self.connections, self.connections + 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._temper(Wire(reader, writer), number)
        finally:
            writer.transport.abort()

    def callback(self, path: str = "/hook", host: str | None = None) -> CallbackUrl:
        return parse_callback_url(f"{self._scheme}://{host or self._host}:{self.port}{path}")

    async def finished(self) -> None:
        """Wait until every connection was dealt with."""
        async with asyncio.timeout(LIMIT):
            while pending := [task for task in self.tasks if not task.done()]:
                await asyncio.wait(pending)


class Client:
    """An outbound whose promises are checked: `done` once, from the event loop, and never after a cancel."""

    def __init__(self, outbound: Outbound) -> None:
        self.outbound = outbound

    def start(
        self,
        callback: CallbackUrl,
        body: Body = SMALL,
        *,
        head: bytes = HEAD,
        seconds: float = LIMIT,
        head_again: Callable[[], bytes] | None = None,
    ) -> tuple[Post, asyncio.Future[Outcome]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        posting = True

        def done(outcome: Outcome) -> None:
            assert not posting
            future.set_result(outcome)

        deadline = loop.time() + seconds
        post = self.outbound.post(callback, head, body, deadline=deadline, done=done, head_again=head_again)
        posting = False
        return post, future

    async def post(self, callback: CallbackUrl, body: Body = SMALL, *, seconds: float = LIMIT) -> Outcome:
        async with asyncio.timeout(2 * LIMIT):
            return await self.start(callback, body, seconds=seconds)[1]


class Network:
    """What a test opens; all of it is closed with this, in the right order."""

    def __init__(self, stack: AsyncExitStack, authority: Authority) -> None:
        self._stack = stack
        self.authority = authority

    async def peer(self, temper: Temper, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Peer:
        """A server on a port of its own."""
        peer = Peer(temper, host, "http" if tls is None else "https")
        await peer.open(tls)
        self._stack.push_async_callback(peer.close)
        return peer

    async def restarted(self, peer: Peer, tls: ssl.SSLContext | None) -> None:
        """The same server on the same port, with another context and none of its connections."""
        await peer.close()
        await peer.open(tls)

    async def client(
        self,
        *,
        connections_per_origin: int = 10,
        trusting: bool = True,
        step_seconds: float = math.inf,
        resolver: Resolver | None = None,
        egress: Egress | None = None,
    ) -> Client:
        """An outbound that trusts the authority, or the certificates that it trusts by itself."""
        opened = open_outbound(
            connections_per_origin=connections_per_origin,
            max_answer_bytes=65_536,
            ca_file=self.authority.file if trusting else None,
            step_seconds=step_seconds,
            egress=egress if resolver is None else Egress(resolver=resolver),
        )
        return Client(await self._stack.enter_async_context(opened))


@asynccontextmanager
async def open_network(authority: Authority) -> AsyncIterator[Network]:
    """At the end no socket and no task may be left."""
    before, tasks = open_sockets(), asyncio.all_tasks()
    async with AsyncExitStack() as stack:
        yield Network(stack, authority)
    async with asyncio.timeout(LIMIT):
        while open_sockets() - before:
            await asyncio.sleep(0)
    left = asyncio.all_tasks() - tasks - {asyncio.current_task()}
    assert not left


def open_sockets() -> set[str]:
    """Those of TCP; the event loops have others of their own."""
    names = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            names.add(os.readlink(f"/proc/self/fd/{fd}"))
    tables = [Path(f"/proc/self/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    return names & {f"socket:[{line.split()[9]}]" for table in tables for line in table}


@asynccontextmanager
async def deaf_port(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    """A port where connecting takes for ever: its queue is full."""
    with socket.socket() as listener:
        listener.bind((host, port))
        listener.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        try:
            yield listener.getsockname()[1]
        finally:
            for filler in fillers:
                filler.close()


async def spooled(data: bytes) -> Body:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    return await spool(chunks(), spool_bytes=1000, max_bytes=1 << 30)


async def accept(wire: Wire, number: int) -> None:
    """Answers everything: 200 on the first connection, 201 on the second, ..."""
    while True:
        await wire.request()
        await wire.send(b"HTTP/1.1 %d OK\r\ncontent-length: 2\r\n\r\nok" % (200 + number))


def answering(*answers: bytes) -> Temper:
    """One request an answer on each connection, and then waits for the other side to close."""

    async def temper(wire: Wire, number: int) -> None:
        for answer in answers:
            await wire.request()
            await wire.send(answer)
        await wire.closed()

    return temper


def failed(outcome: Outcome, reason: str, *, again: bool = True, hanging: bool = False) -> None:
    assert isinstance(outcome, AttemptFailed), outcome
    assert (outcome.reason, outcome.again, outcome.hanging) == (reason, again, hanging)


class Authority:
    """Makes certificates and the contexts of servers that show them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        self.file = directory / "ca.pem"
        self.file.write_bytes(self._pem(self._certificate(self._name, self._key, ca=True)))

    def server(self, name: str = "127.0.0.1", *, self_signed: bool = False, expired: bool = False) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        path = self._directory / "server.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        certificate = self._certificate(
            subject, key, name=name, signer=key if self_signed else self._key, expired=expired
        )
        path.write_bytes(private + self._pem(certificate))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context

    def _certificate(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        name: str | None = None,
        signer: ec.EllipticCurvePrivateKey | None = None,
        ca: bool = False,
        expired: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        issuer = subject if signer is key else self._name
        builder = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - 3 * day)
            .not_valid_after(now - day if expired else now + day)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key((signer or self._key).public_key()), critical=False
            )
        )
        if ca:
            usage = x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            )
            builder = builder.add_extension(usage, critical=True)
        if name is not None:
            try:
                general: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
            except ValueError:
                general = x509.DNSName(name)
            builder = builder.add_extension(x509.SubjectAlternativeName([general]), critical=False)
        return builder.sign(signer or self._key, hashes.SHA256())

    @staticmethod
    def _pem(certificate: x509.Certificate) -> bytes:
        return certificate.public_bytes(serialization.Encoding.PEM)
