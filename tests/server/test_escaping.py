"""Text of others, made safe to look at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubserver.escaping import escaped, shown_url


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"", ""),
        (b"Internal Server Error", "Internal Server Error"),
        ("größer ☃ 😀".encode(), "größer ☃ 😀"),
        (b"a\r\n\tb", r"a\r\n\tb"),
        (b"\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        (b"\x00\x7f", r"\x00\x7f"),
        (b"\xff\xe2\x98", r"\xff\xe2\x98"),
        ("\x80\x9b".encode(), r"\u0080\u009b"),
        ("a\u202eb\u2028\ufeff".encode(), r"a\u202eb\u2028\ufeff"),
        ("\U000e0041".encode(), r"\U000e0041"),
        (b"a\\xff", r"a\\xff"),
        ("\ud800".encode("utf-8", "surrogatepass"), r"\xed\xa0\x80"),
        ("plain\x1b\ud800", r"plain\x1b\ud800"),
    ],
)
def test_what_cannot_be_shown_is_escaped(text: bytes | str, shown: str) -> None:
    assert escaped(text) == shown


@given(st.binary())
def test_whatever_it_is_one_printable_line_that_can_be_told_apart(data: bytes) -> None:
    shown = escaped(data)
    assert shown.isprintable()
    shown.encode()
    assert len(shown) <= 10 * len(data)


@given(st.binary(max_size=4), st.binary(max_size=4))
def test_different_bytes_look_different(one: bytes, other: bytes) -> None:
    assert (escaped(one) == escaped(other)) is (one == other)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.example/services/T0/B0/secret", "https://hooks.example:443/..."),
        ("http://a.example/?token=secret#secret", "http://a.example:80"),
        ("http://127.0.0.1:3002/v1/receive", "http://127.0.0.1:3002/v1/receive"),
        ("http://127.0.0.1:3002/pubsub/v1/receive?token=secret", "http://127.0.0.1:3002/pubsub/v1/receive"),
        ("http://127.0.0.1:3002/v1/receive?durable=worker-1", "http://127.0.0.1:3002/v1/receive?durable=worker-1"),
        ("secret", "no URL"),
    ],
)
def test_of_a_callback_url_only_what_is_no_secret_is_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown
