"""How a subscriber is reached: names, addresses, TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubserver.delivery import tcp
from httppubsubserver.delivery.outbound import Answer, ClientCertificate, open_outbound, tls_context
from httppubsubserver.delivery.resolving import Resolver
from tests.server.peers import (
    LARGE,
    LOOP_FACTORIES,
    OK,
    SMALL,
    Client,
    Network,
    Outcome,
    Wire,
    accept,
    deaf_port,
    failed,
    spooled,
)

__all__ = ["LOOP_FACTORIES"]


async def test_an_ipv6_address(network: Network) -> None:
    hosts: list[str] = []

    async def temper(wire: Wire, number: int) -> None:
        hosts.append((await wire.request())[0].split("\r\n")[1])
        await wire.send(OK)

    try:
        peer = await network.peer(temper, host="::1")
    except OSError:
        pytest.skip("there is no IPv6 here")
    client = await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)
    assert hosts == [f"host: [::1]:{peer.port}"]


async def test_a_name_is_resolved(network: Network) -> None:
    peer, client = await network.peer(accept), await network.client()
    assert await client.post(peer.callback(host="localhost")) == Answer(200, None)


def names(*addresses: str) -> Resolver:
    """Every name has these."""

    async def resolve(host: str, port: int) -> list[str]:
        return list(addresses)

    return resolve


def fails(error: Exception) -> Resolver:
    """No name can be resolved."""

    async def resolve(host: str, port: int) -> list[str]:
        raise error

    return resolve


async def test_the_next_address_of_a_name_is_tried(network: Network) -> None:
    peer, client = (
        await network.peer(accept),
        await network.client(resolver=names("127.0.0.2", "127.0.0.3", "127.0.0.1")),
    )
    assert await client.post(peer.callback(host="name.example")) == Answer(200, None)


async def test_an_address_that_does_not_answer_is_passed_over(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "_NEXT_SECONDS", 0.05)
    peer, client = await network.peer(accept), await network.client(resolver=names("127.0.0.2", "127.0.0.1"))
    async with deaf_port("127.0.0.2", peer.port):
        assert await client.post(peer.callback(host="name.example")) == Answer(200, None)


async def test_a_name_that_does_not_exist(network: Network) -> None:
    client = await network.client(resolver=fails(socket.gaierror(socket.EAI_NONAME, "unknown")))
    failed(await client.post(parse_callback_url("http://name.example/")), "connect_error")


@pytest.mark.parametrize("addresses", [(), tuple(f"127.0.{at // 256}.{at % 256}" for at in range(257))], ids=len)
async def test_a_name_with_no_address_or_too_many(addresses: tuple[str, ...], network: Network) -> None:
    client = await network.client(resolver=names(*addresses))
    failed(await client.post(parse_callback_url("http://name.example/")), "connect_error")


async def test_an_unexpected_error_while_connecting_is_an_outcome_too(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    client = await network.client(resolver=fails(ZeroDivisionError()))
    failed(await client.post(parse_callback_url("http://name.example/")), "connect_error", again=False)
    assert "ZeroDivisionError" in caplog.text


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_https(name: str, network: Network) -> None:
    seen: list[tuple[object, bytes]] = []

    async def temper(wire: Wire, number: int) -> None:
        while True:
            _, body = await wire.request()
            seen.append((wire.writer.get_extra_info("ssl_object").selected_alpn_protocol(), body))
            await wire.send(OK)

    peer = await network.peer(temper, tls=network.authority.server(name))
    client = await network.client()
    with await spooled(LARGE.data or b"") as file:
        for body in (SMALL, LARGE, file, SMALL):
            assert await client.post(peer.callback(host=name), body) == Answer(200, None)
    assert seen == [("http/1.1", data) for data in (SMALL.data, LARGE.data, LARGE.data, SMALL.data)]
    assert peer.connections == 1


@pytest.mark.parametrize("fault", ["self_signed", "expired", "another address", "a name for an address", "unknown"])
async def test_a_certificate_that_does_not_convince(fault: str, network: Network) -> None:
    shown: dict[str, Callable[[], ssl.SSLContext]] = {
        "self_signed": lambda: network.authority.server(self_signed=True),
        "expired": lambda: network.authority.server(expired=True),
        "another address": lambda: network.authority.server("127.0.0.2"),
        "a name for an address": lambda: network.authority.server("localhost"),
        "unknown": network.authority.server,
    }
    peer = await network.peer(accept, tls=shown[fault]())
    client = await network.client(trusting=fault != "unknown")
    failed(await client.post(peer.callback()), "tls_error", again=False)


async def test_a_certificate_for_the_address_is_none_for_the_name(network: Network) -> None:
    """Neither by SAN, nor by a common name that says it."""
    peer = await network.peer(accept, tls=network.authority.server("127.0.0.1"))
    client = await network.client()
    failed(await client.post(peer.callback(host="localhost")), "tls_error", again=False)
    assert await client.post(peer.callback()) == Answer(200, None)


async def refused_by(context: ssl.SSLContext, client: Client) -> Outcome:
    """The outcome of a POST to a server that ends the handshake with an alert, which asyncio's own never sends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            accepted, _ = listener.accept()
            with context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False) as wrapped:
                with pytest.raises(ssl.SSLError):
                    wrapped.do_handshake()
                wrapped.shutdown(socket.SHUT_WR)
                with suppress(OSError):
                    while socket.socket.recv(wrapped, 1000):
                        pass

        serving = asyncio.create_task(asyncio.to_thread(serve))
        outcome = await client.post(parse_callback_url(f"https://127.0.0.1:{listener.getsockname()[1]}/"))
        await serving
        return outcome


