"""Every secret that the suite makes is a canary: none may be seen in what is logged, answered or raised.

`install` (tests/conftest.py) has whatever makes a key tell of it: `Key`, the keys of Standard Webhooks, the files that
`--setup` writes. From then on each line of the project's logs, at every level, each error's text, each answer that an
HTTP client of the suite gets, and each line that a process of ours prints is looked at. A test in which a secret was
seen fails.

Two places may show one: the answer to the call that made it ("secret" of a subscription, once), and the command that
signs. A secret of one or two different characters is none, because it could not be told from a body, and neither is one
that counts (`bytes(range(32))`): bodies and topics of tests do, too.
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import logging
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

__all__ = ["install", "look_at", "plant", "plant_file", "taken"]

_LENGTH: Final = 16
"""So many characters of a secret in a row are a leak; shorter secrets are not looked for."""
_DIFFERENT: Final = 6
_WORD = re.compile(r"[!#-~]{16,}")

_COUNTING: Final = " ".join(base64.b64encode(bytes(range(start, 256))).decode() for start in range(3))
"""What bytes that count look like in base64, wherever they begin: topics and bodies of tests have them, too."""

_pieces: set[str] = set()
"""Of every secret, in every form."""
_seen: list[str] = []


def plant(secret: bytes | str) -> None:
    """Whatever shows this from now on has given it away: as it is, in base64 of any kind, in hexadecimal."""
    raw = secret.encode() if isinstance(secret, str) else secret
    if all(after == before + 1 for before, after in itertools.pairwise(raw)):
        return
    forms = [raw.decode("latin-1"), raw.hex(), repr(raw)[2:-1]]
    forms += [base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()]
    for form in forms:
        for at in range(0, len(form) - _LENGTH + 1, 8):
            piece = form[at : at + _LENGTH]
            if len(set(piece)) >= _DIFFERENT and _WORD.fullmatch(piece) and piece not in _COUNTING:
                _pieces.add(piece)


def plant_file(path: Path) -> None:
    """Every secret of a secrets file, or of one that holds nothing else."""
    text = path.read_text()
    try:
        document = json.loads(text)
    except ValueError:
        for line in text.split():
            plant(line)
        return
    for direction in ("to_broadcasters", "to_subscribers"):
        for key in document[direction].get("keys", ()):
            plant(key["secret"])


def look_at(where: str, text: str) -> None:
    """Remember it when the text holds a secret. What is shown of it is not the secret."""
    for word in _WORD.findall(text):
        for at in range(len(word) - _LENGTH + 1):
            if word[at : at + _LENGTH] in _pieces:
                _seen.append(f"{where}: {text[:200].replace(word, '<here>')!r}")
                return


def taken() -> list[str]:
    """What was seen since this was asked last."""
    seen, _seen[:] = list(_seen), []
    return seen


def install() -> None:
    """Watch this process. Only once."""
    import httpx

    from httppubsubclient.protocol import errors, keys, standard_webhooks

    _after(keys.Key, "__post_init__", lambda key: plant(key.secret))
    _after(standard_webhooks.SharedSecret, "__post_init__", lambda key: plant(key.secret))
    _after(standard_webhooks.PrivateKey, "__post_init__", lambda key: plant(key.seed))
    _after(errors.PubSubError, "__init__", lambda error: look_at(type(error).__name__, error.detail))
    for name in ("debug", "info", "warning", "error", "critical", "exception", "log"):
        setattr(logging.Logger, name, _watched(name, getattr(logging.Logger, name)))
    _answers_of(httpx)


def _after(cls: type, name: str, then: Callable[[Any], object]) -> None:
    inner = getattr(cls, name)

    @functools.wraps(inner)
    def method(self: Any, *arguments: Any, **options: Any) -> None:
        inner(self, *arguments, **options)
        then(self)

    setattr(cls, name, method)


def _watched(name: str, inner: Callable[..., None]) -> Callable[..., None]:
    """A method of loggers that looks at what is said by ours, whatever the level, and then says it."""

    @functools.wraps(inner)
    def say(self: logging.Logger, *arguments: Any, **options: Any) -> None:
        if self.name.startswith("httppubsub"):
            message, *values = arguments[1:] if name == "log" else arguments
            look_at(f"log {self.name}", str(message) % tuple(values) if values else str(message))
            if name == "exception" or options.get("exc_info"):
                look_at(f"traceback {self.name}", traceback.format_exc())
        inner(self, *arguments, **{**options, "stacklevel": options.get("stacklevel", 1) + 1})

    return say


def _answers_of(httpx: Any) -> None:
    send, send_async = httpx.Client.send, httpx.AsyncClient.send

    @functools.wraps(send)
    def watched(self: Any, request: Any, **options: Any) -> Any:
        response = send(self, request, **options)
        _look_at_answer(request, response)
        return response

    @functools.wraps(send_async)
    async def watched_async(self: Any, request: Any, **options: Any) -> Any:
        response = await send_async(self, request, **options)
        _look_at_answer(request, response)
        return response

    httpx.Client.send = watched
    httpx.AsyncClient.send = watched_async


def _look_at_answer(request: Any, response: Any) -> None:
    if not response.is_closed:
        return  # streamed: a body that somebody published
    where = f"answer to {request.method} {request.url.path}"
    look_at(where, "\n".join(f"{name}: {value}" for name, value in response.headers.items()))
    content = response.content
    if len(content) < 1_000_000 and b"\0" not in content:
        text = content.decode("utf-8", "replace")
        made = request.method in ("POST", "PUT") and request.url.path.endswith("/subscriptions")
        look_at(where, _without_new_secrets(text) if made else text)


def _without_new_secrets(text: str) -> str:
    return re.sub(r'"secret":\s*"[^"]*"', '"secret": ""', text)
