"""B. Addresses: literal, behind a name, behind a proxy; the one that was checked is the one that is dialled."""

from __future__ import annotations

import asyncio
import os
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from httppubsubclient.protocol.addresses import AddressPolicy
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.messages import SubscribeRequest
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from tests.hardening.support import Desk, OpenDesk, OpenReceivers
from tests.server.conftest import NO_AUTH
from tests.server.peers import Authority

EVERY_NAME = ("loopback", "private", "public")
PUBLIC_ADDRESS = "93.184.215.14"

LOOPBACK = [
    *("127.0.0.1", "127.0.0.2", "127.255.255.254", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0:0"),
    "::ffff:7f00:1",
]
METADATA = [
    *("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "168.63.129.16", "100.100.100.200"),
    *("::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "fe80::a9fe:a9fe"),
]
PRIVATE_ADDRESSES = [
    *("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "100.127.255.254"),
    *("fc00::1", "fd12:3456:789a::1", "::ffff:10.0.0.1", "::ffff:c0a8:1"),
]
NO_INTERNET = [
    *("169.254.0.1", "fe80::1", "fe80::1%lo", "fec0::1", "ff02::1", "ff02::1%lo", "ff0e::1", "224.0.0.1"),
    *("239.255.255.250", "255.255.255.255", "240.0.0.1", "192.0.0.1", "192.0.0.8", "198.18.0.1", "198.19.255.254"),
    *("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1", "5f00::1", "100::1", "192.88.99.1"),
    *("0.1.2.3", "::127.0.0.1", "::8.8.8.8", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::"),
    *("2001::1", "2001:10::1", "2001:20::1", "fe80::5efe:7f00:1", "4000::1", "8000::1", "1::1"),
]


class Names:
    """Resolves by a table; each question is written down. A name with several lists gives one after the other."""

    def __init__(self, table: Mapping[str, Sequence[Sequence[str]]]) -> None:
        self._table = {name: [list(answer) for answer in answers] for name, answers in table.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self._table[host]
        return answers.pop(0) if len(answers) > 1 else list(answers[0])


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every address that somebody began to connect to; nobody gets anywhere."""
    addresses: list[str] = []

    async def sock_connect(_: Any, sock: Any, address: tuple[Any, ...]) -> None:
        addresses.append(address[0])
        raise ConnectionRefusedError(111, "nobody is there")

    monkeypatch.setattr(BaseSelectorEventLoop, "sock_connect", sock_connect)
    return addresses


async def told(desk: Desk, topic: str) -> dict[str, Any]:
    """What is told of the only attempt of a durable message."""
    counts = await desk.notify(topic=topic)
    [delivery] = await desk.settled(counts["message_id"])
    [attempt] = delivery["failed_attempts"]
    return {name: value for name, value in attempt.items() if not name.endswith("_at")}


async def owed(desk: Desk, url: str, topic: str) -> None:
    """Subscribed before there was a policy, say: nobody looks at the URL any more."""
    await desk.broadcaster.subscribe(
        SubscribeRequest(url, Pattern.exact(topic.encode()), 3600, "durable", retry_schedule_seconds=(0.0,))
    )


async def assert_blocked(open_desk: OpenDesk, networks: Sequence[str], addresses: Sequence[str]) -> None:
    """As literal, behind a name, and beside a public address: refused when asked for, blocked when dialled."""
    names = {f"n{number}.example.com": [[address]] for number, address in enumerate(addresses)}
    resolver = Names(names)
    desk = await open_desk(
        callback_networks=networks, verify_callbacks="never", given={"resolver": resolver}, max_in_flight_per_host=1
    )
    details = set()
    literals = 0
    for number, address in enumerate(addresses):
        host = f"[{address}]" if ":" in address else address
        if "%" not in address:
            answer = await desk.subscribe(f"http://{host}:8080/")
            assert (answer.status_code, answer.json()["code"]) == (422, "callback_refused"), address
            details.add(answer.json()["detail"])
            literals += 1
            await owed(desk, f"http://{host}:8080/", f"literal{number}")
        assert (
            await desk.subscribe(
                f"http://n{number}.example.com/",
                topic=f"name{number}",
                delivery="durable",
                retry_schedule_seconds=[0],
            )
        ).status_code == 201
    assert len(details) == 1, "the refusal tells nobody what there is"
    assert address not in details
    seen = [await told(desk, f"name{number}") for number in range(len(addresses))]
    for number, address in enumerate(addresses):
        if "%" not in address:
            seen.append(await told(desk, f"literal{number}"))
    assert seen == [seen[0]] * (len(addresses) + literals)
    assert (seen[0]["error"], seen[0]["status"]) == ("blocked_address", None)


async def test_14_loopback_is_dialled_only_where_it_is_named(open_desk: OpenDesk, dialled: list[str]) -> None:
    await assert_blocked(open_desk, ["private", "public"], LOOPBACK)
    assert dialled == []
    assert all(AddressPolicy(("loopback",)).allows(address, 80) for address in LOOPBACK)


async def test_15_metadata_services_are_dialled_only_by_their_own_network(
    open_desk: OpenDesk, dialled: list[str]
) -> None:
    await assert_blocked(
        open_desk, [*EVERY_NAME, "0.0.0.0/0", "169.0.0.0/8", "100.64.0.0/10", "168.0.0.0/6", "::/0"], METADATA
    )
    assert dialled == []
    assert AddressPolicy(("169.254.169.254/32",)).allows("169.254.169.254", 80)


async def test_16_private_networks_are_dialled_only_where_they_are_named(
    open_desk: OpenDesk, dialled: list[str]
) -> None:
    await assert_blocked(open_desk, ["loopback", "public"], PRIVATE_ADDRESSES)
    assert dialled == []
    assert all(AddressPolicy(("private",)).allows(address, 80) for address in PRIVATE_ADDRESSES)
    only = AddressPolicy(("10.1.0.0/16",))
    assert only.allows("10.1.2.3", 80)
    assert not any(only.allows(address, 80) for address in PRIVATE_ADDRESSES)


async def test_18_what_is_not_the_internet_is_dialled_by_no_name(open_desk: OpenDesk, dialled: list[str]) -> None:
    await assert_blocked(open_desk, EVERY_NAME, NO_INTERNET)
    assert dialled == []


async def test_18_a_zone_is_no_part_of_a_url(open_desk: OpenDesk) -> None:
    desk = await open_desk(callback_networks=EVERY_NAME)
    for host in ("[fe80::1%eth0]", "[fe80::1%25eth0]", "[::1%25lo]", "[::1%lo]", "127.0.0.1%lo", "127.0.0.1%25lo"):
        answer = await desk.subscribe(f"http://{host}:8080/")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_url"), host


@pytest.mark.parametrize("bad", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "64:ff9b::a00:1", "junk"])
async def test_19_a_name_with_one_bad_address_is_blocked_whole(
    open_desk: OpenDesk, dialled: list[str], bad: str
) -> None:
    good = [PUBLIC_ADDRESS, "2606:2800:21f:cb07:6820:80da:af6b:8b2c"]
    resolver = Names(
        {
            "first.example.com": [[bad, *good]],
            "last.example.com": [[*good, bad]],
            "many.example.com": [[*(f"93.184.215.{number}" for number in range(100)), bad]],
            "good.example.com": [good],
        }
    )
    desk = await open_desk(callback_networks=["public"], verify_callbacks="never", given={"resolver": resolver})
    for name in ("first", "last", "many"):
        await owed(desk, f"http://{name}.example.com/", name)
        assert (await told(desk, name))["error"] == "blocked_address"
    assert dialled == []
    await owed(desk, "http://good.example.com/", "good")
    assert (await told(desk, "good"))["error"] == "connect_error"
    assert dialled == good


async def test_19_a_name_is_resolved_once_for_the_check_and_the_connection(
    open_desk: OpenDesk, dialled: list[str]
) -> None:
    """Rebinding: the first answer is public, every later one is not."""
    resolver = Names({"rebind.example.com": [[PUBLIC_ADDRESS], ["127.0.0.1"]]})
    desk = await open_desk(callback_networks=["public"], verify_callbacks="never", given={"resolver": resolver})
    await owed(desk, "http://rebind.example.com/", "t")
    assert (await told(desk, "t"))["error"] == "connect_error"
    assert (dialled, resolver.asked) == ([PUBLIC_ADDRESS], ["rebind.example.com"])
    for _ in range(3):
        assert (await told(desk, "t"))["error"] == "blocked_address"
    assert dialled == [PUBLIC_ADDRESS]


async def test_21_a_kept_connection_goes_when_the_policy_does_not_allow_it_any_more(
    open_desk: OpenDesk, hostile: OpenReceivers
) -> None:
    desk = await open_desk()
    [receiver] = await hostile("accept")
    await desk.made(f"http://127.0.0.1:{receiver.port}/")
    for _ in range(2):
        assert (await desk.notify())["notified"] == 1
    assert (receiver.connections, len(receiver.requests)) == (1, 2), "it is kept"
    desk.broadcaster.egress.set_policy(AddressPolicy(("public",)))
    assert (await desk.notify())["failed"] == 1
    assert (receiver.connections, len(receiver.requests)) == (1, 2)
    desk.broadcaster.egress.set_policy(AddressPolicy(("loopback",)))
    assert (await desk.notify())["notified"] == 1
    assert receiver.connections == 2, "the old one is closed"


async def test_22_a_name_that_says_an_address_is_a_name_that_has_one(open_desk: OpenDesk, dialled: list[str]) -> None:
    table = {
        "169.254.169.254.nip.io": [["169.254.169.254"]],
        "127-0-0-1.nip.io": [["127.0.0.1"]],
        "a.127.0.0.1.sslip.io": [["127.0.0.1"]],
        "localtest.me": [["::1"]],
        "7f000001.nip.io": [["127.0.0.1"]],
    }
    desk = await open_desk(callback_networks=["public"], verify_callbacks="never", given={"resolver": Names(table)})
    for number, name in enumerate(table):
        wanted = {"topic": f"t{number}", "delivery": "durable", "retry_schedule_seconds": [0]}
        assert (await desk.subscribe(f"http://{name}/latest/meta-data/", **wanted)).status_code == 201
        assert (await told(desk, f"t{number}"))["error"] == "blocked_address"
    assert dialled == []


async def test_24_the_environment_plays_no_part(
    open_desk: OpenDesk, hostile: OpenReceivers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trap, good = await hostile("accept", "accept")
    authority = Authority(tmp_path)
    for name in ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy"):
        for each in (name, name.upper()):
            monkeypatch.setenv(each, f"http://user:password@127.0.0.1:{trap.port}")
    monkeypatch.setenv("NO_PROXY", "")
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(authority.file))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login partner password sesame\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    read: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        read.append(await reader.read(65536))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=authority.server())
    async with server:
        desk = await open_desk(callback_ca_file=None)
        await desk.made(f"http://127.0.0.1:{good.port}/")
        assert (await desk.notify())["notified"] == 1
        tls = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        await desk.made(tls, topic="u", delivery="durable", retry_schedule_seconds=[0])
        assert (await told(desk, "u"))["error"].startswith("tls_error: "), "nor does it say whom to trust"
    assert not any(read)
    assert trap.connections == 0
    assert "authorization" not in good.requests[0]["headers"]
    assert os.environ["HTTP_PROXY"]


async def test_25_a_proxy_is_told_addresses_that_were_checked_and_is_to_blame_for_itself(
    open_desk: OpenDesk, hostile: OpenReceivers
) -> None:
    asked: list[str] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[0])
        target = await asyncio.open_connection("127.0.0.1", good.port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        target[1].write(await reader.read(65536))
        writer.write(await target[0].read(65536))
        await writer.drain()
        target[1].close()
        writer.close()

    [good, down] = await hostile("accept", "refuse")
    resolver = Names({"good.example.com": [[PUBLIC_ADDRESS]], "bad.example.com": [["169.254.169.254"]]})
    settings: dict[str, Any] = {"callback_networks": ["public"], "verify_callbacks": "never"}
    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        desk = await open_desk(egress_proxy=f"http://127.0.0.1:{port}", given={"resolver": resolver}, **settings)
        await desk.made("http://good.example.com/a")
        assert (await desk.notify())["notified"] == 1
        assert asked == [f"CONNECT {PUBLIC_ADDRESS}:80 HTTP/1.1"]
        assert good.requests[0]["headers"]["host"] == "good.example.com"
        await desk.made("http://bad.example.com/", topic="u")
        assert (await desk.notify(topic="u"))["failed"] == 1
        await owed(desk, "http://127.0.0.1/", "v")
        assert (await told(desk, "v"))["error"] == "blocked_address"
        assert len(asked) == 1, "the proxy is not the way to what is forbidden"
    desk = await open_desk(
        egress_proxy=f"http://partner:sesame@127.0.0.1:{down.port}", given={"resolver": resolver}, **settings
    )
    await desk.made("http://good.example.com/b", topic="w", delivery="durable", retry_schedule_seconds=[0])
    counts = await desk.notify(topic="w", headers={"prefer": "wait=0"})
    async with asyncio.timeout(5):
        while True:
            document = (await desk.api.get(f"/v1/messages/{counts['message_id']}")).json()
            [delivery] = document["deliveries"]
            if delivery["state"] == "pending":
                break
            await asyncio.sleep(0.01)
    assert (delivery["state"], delivery["failed_attempts"]) == ("pending", []), "the endpoint has lost nothing by it"
    assert "sesame" not in str(document)


def test_25_a_proxy_that_is_none_is_said_at_the_start() -> None:
    for url in (
        "https://proxy:1/",
        "socks5://proxy:1",
        "proxy:1",
        "http://",
        "ftp://x:sesame@y:1",
    ):
        with pytest.raises((ConfigurationError, ValueError)) as caught:
            Broadcaster(ServerConfig(egress_proxy=url), secrets=NO_AUTH)
        assert "sesame" not in str(caught.value)
