"""Text that somebody else wrote, made safe to look at: in a log, in a table on a terminal, in JSON.

What a receiver answered may be anything: bytes that are no UTF-8, escape sequences that move the cursor or set the
window's title, characters that turn the direction of the line around.
"""

from __future__ import annotations

import re
from typing import Final

from httppubsubclient.protocol.callback_urls import split_callback_url
from httppubsubclient.protocol.errors import InvalidUrl
from httppubsubclient.protocol.messages import RECEIVE_PATH

__all__ = ["escaped", "shown_url"]

_DURABLE_NAME: Final = re.compile(r"durable=[A-Za-z0-9_.-]{1,64}", re.ASCII)
_NAMED = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: bytes | str) -> str:
    """`text` with what cannot be shown as `\\xNN`, `\\uNNNN` or `\\UNNNNNNNN`; a backslash is doubled.

    Bytes are read as UTF-8, and those that are none become `\\xNN`. What cannot be shown: controls, line ends, marks of
    direction and other invisible characters, lone surrogates, what Unicode has not assigned, spaces but the usual one.
    """
    if isinstance(text, bytes):
        # Lone bytes become surrogates U+DC80 to U+DCFF, which text cannot hold otherwise.
        text = text.decode("utf-8", "surrogateescape")
    return "".join(c if c.isprintable() and c != "\\" else _escape(c) for c in text)


def shown_url(url: str) -> str:
    """A callback URL for the log: its origin. The rest may be what lets others post there, and is a secret then.

    That of our client, which ends in `/v1/receive` and may have a durable name behind it, is none and is shown.
    """
    try:
        callback = split_callback_url(url)
    except InvalidUrl:
        return "no URL"
    path, _, query = callback.target.partition("?")
    if path.endswith(RECEIVE_PATH):
        return f"{callback.origin}{path}" + (f"?{query}" if _DURABLE_NAME.fullmatch(query) else "")
    return callback.origin if path == "/" else f"{callback.origin}/..."


def _escape(character: str) -> str:
    code = ord(character)
    if character in _NAMED:
        return _NAMED[character]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    # From 0x80 on \xNN stands for a byte that is no UTF-8.
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
