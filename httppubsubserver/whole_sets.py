"""A whole set of subscriptions as it was sent: a JSON document of many entries, read one by one.

A parser that takes the document at once holds up everybody meanwhile, and makes of a few megabytes of nonsense a few
gigabytes of complaints. Here each entry is parsed when its turn has come (subscribe_checks.py), none is larger than a
request for a single subscription may be, and the first fault ends it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Final

from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubclient.protocol.messages import SubscribeRequest
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.http_requests import no_such_member, parsed_json
from httppubsubserver.http_schemas import MAX_SUBSCRIPTIONS_OF_A_SET, PatternFields

__all__ = ["WholeSet"]

_MAX_ENTRY: Final = 64 * 1024
"""Characters."""
_MEMBER: Final = "subscriptions"
_SPACE: Final = re.compile(r"[ \t\n\r]*+")
_DECODER: Final = json.JSONDecoder()


class WholeSet:
    """The entries of one document, `{"subscriptions": [...]}`, as far as they have been read.

    `make` turns one into what is asked for. Raises `InvalidRequest` for a document that is not UTF-8.
    """

    def __init__(self, document: bytes, make: Callable[[PatternFields], SubscribeRequest]) -> None:
        try:
            self._text = document.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidRequest("body: Invalid JSON: it is not UTF-8") from None
        self._make = make
        self._at = 0
        self._window = ""
        self._window_at = 0
        self.fields: list[PatternFields] = []
        self.requests: list[SubscribeRequest] = []
        """One for each of `fields`."""
        self.patterns: set[Pattern] = set()

    def steps(self) -> Iterator[int]:
        """Read an entry at each step; yields how many characters it had. Raises `InvalidRequest`, `InvalidTopic`,
        `InvalidGlob`."""
        self._take("{")
        if self._next() != '"':
            raise InvalidRequest(f"{_MEMBER}: Field required") if self._next() == "}" else self._malformed()
        name = str(self._value())
        if name != _MEMBER:
            raise InvalidRequest(no_such_member(name, [_MEMBER]))
        self._take(":")
        if self._next() != "[":
            raise InvalidRequest(f"{_MEMBER}: Input should be a valid list")
        self._at += 1
        if self._next() == "]":
            self._at += 1
        else:
            yield from self._entries()
        if self._next() == ",":
            raise InvalidRequest(f"body: there is nothing but {_MEMBER!r}, once")
        self._take("}")
        if self._next():
            raise self._malformed()

    def _entries(self) -> Iterator[int]:
        while True:
            place = f"{_MEMBER}.{len(self.fields)}"
            if self._next() != "{":
                raise InvalidRequest(f"{place}: Input should be an object")
            if len(self.fields) == MAX_SUBSCRIPTIONS_OF_A_SET:
                raise InvalidRequest(f"{_MEMBER}: List should have at most {MAX_SUBSCRIPTIONS_OF_A_SET} items")
            began = self._at
            self._value()  # only to see where it ends
            fields = parsed_json(PatternFields, self._text[began : self._at], place=place)
            request = self._make(fields)
            self.fields.append(fields)
            self.requests.append(request)
            self.patterns.add(request.pattern)
            yield self._at - began
            separator = self._next()
            if separator not in (",", "]"):
                raise self._malformed()
            self._at += 1
            if separator == "]":
                return

    def _value(self) -> object:
        """The string or object that begins here. It is looked for in a window: what does not end within that is not
        looked at any further."""
        offset = self._at - self._window_at
        try:
            value, end = _DECODER.raw_decode(self._window, offset)
        except (ValueError, RecursionError):
            self._window_at = self._at
            self._window = self._text[self._at : self._at + _MAX_ENTRY]
            try:
                value, end = _DECODER.raw_decode(self._window)
            except (ValueError, RecursionError):
                raise self._malformed() from None
        self._at = self._window_at + end
        return value

    def _next(self) -> str:
        """The next character that is no space; none at the end."""
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return self._text[self._at : self._at + 1]

    def _take(self, expected: str) -> None:
        if self._next() != expected:
            raise self._malformed()
        self._at += 1

    def _malformed(self) -> InvalidRequest:
        return InvalidRequest(
            f"body: Invalid JSON at character {self._at} (counted from 0), or more than {_MAX_ENTRY} characters from "
            "there to the end of an entry"
        )
