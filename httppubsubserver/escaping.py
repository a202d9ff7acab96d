"""Text that somebody else wrote, made safe to look at: in a log, in a table on a terminal, in JSON.

What a receiver answered may be anything: bytes that are no UTF-8, escape sequences that move the cursor or set the
window's title, characters that turn the direction of the line around.
"""

from __future__ import annotations

__all__ = ["escaped"]

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
