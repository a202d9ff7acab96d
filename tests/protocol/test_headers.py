"""Header fields as one dict."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubclient.protocol.headers import SINGLE, parse_headers


def test_names_are_lower_case_and_values_without_white_space_around_them() -> None:
    assert parse_headers([(b"Content-Type", b" text/plain\t"), (b"X", b"\xff")]) == {
        "content-type": "text/plain",
        "x": "\xff",
    }


def test_what_may_come_more_than_once_is_joined() -> None:
    assert parse_headers([(b"prefer", b"wait=1"), (b"Prefer", b"respond-async")]) == {"prefer": "wait=1, respond-async"}


@pytest.mark.parametrize("name", sorted(SINGLE))
def test_what_decides_something_comes_once(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        parse_headers([(name.encode(), b"a"), (name.title().encode(), b"a")])


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20))))
def test_any_bytes_are_headers_or_an_invalid_request(raw: list[tuple[bytes, bytes]]) -> None:
    with contextlib.suppress(InvalidRequest):
        parse_headers(raw)
