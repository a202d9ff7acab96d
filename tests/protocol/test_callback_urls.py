"""Callback URLs: one spelling for each, and what is refused for its form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.callback_urls import CallbackUrl, parse_callback_url, split_callback_url
from httppubsubclient.protocol.errors import InvalidUrl

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "callback_urls.json").read_text())
REFUSED = [
    pytest.param(url, id=f"{cause}: {ascii(url)[1:60]}") for cause, urls in VECTORS["refused"].items() for url in urls
]


@pytest.mark.parametrize("spellings", VECTORS["same"], ids=lambda spellings: spellings[0])
def test_all_spellings_of_a_url_have_the_name_of_the_first(spellings: list[str]) -> None:
    canonical = parse_callback_url(spellings[0])
    assert canonical.name == spellings[0] or len(spellings) > 1
    assert {parse_callback_url(spelling) for spelling in spellings} == {canonical}
    assert parse_callback_url(canonical.name) == canonical
    assert split_callback_url(canonical.name) == canonical


@pytest.mark.parametrize("url", REFUSED)
def test_a_url_that_cannot_be_called_is_refused(url: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        parse_callback_url(url)
    assert "pw" not in str(caught.value), "no password gets into a log"


def test_a_url_is_taken_apart() -> None:
    url = parse_callback_url("HTTP://Host.Example:80/pubsub/%7Ea?b=%2f#1")
    assert url == CallbackUrl(
        scheme="http",
        host="host.example",
        port=80,
        target="/pubsub/~a?b=%2F",
        fragment="1",
        name="http://host.example/pubsub/~a?b=%2F#1",
        request_url="http://host.example/pubsub/~a?b=%2F",
        origin="http://host.example:80",
    )


def test_an_ipv6_address_has_brackets_in_urls_only() -> None:
    url = parse_callback_url("https://[2001:DB8::0:1]:8443/x")
    assert (url.host, url.port) == ("2001:db8::1", 8443)
    assert url.origin == "https://[2001:db8::1]:8443"
    assert url.request_url == "https://[2001:db8::1]:8443/x"


def test_urls_that_differ_only_in_their_fragment_have_different_names_and_one_request() -> None:
    one, two = parse_callback_url("http://h:3002/x#1"), parse_callback_url("http://h:3002/x#2")
    assert one.name != two.name
    assert one.request_url == two.request_url
    assert one.origin == two.origin


def test_bounds_are_exact() -> None:
    longest = "http://host/" + "a" * (2048 - 12)
    assert parse_callback_url(longest).name == longest
    assert parse_callback_url("http://host/?" + "&".join(["a=1"] * 50))
    label = "a" * 63
    assert parse_callback_url(f"http://{label}.example/")
    assert parse_callback_url("http://" + ".".join([label] * 3 + ["b" * 61]) + "/")
    with pytest.raises(InvalidUrl):
        parse_callback_url("http://" + ".".join([label] * 3 + ["b" * 62]) + "/")


PIECES = [
    "http", "https", "://", ":", "/", "//", "[", "]", "::1", "a", "A", "1", "0x1", ".", "..", "%2e", "%7E", "%41",
    "%zz", "?", "&", "#", "@", "\\", "-", "_", "80", ":443", "xn--a", "é", "~", "%2F", "=", ";", "127.0.0.1", "\n",
]  # fmt: skip
PARTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@given(
    PARTS | PARTS.map(lambda text: "http://h" + text) | PARTS.map(lambda text: "http://" + text) | st.text(max_size=40)
)
def test_a_random_url_is_refused_or_canonical(text: str) -> None:
    try:
        url = parse_callback_url(text)
    except InvalidUrl:
        return
    assert parse_callback_url(url.name) == url
    assert split_callback_url(url.name) == url
    assert url.name == url.request_url + (f"#{url.fragment}" if url.fragment else "")
    assert 1 <= url.port <= 65535
    assert url.target.startswith("/")
    assert "@" not in url.origin
    seen_by_httpx: Any = httpx.URL(url.request_url)
    assert seen_by_httpx.raw_path.decode() == url.target, "what is sent is what was checked"
    assert seen_by_httpx.raw_host.decode() == url.host
    assert (seen_by_httpx.port or {"http": 80, "https": 443}[url.scheme]) == url.port


@given(PARTS.map(lambda text: "http://h/" + text) | st.from_regex(r"https?://[^ ]*/[^ ]*") | st.text(max_size=40))
def test_taking_apart_what_was_never_checked_gives_nothing_that_ends_a_line_of_a_request(text: str) -> None:
    try:
        url = split_callback_url(text)
    except InvalidUrl:
        return
    assert all("!" <= character <= "~" for character in url.name + url.target + url.origin + (url.fragment or ""))


def test_what_urls_have_in_common_is_kept_once() -> None:
    one, two = split_callback_url("http://h:3002/x"), split_callback_url("http://h:3002/y")
    assert one.host is two.host
    assert one.origin is two.origin
    assert one.request_url is one.name
