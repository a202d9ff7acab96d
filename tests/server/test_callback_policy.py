"""What may be registered, by its URL alone."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.credentials import Credentials, Secrets
from httppubsubclient.protocol.errors import CallbackRefused, ConfigurationError, InvalidUrl
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.callback_policy import PRIVATE_ZONES, CallbackAddresses, CallbackPolicy, check_callback_settings
from httppubsubserver.callback_ports import OTHER_SERVICES, CallbackPorts
from httppubsubserver.config import ServerConfig, load_config
from tests.server.conftest import OpenBroadcaster, api_of

EVERYTHING = ("loopback", "private", "public")


def policy(*, broadcasters: tuple[str, ...] = (), **settings: Any) -> CallbackPolicy:
    settings.setdefault("callback_networks", EVERYTHING)
    return CallbackPolicy(ServerConfig(**settings), broadcasters)


def check(url: str, **settings: Any) -> None:
    policy(**settings).check(parse_callback_url(url))


def refusal(url: str, **settings: Any) -> str:
    with pytest.raises(CallbackRefused) as refused:
        check(url, **settings)
    return refused.value.detail


# -- scheme and port --------------------------------------------------------------------------------------------------


def test_https_only() -> None:
    check("http://host.example/")
    check("https://host.example/", https_only=True)
    with pytest.raises(CallbackRefused, match=r"https only \(https_only\)"):
        check("http://host.example/", https_only=True)


@pytest.mark.parametrize("port", [21, 22, 23, 25, 110, 143, 445, 1433, 2049, 2375, 3306, 3389, 5432, 5672, 5900, 6000])
def test_ports_of_other_services_are_refused_by_default(port: int) -> None:
    assert str(port) in refusal(f"http://host.example:{port}/")


@pytest.mark.parametrize("port", [6379, 6443, 6667, 8009, 8123, 9042, 9092, 9200, 10250, 11211, 11300, 15672, 27017])
def test_and_those_of_caches_queues_and_whatever_runs_programs(port: int) -> None:
    assert str(port) in refusal(f"https://host.example:{port}/")


@pytest.mark.parametrize("port", [80, 443, 1024, 3000, 3002, 3003, 4000, 5000, 8000, 8080, 8443, 9000, 32768, 65535])
def test_ports_at_which_http_is_served_are_not(port: int) -> None:
    check(f"http://host.example:{port}/", port=4444)


def test_ports_are_numbers_ranges_and_names() -> None:
    ports = CallbackPorts(["web", "9000", "9100-9102"])
    assert [port for port in range(70_000) if port in ports] == [80, 443, 8080, 8443, 9000, 9100, 9101, 9102]
    every, none = CallbackPorts(["all"]), CallbackPorts([])
    assert [port for port in range(-1, 70_000) if port in every] == list(range(1, 65_536))
    assert not [port for port in range(70_000) if port in none]
    usual = CallbackPorts(["usual"])
    assert [port for port in range(1024) if port in usual] == [80, 443]
    assert all(port in usual for port in range(32_768, 65_536))


def test_the_table_of_other_services_lies_where_it_says() -> None:
    for service, ports in OTHER_SERVICES.items():
        for each in ports:
            for port in (each,) if isinstance(each, int) else each:
                assert 1024 <= port < 32_768, service


def test_no_port_that_browsers_refuse_is_usual() -> None:
    # https://fetch.spec.whatwg.org/#port-blocking
    blocked = [
        1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109,
        110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530,
        531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190,
        5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
    ]  # fmt: skip
    usual = CallbackPorts(["usual"])
    assert [port for port in blocked if port in usual] == []


@pytest.mark.parametrize(
    "entry", ["", "0", "65536", "80-", "-80", "90-80", "0-80", "http", "\uff18\uff10", "80,443", "web ", "1e3"]
)
def test_an_entry_that_is_no_port_is_named(entry: str) -> None:
    with pytest.raises(ConfigurationError, match=r"callback_ports\[1\]"):
        policy(callback_ports=("80", entry))


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["public", "private", "loopback"])
def test_a_literal_address_is_refused_unless_it_is_in_the_networks(network: str) -> None:
    hosts = {"public": "93.184.215.14", "private": "10.1.2.3", "loopback": "127.0.0.1"}
    for kind, host in hosts.items():
        if kind == network:
            check(f"http://{host}:8080/", callback_networks=(network,))
        else:
            refusal(f"http://{host}:8080/", callback_networks=(network,))


def test_all_refused_literals_get_one_text() -> None:
    hosts = [
        "127.0.0.1", "0.0.0.0", "10.0.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "168.63.129.16",
        "224.0.0.1",
        "255.255.255.255", "192.0.2.1", "[::1]", "[::]", "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]", "[2002:7f00:1::]",
        "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[2001:db8::1]", "[100::1]", "[3fff::1]",
    ]  # fmt: skip
    texts = {refusal(f"http://{host}/", callback_networks=("public",), host="10.0.0.1", port=80) for host in hosts}
    assert len(texts) == 1


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "0177.0.0.1",
        "0",
        "192.168.257",
        "00000127.0.0.1",
        "1.1.1.1.1",
    ],
)
def test_addresses_in_other_forms_are_no_names(host: str) -> None:
    with pytest.raises(InvalidUrl):
        check(f"http://{host}/")


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost.", "LOCALHOST", "x.localhost", "a.b.localhost.", "printer.local", "svc.cluster.local",
        "metadata.google.internal", "host.docker.internal", "db.corp", "nas.lan", "router.home.arpa",
        "localhost.localdomain", "backend", "redis", "metadata", "Backend.", "xn--nxasmq6b",
    ],
)  # fmt: skip
def test_names_that_one_network_alone_knows(host: str) -> None:
    text = refusal(f"http://{host}/")
    assert "callback_hosts" in text
    assert host not in text
    check(f"http://{host}/", callback_hosts=(host,))
    check(f"https://{host.lower().rstrip('.')}:8443/x?y#z", callback_hosts=("other.example", host))


@pytest.mark.parametrize("zone", PRIVATE_ZONES)
def test_an_allowed_name_allows_no_other(zone: str) -> None:
    allowed = (zone, f"a.{zone}")
    check(f"http://{zone}/", callback_hosts=allowed)
    check(f"http://A.{zone.upper()}./", callback_hosts=allowed)
    for other in (f"b.{zone}", f"a.a.{zone}", f"x.a.{zone}"):
        refusal(f"http://{other}/", callback_hosts=allowed)


@pytest.mark.parametrize(
    "host", ["host.example", "localhost.example", "local.example", "notlocal.com", "mylocalhost.org", "internal.io"]
)
def test_other_names_are_asked_about_when_they_are_dialled(host: str) -> None:
    check(f"https://{host}/", callback_networks=())


@pytest.mark.parametrize(
    "host", ["", "*.local", "127.0.0.1", "::1", "[::1]", "host:80", "user@host", "host/path", "a b", "host?x", "host#x"]
)
def test_what_is_no_host_name_is_named(host: str) -> None:
    with pytest.raises(ConfigurationError, match="callback_hosts"):
        policy(callback_hosts=(host,))


@given(st.text(max_size=40))
def test_whatever_is_taken_for_a_host_name_is_one(text: str) -> None:
    try:
        taken = policy(callback_hosts=(text,))
    except ConfigurationError:
        return
    taken.check(parse_callback_url(f"http://{text}/"))


# -- itself -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listening", "own", "others"),
    [
        ("127.0.0.1", ["127.0.0.1", "localhost", "x.localhost", "0.0.0.0", "[::]"], ["127.0.0.2"]),
        ("::1", ["[::1]", "localhost", "0.0.0.0", "[0::1]"], ["127.0.0.2"]),
        ("0.0.0.0", ["127.0.0.1", "127.8.9.1", "[::1]", "localhost", "0.0.0.0"], ["10.0.0.1", "host.example"]),
        ("::", ["127.0.0.1", "[::1]", "[::]", "LocalHost."], ["10.0.0.1", "host.example"]),
        ("10.0.0.1", ["10.0.0.1", "[::ffff:a00:1]"], ["127.0.0.1", "10.0.0.2", "localhost"]),
        ("pubsub.example", ["pubsub.example", "PubSub.Example."], ["x.pubsub.example", "127.0.0.1"]),
    ],
)  # fmt: skip
def test_the_broadcaster_does_not_call_itself(listening: str, own: list[str], others: list[str]) -> None:
    settings: dict[str, Any] = {"host": listening, "port": 4000, "callback_hosts": ("localhost", "x.localhost")}
    for host in own:
        for scheme in ("http", "https"):
            assert "own address" in refusal(f"{scheme}://{host}:4000/anything", **settings)
        check(f"http://{host}:4001/", **settings)
    for host in others:
        check(f"http://{host}:4000/", **settings)


def test_nor_by_the_names_that_its_secrets_have_for_it() -> None:
    broadcasters = ("https://pubsub.example", "http://10.0.0.5:3003/", "http://[::1]:8000", "not a url")
    for url in (
        "https://pubsub.example/x",
        "http://10.0.0.5:3003/",
        "http://[::1]:8000/",
        "http://PubSub.example:443/",
    ):
        assert "own address" in refusal(url, broadcasters=broadcasters)
    check("http://pubsub.example/", broadcasters=broadcasters)
    check("http://10.0.0.5/", broadcasters=broadcasters)


def test_behind_a_prefix_there_may_be_others() -> None:
    broadcasters = ("https://example.com/pubsub/",)
    for path in ("/pubsub", "/pubsub/", "/pubsub/v1/notify?topic=t", "/x/../pubsub/v1/notify", "/%70ubsub#f"):
        assert "own address" in refusal(f"https://example.com{path}", broadcasters=broadcasters)
    for path in ("/", "/pubsub-of-others", "/app/pubsub/"):
        check(f"https://example.com{path}", broadcasters=broadcasters)


def test_nor_where_a_connection_came_in() -> None:
    callbacks = policy(port=0)
    callback = parse_callback_url("http://192.168.7.8:40001/")
    callbacks.check(callback)
    callbacks.listens_at("192.168.7.8", 40001)
    with pytest.raises(CallbackRefused, match="own address"):
        callbacks.check(callback)


def test_what_is_known_of_itself_is_bounded() -> None:
    callbacks = policy(port=0)
    for port in range(1, 2000):
        callbacks.listens_at("10.0.0.1", port)
    assert len(callbacks._own) == 256


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "at_fault"),
    [
        ({"callback_networks": ("10.0.0.1/8",)}, r"callback_networks\[0\].*did you mean 10\.0\.0\.0/8"),
        ({"callback_networks": ("public", "privat")}, r"callback_networks\[1\] is 'privat'"),
        ({"callback_networks": ("10.0.0.0/8",) * 300}, "callback_networks has at most 256"),
        ({"callback_ports": ("http",)}, r"callback_ports\[0\]"),
        ({"callback_hosts": ("10.0.0.1",)}, "callback_hosts"),
        ({"egress_proxy": "socks5://user:sesame@proxy:1080"}, "egress_proxy should be http://"),
    ],
)
def test_wrong_settings_are_said_at_the_start(settings: dict[str, Any], at_fault: str) -> None:
    secrets = Secrets(Credentials.none(), Credentials.none(), ())
    config = ServerConfig(**settings)
    for start in (lambda: Broadcaster(config, secrets=secrets), lambda: check_callback_settings(config)):
        with pytest.raises(ConfigurationError, match=at_fault) as wrong:
            start()
        assert "sesame" not in wrong.value.detail


async def test_certificates_that_cannot_be_used_are_said_at_the_start(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    for settings, at_fault in (
        ({"callback_client_keyfile": missing}, "callback_client_certfile is not"),
        ({"callback_client_certfile": missing}, "callback_client_certfile .*No such file"),
        ({"callback_ca_file": missing}, "callback_ca_file .*No such file"),
    ):
        config = ServerConfig(db=f"sqlite:///{tmp_path}/x.sqlite3", **settings)
        with pytest.raises(ConfigurationError, match=at_fault):
            check_callback_settings(config)
        with pytest.raises(ConfigurationError, match=at_fault):
            async with Broadcaster(config, secrets=Secrets(Credentials.none(), Credentials.none(), ())):
                pass


def test_lists_come_from_the_environment_with_commas() -> None:
    config = load_config(
        environ={
            "HTTPPUBSUB_CALLBACK_NETWORKS": "public, 10.1.0.0/16",
            "HTTPPUBSUB_CALLBACK_PORTS": "web,9000-9009",
            "HTTPPUBSUB_CALLBACK_HOSTS": "backend",
            "HTTPPUBSUB_EGRESS_PROXY": "http://user:sesame@proxy:3128",
        }
    )
    callbacks = CallbackPolicy(config)
    for url in ("https://host.example/", "http://10.1.2.3:9009/", "http://backend:8080/"):
        callbacks.check(parse_callback_url(url))
    assert "sesame" not in repr(config)


def test_nothing_is_resolved_to_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(socket, "getaddrinfo", never)
    callbacks = policy(broadcasters=("https://pubsub.example",))
    for url in ("http://host.example/", "http://localhost/", "http://10.0.0.1/", "https://pubsub.example/"):
        try:
            callbacks.check(parse_callback_url(url))
        except CallbackRefused:
            continue


def test_what_is_dialled_follows_the_same_settings() -> None:
    addresses = CallbackAddresses(["public", "10.1.0.0/16"], ["443", "8000-8009"])
    assert addresses.allows("93.184.215.14", 443)
    assert addresses.allows("10.1.2.3", 8009)
    assert not addresses.allows("10.2.2.3", 443)
    assert not addresses.allows("93.184.215.14", 80)
    assert not addresses.allows("host.example", 443)


# -- over the wire ----------------------------------------------------------------------------------------------------


def refused_as(answer: httpx.Response, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text


async def test_subscribing_what_is_not_allowed(open_broadcaster: OpenBroadcaster) -> None:
    broadcaster = await open_broadcaster(callback_networks=("public",), https_only=True)
    async with api_of(broadcaster) as api:
        for url, code in (
            ("https://127.0.0.1/", "callback_refused"),
            ("https://backend/", "callback_refused"),
            ("https://host.example:6379/", "callback_refused"),
            ("http://host.example/", "callback_refused"),
            ("https://127.1/", "invalid_url"),
        ):
            refused_as(await api.post("/v1/subscriptions", json={"url": url, "glob": "*"}), code)
            wanted = {"subscriptions": [{"glob": "*"}]}
            refused_as(await api.put("/v1/subscriptions", params={"url": url}, json=wanted), code)
        assert (await api.get("/v1/subscriptions")).json()["subscriptions"] == []


async def test_where_a_request_comes_in_is_where_nothing_is_called_back(open_broadcaster: OpenBroadcaster) -> None:
    """`uvicorn main:app --port 40001` says nothing to the settings."""
    broadcaster = await open_broadcaster()
    app = FastAPI()
    app.include_router(broadcaster.router)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://10.0.0.9:40001") as api:
        own = {"url": "http://10.0.0.9:40001/anything", "glob": "*"}
        refused_as(await api.post("/v1/subscriptions", json=own), "callback_refused")
        other = {"url": "http://10.0.0.9:40002/anything", "glob": "*"}
        assert (await api.post("/v1/subscriptions", json=other)).status_code == 201


async def test_what_is_not_allowed_any_more_is_not_renewed_and_can_be_removed(
    open_broadcaster: OpenBroadcaster,
) -> None:
    url = "http://10.0.0.1:8080/"
    before = await open_broadcaster()
    async with api_of(before) as api:
        made = (await api.post("/v1/subscriptions", json={"url": url, "glob": "a"})).json()
        assert (await api.post("/v1/subscriptions", json={"url": url, "glob": "b"})).status_code == 201
    after = await open_broadcaster(callback_networks=("public",))
    async with api_of(after) as api:
        refused_as(await api.post("/v1/subscriptions", json={"url": url, "glob": "a"}), "callback_refused")
        assert (await api.delete(f"/v1/subscriptions/{made['id']}")).status_code == 204
        emptied = await api.put("/v1/subscriptions", params={"url": url}, json={"subscriptions": []})
        assert emptied.json()["subscriptions"] == []


@pytest.mark.parametrize(
    ("first", "second", "setting", "rules"),
    [
        ("http://a.example/x", "http://b.example/", "https_only", ["https_only is set"] * 2),
        ("https://a.example:81/", "https://b.example:81/", "callback_ports", ["callback_ports has no 81"] * 2),
        (
            "https://10.0.0.1/",
            "https://169.254.169.254/latest/secret",
            "callback_networks",
            ["callback_networks has no such address (private)", "callback_networks has no such address (metadata)"],
        ),
        ("https://backend/", "https://db.internal/", "callback_hosts", ["callback_hosts does not have this name"] * 2),
        ("https://here.example/", "https://here.example:443/x", "", ["own address"]),
    ],
)
async def test_a_refusal_names_the_setting_and_the_log_says_once_what_was_in_the_way(
    open_broadcaster: OpenBroadcaster,
    caplog: pytest.LogCaptureFixture,
    first: str,
    second: str,
    setting: str,
    rules: list[str],
) -> None:
    caplog.set_level(logging.INFO, "httppubsub.server")
    broadcaster = await open_broadcaster(
        secrets=Secrets(Credentials.none(), Credentials.none(), ("https://here.example",)),
        callback_networks=("public",),
        callback_ports=("web",),
        https_only=True,
    )
    caplog.clear()
    details = set()
    async with api_of(broadcaster) as api:
        for url in (first, second, first, second):
            answer = await api.post("/v1/subscriptions", json={"url": url, "glob": "*"})
            refused_as(answer, "callback_refused")
            details.add(answer.json()["detail"])
    [detail] = details
    assert setting in detail
    told = [each.message for each in caplog.records if each.name == "httppubsub.server"]
    assert len(told) == len(rules)
    assert all(rule in line for rule, line in zip(rules, told, strict=True))
    assert parse_callback_url(first).origin in told[0]
    assert "latest/secret" not in caplog.text


def test_the_log_of_refusals_ends_somewhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "httppubsub.server")
    callbacks = policy(https_only=True)
    for n in range(1100):
        with pytest.raises(CallbackRefused):
            callbacks.check(parse_callback_url(f"http://host-{n}.example/"))
    assert len(caplog.records) == 1000


async def test_nothing_of_a_refusal_is_a_warning(
    open_broadcaster: OpenBroadcaster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    broadcaster = await open_broadcaster(callback_networks=("public",))
    async with api_of(broadcaster) as api:
        await api.post("/v1/subscriptions", json={"url": "http://127.0.0.1/", "glob": "*"})
    assert not caplog.records


def test_what_is_embedded_behind_an_own_prefix_of_nat64_has_to_be_allowed_too() -> None:
    inside = "http://[2001:67c:2e8:64::a00:1]:8080/"  # 10.0.0.1
    CallbackPolicy(ServerConfig(callback_networks=("public",))).check(parse_callback_url(inside))
    policy = CallbackPolicy(ServerConfig(callback_networks=("public",), nat64_prefixes=("2001:67c:2e8:64::/96",)))
    with pytest.raises(CallbackRefused):
        policy.check(parse_callback_url(inside))
    assert not policy.addresses.allows("2001:67c:2e8:64::a00:1", 8080)
    with pytest.raises(ConfigurationError, match=r"^nat64_prefixes"):
        CallbackPolicy(ServerConfig(nat64_prefixes=("2001:db8::/64x",)))
