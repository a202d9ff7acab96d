"""A. Callback URLs: what is refused when somebody subscribes, before anything is resolved or asked."""

from __future__ import annotations

from typing import Any

import pytest

from httppubsubclient.protocol.credentials import Credentials, Secrets
from tests.hardening.support import CALLBACK, Desk, OpenDesk


async def assert_refused(desk: Desk, url: str, *codes: str, status: int = 422) -> str:
    """However it is asked for, it is refused in the same way, and nothing is kept. Returns the detail."""
    answers = [await desk.subscribe(url), await desk.replace(url, {"topic": "t"})]
    for answer in answers:
        assert answer.status_code == status, (url, answer.text)
        assert answer.json()["code"] in (codes or ("invalid_url",)), (url, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
    assert answers[0].json() == answers[1].json()
    assert await desk.listed() == []
    detail: str = answers[0].json()["detail"]
    return detail


@pytest.fixture
async def desk(open_desk: OpenDesk, resolutions: list[str]) -> Desk:
    """Where a URL is only looked at: nothing can be resolved."""
    return await open_desk(callback_networks=("loopback", "private", "public"), verify_callbacks="never")


NOT_HTTP = [
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_X",
    "ftp://x/",
    "javascript:alert(1)",
    "javascript://example.com/%0aalert(1)",
    "data:text/plain,x",
    "ws://example.com/",
    "wss://example.com/",
    "unix:/run/docker.sock",
    "http+unix://%2Frun%2Fdocker.sock/",
    "dict://127.0.0.1:11211/stat",
    "ldap://127.0.0.1/",
    "jar:http://example.com/!/",
    "blob:https://example.com/1",
    "mailto:a@example.com",
    "//example.com/",
    "/hook",
    "hook",
    "example.com/hook",
    "http:/example.com/",
    "http:example.com",
    "http",
    "://example.com/",
    "h\u0074tps\uff1a//example.com/",
    " http://example.com/",
    "\thttp://example.com/",
    "view-source:http://example.com/",
    "",
]


async def test_01_only_http_and_https_are_schemes(desk: Desk, resolutions: list[str]) -> None:
    for url in NOT_HTTP:
        await assert_refused(desk, url)
        assert resolutions == []


WITH_CREDENTIALS = [
    "https://user:pw-canary-8841@example.com/",
    "https://user@example.com/",
    "https://:pw-canary-8841@example.com/",
    "https://@example.com/",
    "https://user%3Apw-canary-8841@example.com/",
    "https://a@b@example.com/",
]


async def test_03_credentials_in_a_url_are_refused_and_never_repeated(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    for url in WITH_CREDENTIALS:
        caplog.set_level("DEBUG", "httppubsub")
        assert "pw-canary" not in await assert_refused(desk, url)
        assert not [
            record for record in caplog.records if "pw-canary" in record.getMessage() and record.name != "httpx"
        ]


READ_TWO_WAYS = [
    "http://example.com\\@127.0.0.1/",
    "http://a.com:80@127.0.0.1:22/",
    "http://example.com\\.internal/",
    "http:\\\\127.0.0.1/",
    "http:/\\127.0.0.1/",
    "http://example.com#@127.0.0.1/\\",
    "http://example.com:80:443/",
    "http://[::1]@example.com/",
    "http://example.com[::1]/",
    "http://[::1].example.com/",
    "http://[example.com]/",
    "http://exam%70le.com/",
    "http://127.0.0.1%2f@example.com/",
    "http://127.0.0.1%00.example.com/",
]


async def test_04_a_url_that_programs_read_differently_is_refused(desk: Desk) -> None:
    for url in READ_TWO_WAYS:
        await assert_refused(desk, url)


NO_HOST_OR_PORT = [
    "https:///p",
    "https://",
    "https://?q",
    "https://#f",
    "https://:443/",
    "http://./",
    "http://../",
    *(f"https://example.com:{port}/" for port in ("0", "00", "99999", "65536", "abc", "-1", "+80", " 80", "8 0", "")),
    "https://example.com:0x50/",
    "https://example.com:\uff18\uff10/",
    "https://example.com:80\u0660/",
    "http://[::1]:0/",
    "http://[::1]:/",
]


async def test_05_a_host_and_a_port_are_what_they_have_to_be(desk: Desk) -> None:
    for url in NO_HOST_OR_PORT:
        await assert_refused(desk, url)


FORBIDDEN = [chr(code) for code in range(0x21)] + [
    "\x7f",
    "\x80",
    "\x85",
    "\xa0",
    "\u2028",
    "\u2029",
    "\u200b",
    "\ufeff",
]


async def test_06_a_control_character_or_a_space_is_refused_wherever_it_stands(desk: Desk) -> None:
    for character in FORBIDDEN:
        for url in (
            f"{character}https://example.com/",
            f"https://exam{character}ple.com/",
            f"https://example.com{character}/",
            f"https://example.com:80{character}/",
            f"https://example.com/a{character}b",
            f"https://example.com/?a{character}b",
            f"https://example.com/#a{character}b",
            f"https://example.com/{character}",
        ):
            await assert_refused(desk, url)


NO_HOST_NAMES = [
    "example..com",
    ".example.com",
    "example.com..",
    "a" * 64 + ".com",
    ".".join(["a" * 49] * 6),
    "-a.example.com",
    "a-.example.com",
    "ex\u00e4mple.com",
    "\u2460.example.com",
    "a\uff0ecom",
    "a\u3002com",
    "exam!ple.com",
    "a,b",
    "a;b",
    "*.example.com",
    "%65xample.com",
]


async def test_06_a_host_name_consists_of_labels(desk: Desk) -> None:
    for host in NO_HOST_NAMES:
        await assert_refused(desk, f"https://{host}/")


async def test_07_a_url_is_bounded(desk: Desk) -> None:
    await assert_refused(desk, "https://a.example.com/" + "p" * 2048)
    await assert_refused(desk, "https://a.example.com/?" + "&".join(["a=1"] * 51))
    await assert_refused(desk, "https://a.example.com/?" + "&" * 50)
    longest = "http://127.0.0.1:2000/?" + "&".join(["a=1"] * 50)
    longest += "#" + "f" * (2047 - len(longest))
    assert (await desk.made(longest))["url"] == longest, "a fragment is part of the name"


NO_ADDRESSES = [
    "127.1",
    "127.0.1",
    "0x7f000001",
    "0x7f.0.0.1",
    "0X7F.1",
    "2130706433",
    "017700000001",
    "0177.0.0.1",
    "0",
    "00",
    "0x",
    "0x0",
    "192.168.257",
    "192.168.0.257",
    "00000127.0.0.1",
    "127.0.0.01",
    "127.0.0.1.5",
    "1.2.3",
    "1.2.3.256",
    "4294967296",
    "99999999999999999999",
    "a.b.c.1",
    "example.0x7f",
    "\uff11\uff12\uff17.0.0.1",
    "127\u30020\u30020\u30021",
    "\u2460\u2461\u2466.0.0.1",
    "127.0.0.\u0661",
]


async def test_09_an_ipv4_address_has_one_spelling(desk: Desk, resolutions: list[str]) -> None:
    for host in NO_ADDRESSES:
        await assert_refused(desk, f"http://{host}:2000/")
    assert (await desk.made("http://1.2.3.4.:2000/"))["url"] == "http://1.2.3.4:2000/"
    assert resolutions == []


async def test_11_five_spellings_are_one_subscription(open_desk: OpenDesk) -> None:
    desk = await open_desk()
    spellings = [
        "http://127.0.0.1/~a/b?c=%2F",
        "HTTP://127.0.0.1:80/%7Ea/b?c=%2f",
        "http://127.0.0.1/./x/../%7ea/b?c=%2F",
        "http://127.0.0.1.:080/~a/b?c=%2F",
        "http://[::ffff:127.0.0.1]/~a/b?c=%2F",
    ]
    first: dict[str, Any] = await desk.made(spellings[0])
    for spelling in spellings[1:4]:
        again = await desk.subscribe(spelling)
        assert (again.status_code, again.json()["id"], again.json()["url"]) == (200, first["id"], spellings[0])
    assert len(await desk.listed()) == 1
    for same in ("http://127.0.0.1/~A/b?c=%2F", "http://127.0.0.1/~a//b?c=%2F", "http://127.0.0.1/~a/b?c=/"):
        assert (await desk.made(same))["id"] != first["id"], "a path, and what is escaped in it, means what it says"


async def test_11_the_canonical_form_is_what_a_set_is_found_by(open_desk: OpenDesk) -> None:
    desk = await open_desk()
    await desk.made("HTTP://127.0.0.1:2000/%76%31/receive")
    page = (await desk.api.get("/v1/subscriptions", params={"url": "http://127.0.0.1:2000/a/../v1/receive"})).json()
    assert [one["url"] for one in page["subscriptions"]] == [CALLBACK]
    assert (await desk.replace("http://127.0.0.1:02000/v1/./receive")).status_code == 200
    assert await desk.listed() == []


async def test_02_with_https_only_there_is_no_http(open_desk: OpenDesk) -> None:
    desk = await open_desk(https_only=True)
    for url in (CALLBACK, "HTTP://127.0.0.1:2000/", "http://127.0.0.1:443/", "http://example.com/"):
        await assert_refused(desk, url, "callback_refused")
    assert (await desk.made("https://127.0.0.1:2000/"))["url"] == "https://127.0.0.1:2000/"


LOCAL_NAMES = [
    *("localhost", "localhost.", "LOCALHOST", "x.localhost", "printer.local", "db.internal", "a.b.internal."),
    *("metadata.google.internal", "backend", "redis", "metadata", "ip6-localhost", "broadcasthost", "wpad"),
    *("host.docker.internal", "kubernetes.default.svc.cluster.local"),
]


async def test_10_a_name_of_the_own_network_has_to_be_allowed_by_name(
    open_desk: OpenDesk, resolutions: list[str]
) -> None:
    networks = ("loopback", "private", "public")
    desk = await open_desk(callback_networks=networks)
    details = {await assert_refused(desk, f"http://{host}:2000/", "callback_refused") for host in LOCAL_NAMES}
    assert len(details) == 1
    assert resolutions == []
    allowing = await open_desk(
        callback_networks=networks, callback_hosts=("localhost", "redis"), verify_callbacks="never"
    )
    for host in ("localhost", "LOCALHOST.", "redis"):
        assert (await allowing.subscribe(f"http://{host}:2000/")).status_code in (200, 201), host
    for host in ("x.localhost", "redis.local", "redi", "xredis", "localhost.x.internal"):
        answer = await allowing.subscribe(f"http://{host}:2000/")
        assert (answer.status_code, answer.json()["code"]) == (422, "callback_refused"), host


async def test_12_a_broadcaster_is_not_called_back_by_itself(open_desk: OpenDesk) -> None:
    called = ("http://broadcaster.example.com", "https://10.1.2.3:8443/pubsub")
    secrets = Secrets(Credentials.none(), Credentials.none(), called)
    desk = await open_desk(
        secrets=secrets, host="0.0.0.0", port=3003, callback_networks=("loopback", "private", "public")
    )
    for url in (
        "http://127.0.0.1:3003/v1/notify?topic=t",
        "http://127.9.9.9:3003/",
        "http://0.0.0.0:3003/",
        "http://[::1]:3003/",
        "http://[::ffff:127.0.0.1]:3003/",
        "http://BROADCASTER.example.com./hook",
        "https://10.1.2.3:8443/pubsub/v1/notify?topic=t",
        "https://[::ffff:10.1.2.3]:8443/pubsub",
        "https://10.1.2.3:8443/a/../pubsub/",
    ):
        await assert_refused(desk, url, "callback_refused")
    assert (await desk.made(CALLBACK))["url"] == CALLBACK
    beside = "https://10.1.2.3:8443/other"
    assert (await desk.made(beside))["url"] == beside, "behind another prefix is somebody else"


async def test_12_a_message_that_goes_round_ends(open_desk: OpenDesk) -> None:
    desk = await open_desk(max_hops=3)
    for hops in ("0", "1", "2"):
        assert (await desk.api.post("/v1/notify?topic=t", headers={"pubsub-hops": hops})).status_code == 200
    for hops in ("3", "4", "255"):
        answer = await desk.api.post("/v1/notify?topic=t", headers={"pubsub-hops": hops})
        assert (answer.status_code, answer.json()["code"]) == (508, "too_many_hops"), hops
    for hops in ("-1", "x", "1.5", "", "9" * 50, "1, 2", "\u0661"):
        answer = await desk.api.post("/v1/notify?topic=t", headers={b"pubsub-hops": hops.encode()})
        assert answer.status_code in (400, 508), hops


OTHER_SERVICES = [1, 21, 22, 23, 25, 110, 143, 389, 445, 465, 587, 993, 1433, 2375, 3306, 3389, 5432, 5672, 6379]
OTHER_SERVICES += [8500, 9200, 9300, 11211, 27017]


async def test_13_ports_of_other_services_are_refused(open_desk: OpenDesk) -> None:
    desk = await open_desk(callback_networks=("loopback", "private", "public"))
    for port in OTHER_SERVICES:
        await assert_refused(desk, f"http://127.0.0.1:{port}/", "callback_refused")
    for port in (80, 443, 8080, 8443, 3000, 8000, 40_000):
        assert (await desk.subscribe(f"http://127.0.0.1:{port}/")).status_code == 201, port
    web = await open_desk(callback_ports=("web",))
    for port in (3000, 8000, 40_000, 22):
        assert (await web.subscribe(f"http://127.0.0.1:{port}/")).status_code == 422, port
