"""A bearer token for the broadcasters that changes: asked for, or read, anew for each request.

| `bearer_token`              | the token is                                                          |
|-----------------------------|-----------------------------------------------------------------------|
| a function                  | what it returns, or what comes of awaiting that                       |
| a `pathlib.Path`            | what the file holds, without white space around it                    |

It is for tokens of an issuer (RFC 7519), which end after minutes: whoever gets them keeps them for as long as they are
good, in his function or by writing the file anew. Neither a token nor what a function raised is in an error's text.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeAlias

from httppubsubclient.protocol.errors import ConfigurationError, PubSubError, Unavailable

__all__ = ["MAX_TOKEN_LENGTH", "BearerSource", "bearer_headers", "check_bearer_source", "read_token_file"]

BearerSource: TypeAlias = Callable[[], str | Awaitable[str]] | Path

MAX_TOKEN_LENGTH: Final = 16 * 1024
"""Characters; broadcasters take no more."""

_TOKEN = re.compile(r"[!-~]+", re.ASCII)


def check_bearer_source(source: object) -> None:
    """Raises `ConfigurationError` for what is neither. A text is refused: it could be meant as a path or as a token."""
    if not callable(source) and not isinstance(source, Path):
        raise ConfigurationError(
            "bearer_token is a function that returns the token (or something to await), or the pathlib.Path of a file "
            f"that holds it, not {type(source).__name__}"
        )


async def bearer_headers(source: BearerSource, *, seconds: float) -> dict[str, str]:
    """The header of one request.

    Raises `ConfigurationError` for what is no token and for a file that cannot be read, `Unavailable` for a function
    that fails or takes longer than this.
    """
    if isinstance(source, Path):
        return _header(read_token_file(source))
    try:
        async with asyncio.timeout(seconds):
            given = source()
            token = await given if inspect.isawaitable(given) else given
    except TimeoutError as error:
        raise Unavailable(f"bearer_token gave no token within {seconds:.3g} s") from error
    except PubSubError:
        raise
    except Exception as error:
        raise Unavailable(f"bearer_token gave no token: it raised {type(error).__name__}") from error
    return _header(_checked(token, "what bearer_token gave"))


def read_token_file(path: Path) -> str:
    """The token in this file. Raises `ConfigurationError`."""
    try:
        # Opening a pipe would wait for somebody at its other end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigurationError(f"the token file {str(path)!r} is not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_TOKEN_LENGTH + 1024)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "this is no path"
        raise ConfigurationError(f"the token file {str(path)!r} cannot be read: {reason}") from None
    return _checked(content.decode("latin-1").strip(), f"what the token file {str(path)!r} holds")


def _checked(token: object, place: str) -> str:
    if not isinstance(token, str) or len(token) > MAX_TOKEN_LENGTH or not _TOKEN.fullmatch(token):
        raise ConfigurationError(
            f"{place} is no bearer token: 1 to {MAX_TOKEN_LENGTH} visible ASCII characters, without 'Bearer'"
        )
    return token


def _header(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}
