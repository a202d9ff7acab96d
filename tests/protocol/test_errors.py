"""The tree of errors and its one table."""

from __future__ import annotations

import inspect
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from httppubsubclient.protocol import errors
from httppubsubclient.protocol.errors import (
    WIRE,
    InvalidRequest,
    PreconditionFailed,
    PubSubError,
    Replayed,
    Unauthorized,
    Unavailable,
    from_problem,
    problem,
    wire_of,
)

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, PubSubError) and cls.__module__ == errors.__name__
]


def test_the_table_has_every_class_exactly_once() -> None:
    assert set(WIRE) == set(CLASSES)
    assert len(CLASSES) == 24


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all("code" in vars(cls) for cls in CLASSES), "none is inherited"
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


def test_rpc_codes_tell_errors_apart_and_close_codes_are_legal() -> None:
    on_the_wire = [wire for cls, wire in WIRE.items() if cls is not errors.ConfigurationError]
    assert len({wire.rpc_code for wire in on_the_wire}) == len(on_the_wire)
    for wire in on_the_wire:
        assert wire.rpc_code in (-32603, -32600) or -32099 <= wire.rpc_code <= -32000
        # RFC 6455 section 7.4.2: 1004-1006 and 1015 must never be sent.
        assert wire.close_code in (1003, 1009, 1011, 1013) or 4000 <= wire.close_code <= 4999
        assert 400 <= wire.status <= 599


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"^    ([│ ]*)[├└]── (\w+) +(\w+) +(\d{3})(?:  |$)", errors.__doc__ or "", re.MULTILINE)
    parents: dict[str, str] = {}
    last_at_depth = {-1: "PubSubError"}
    for indent, name, code, status in drawn:
        depth = len(indent) // 4
        parents[name] = last_at_depth[depth - 1]
        last_at_depth[depth] = name
        cls = getattr(errors, name)
        assert (cls.code, str(WIRE[cls].status)) == (code, status)
    assert parents == {cls.__name__: cls.__mro__[1].__name__ for cls in CLASSES if cls is not PubSubError}


def test_all_classes_are_public() -> None:
    assert {cls.__name__ for cls in CLASSES} <= set(errors.__all__)
    assert errors.__all__ == sorted(errors.__all__, key=lambda name: (not name.isupper(), name))


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_survives_the_way_through_a_problem_document(cls: type[PubSubError]) -> None:
    document = problem(cls("what is wrong"))
    assert document == {
        "type": "about:blank",
        "status": WIRE[cls].status,
        "title": WIRE[cls].title,
        "detail": "what is wrong",
        "code": cls.code,
    }
    back = from_problem(document["code"], "what is wrong")
    assert type(back) is cls
    assert back.detail == str(back) == "what is wrong"


def test_an_error_made_elsewhere_counts_as_its_nearest_parent() -> None:
    class Special(Replayed):
        pass

    assert wire_of(Special("x")) == WIRE[Replayed]


def test_facts_are_attributes() -> None:
    assert from_problem("unavailable", "x", retry_after_seconds=2.5).__dict__["retry_after_seconds"] == 2.5
    assert Unavailable("x").retry_after_seconds is None
    assert PreconditionFailed("x", etag='"1"').etag == '"1"'
    assert Unauthorized("x", reason="missing").reason == "missing"
    assert Replayed("x").reason is None
    assert Replayed("x").challenge is None


@given(st.none() | st.integers() | st.text() | st.lists(st.text()) | st.dictionaries(st.text(), st.text()))
def test_an_unknown_code_is_the_root_class(code: object) -> None:
    assume(code not in [cls.code for cls in errors.WIRE])
    assert type(from_problem(code, "x")) is PubSubError


def test_an_invalid_topic_is_an_invalid_request() -> None:
    with pytest.raises(InvalidRequest):
        raise errors.InvalidTopic("x")