async def test_a_server_that_wants_a_certificate_of_ours(network: Network) -> None:
    context = network.authority.server()
    context.verify_mode = ssl.CERT_REQUIRED
    failed(await refused_by(context, await network.client()), "tls_error", again=False)


async def shown(network: Network, directory: Path, *, separate: bool) -> tuple[ClientCertificate, ssl.SSLContext]:
    """A certificate of ours, and the context of a server that wants one."""
    network.authority.server("broadcaster.example")
    both = (network.authority.file.parent / "server.pem").read_bytes()
    key, certificate = both.split(b"-----BEGIN CERTIFICATE-----")
    (directory / "key.pem").write_bytes(key if separate else b"")
    (directory / "certificate.pem").write_bytes(b"-----BEGIN CERTIFICATE-----" + certificate if separate else both)
    context = network.authority.server()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(network.authority.file)
    keyfile = directory / "key.pem" if separate else None
    return ClientCertificate(directory / "certificate.pem", keyfile), context


@pytest.mark.parametrize("separate", [True, False])
async def test_a_certificate_of_ours_is_shown_to_who_wants_one(
    separate: bool, network: Network, tmp_path: Path
) -> None:
    names: list[object] = []

    async def temper(wire: Wire, number: int) -> None:
        names.append(wire.writer.get_extra_info("peercert")["subject"])
        await wire.request()
        await wire.send(OK)

    certificate, context = await shown(network, tmp_path, separate=separate)
    peer = await network.peer(temper, tls=context)
    async with open_outbound(
        connections_per_origin=1, max_answer_bytes=1, ca_file=network.authority.file, certificate=certificate
    ) as outbound:
        assert await Client(outbound).post(peer.callback()) == Answer(200, None)
    assert names == [((("commonName", "broadcaster.example"),),)]


async def test_files_that_are_no_certificate(network: Network, tmp_path: Path) -> None:
    certificate, _ = await shown(network, tmp_path, separate=True)
    network.authority.server("another.example")
    other = network.authority.file.parent / "server.pem"
    locked = tmp_path / "locked.pem"
    key = load_pem_private_key((tmp_path / "key.pem").read_bytes(), None)
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"sesame")))
    (tmp_path / "empty.pem").write_text("")
    for keyfile, fault in (
        (tmp_path / "missing.pem", "No such file"),
        (tmp_path / "empty.pem", "certificate and its private key in PEM"),
        (other, "the key is that of another certificate"),
        (locked, "has a password"),
    ):
        with pytest.raises(ConfigurationError, match=f"callback_client_certfile.*{keyfile.name}.*{fault}"):
            tls_context(None, ClientCertificate(certificate.certfile, keyfile))


async def test_the_environment_says_nothing_about_whom_to_trust(
    network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(network.authority.file))
    monkeypatch.setenv("SSL_CERT_DIR", str(network.authority.file.parent))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(network.authority.file))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    context = network.authority.server()
    context.keylog_filename = None  # type: ignore[assignment]
    peer = await network.peer(accept, tls=context)
    failed(await (await network.client(trusting=False)).post(peer.callback()), "tls_error", again=False)
    assert await (await network.client()).post(peer.callback()) == Answer(200, None)
    assert not (tmp_path / "keys").read_text().count("SECRET")


async def test_tls_1_1_is_refused(network: Network) -> None:
    context = network.authority.server()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    failed(await refused_by(context, await network.client()), "tls_error", again=False)


async def test_https_to_a_port_that_speaks_http(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.reader.read(1)
        await wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    peer, client = await network.peer(temper), await network.client()
    failed(await client.post(parse_callback_url(f"https://127.0.0.1:{peer.port}/")), "tls_error", again=False)


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_connection_that_ends_within_the_handshake(how: str, network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.reader.read(1)
        if how == "reset":
            wire.reset()

    peer, client = await network.peer(temper), await network.client()
    failed(await client.post(parse_callback_url(f"https://127.0.0.1:{peer.port}/")), "connect_error")


async def test_a_stale_tls_connection_is_replaced(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 %d OK\r\ncontent-length: 0\r\n\r\n" % (200 + number))
        await wire.request()

    peer, client = await network.peer(temper, tls=network.authority.server()), await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)
    assert await client.post(peer.callback()) == Answer(201, None)
    assert peer.connections == 2


async def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        async with open_outbound(connections_per_origin=1, max_answer_bytes=1, ca_file=tmp_path / "ca.pem"):
            pass
