"""Callback URLs: refused for their form, or brought into the one spelling that names a subscription.

Canonical means (RFC 3986 section 6.2.2, 6.2.3): scheme and host in lower case, no default port, no trailing dot of
the host, addresses in their one form, `%7e` as `~`, other escapes in upper case, no dot segments, never an empty path.

What is refused here can never be called or would be read differently by different programs: another scheme, user
info, a backslash, an address in any form but dotted quad (`127.1`, `0x7f000001`), a port of 0. Which hosts and
addresses may be called is policy, and not decided here.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from dataclasses import dataclass
from typing import Final, Literal

from httppubsubclient.protocol.errors import InvalidUrl

__all__ = ["MAX_QUERY_PARAMETERS", "MAX_URL_LENGTH", "CallbackUrl", "parse_callback_url", "split_callback_url"]

MAX_URL_LENGTH: Final = 2048
MAX_QUERY_PARAMETERS: Final = 50

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# RFC 3986 appendix B with the scheme required, over the characters of its section 2; possessive, hence linear.
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*+):(?://(?P<authority>[^/?#]*+))?"
    r"(?P<path>[^?#]*+)(?P<query>\?[^#]*+)?(?:#(?P<fragment>.*+))?"
)
# The usual form of a canonical URL: no brackets. What it lets through can stand in a request line and a Host field.
_CANONICAL = re.compile(r"(https?)://([a-z0-9._-]++)(?::([1-9][0-9]{0,4}))?(/[!$-Z_a-z~]*+)(?:#([!$-Z_a-z~]++))?")
_FORBIDDEN = re.compile(r"[^!-~]|[\"<>\\^`{|}]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PORT = re.compile(r"0*+([0-9]{1,5})", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class CallbackUrl:
    """A callback URL in its canonical form. Two spellings of one URL are equal."""

    scheme: Literal["http", "https"]
    host: str
    """In lower case; an IPv6 address without brackets."""
    port: int
    target: str
    """Path and query, as they stand in a request line."""
    fragment: str | None
    """Part of the name, not of the request. Never empty."""
    name: str
    """The whole URL with its fragment: what names it."""
    request_url: str
    """The URL without its fragment."""
    origin: str
    """`scheme://host:port`, always with the port."""


def parse_callback_url(text: str) -> CallbackUrl:
    """The canonical form of a URL. Raises `InvalidUrl`, whose text never holds a password from the URL."""
    if len(text) > MAX_URL_LENGTH:
        raise InvalidUrl(f"a callback URL has at most {MAX_URL_LENGTH} characters; this one has {len(text)}")
    bad = _FORBIDDEN.search(text)
    if bad is not None:
        raise InvalidUrl(
            f"a callback URL cannot hold the character {bad[0]!a} (at {bad.start() + 1}): "
            "percent-encode it, in a host name use the xn-- form"
        )
    if _BAD_ESCAPE.search(text):
        raise InvalidUrl("a callback URL has two hexadecimal digits after each '%'")
    match = _URL.fullmatch(text)
    scheme = "" if match is None else match["scheme"].lower()
    if match is None or match["authority"] is None or (scheme != "http" and scheme != "https"):
        raise InvalidUrl("a callback URL begins with http:// or https://")
    host, port = _host_and_port(match["authority"], scheme)
    path = _without_dot_segments(_normalised(match["path"], "path")) or "/"
    query = _normalised(match["query"] or "", "query")
    if query.count("&") >= MAX_QUERY_PARAMETERS:
        raise InvalidUrl(f"a callback URL has at most {MAX_QUERY_PARAMETERS} query parameters")
    fragment = _normalised(match["fragment"] or "", "fragment")
    shown_host = f"[{host}]" if ":" in host else host
    shown_port = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    request_url = f"{scheme}://{shown_host}{shown_port}{path}{query}"
    return CallbackUrl(
        scheme="https" if scheme == "https" else "http",
        host=host,
        port=port,
        target=f"{path}{query}",
        fragment=fragment or None,
        name=f"{request_url}#{fragment}" if fragment else request_url,
        request_url=request_url,
        origin=f"{scheme}://{shown_host}:{port}",
    )


def split_callback_url(name: str) -> CallbackUrl:
    """What `parse_callback_url` gave for the URL that has this `name`, in less than half of the time.

    For names that were checked before, such as those in the store: a million of them are read when a broadcaster
    starts. Raises `InvalidUrl` for what is no URL at all. Scheme and host are the same object wherever they are equal.
    """
    match = _CANONICAL.fullmatch(name)
    if match is None or len(name) > MAX_URL_LENGTH:
        return parse_callback_url(name)
    scheme, host, port, target, fragment = match.groups()
    number = _DEFAULT_PORTS[scheme] if port is None else int(port)
    return CallbackUrl(
        scheme="https" if scheme == "https" else "http",
        host=sys.intern(host),
        port=number,
        target=target,
        fragment=fragment,
        name=name,
        request_url=name if fragment is None else name[: -1 - len(fragment)],
        origin=sys.intern(f"{scheme}://{host}:{number}"),
    )


def _host_and_port(authority: str, scheme: str) -> tuple[str, int]:
    if "@" in authority:
        raise InvalidUrl("a callback URL has no user name and no password: they belong into the configuration")
    host, separator, port = authority.rpartition(":") if not authority.endswith("]") else (authority, "", "")
    if not separator:
        host = authority
    if host.startswith("["):
        return _ipv6(host), _port(port, scheme) if separator else _DEFAULT_PORTS[scheme]
    return _name_or_ipv4(host.lower()), _port(port, scheme) if separator else _DEFAULT_PORTS[scheme]


def _port(text: str, scheme: str) -> int:
    match = _PORT.fullmatch(text)
    port = 0 if match is None else int(match[1])
    if not 1 <= port <= 65535:
        raise InvalidUrl("the port of a callback URL is a number from 1 to 65535")
    return port


def _ipv6(text: str) -> str:
    if not text.endswith("]") or "%" in text:
        raise InvalidUrl("an IPv6 address stands in brackets, without a zone")
    try:
        return ipaddress.IPv6Address(text[1:-1]).compressed
    except ValueError:
        raise InvalidUrl("what stands in the brackets is not an IPv6 address") from None


def _name_or_ipv4(text: str) -> str:
    host = text.removesuffix(".")
    if not host:
        raise InvalidUrl("a callback URL has a host")
    labels = host.split(".")
    # WHATWG URL section 3.5: a host whose last label is a number is an address. getaddrinfo reads 127.1, 0x7f000001
    # and 017700000001 as one, too; a check that takes them for names could be led to any address.
    if _NUMERIC.fullmatch(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise InvalidUrl("an IPv4 address is written as four decimal numbers, without leading zeros") from None
    if len(host) > 253:
        raise InvalidUrl("a host name has at most 253 characters")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise InvalidUrl(
            "a host name consists of labels of 1 to 63 letters, digits, '-' and '_', separated by dots; "
            "an IPv6 address stands in brackets"
        )
    return host


def _normalised(text: str, part: str) -> str:
    """Escapes in their one form (RFC 3986 section 6.2.2.1, 6.2.2.2)."""
    if "[" in text or "]" in text or (part == "fragment" and "#" in text):
        raise InvalidUrl(f"the {part} of a callback URL has '[', ']' and '#' percent-encoded")
    return _ESCAPE.sub(_normalised_escape, text)


def _normalised_escape(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if character in _UNRESERVED else match[0].upper()


def _without_dot_segments(path: str) -> str:
    """RFC 3986 section 5.2.4 for a path that is empty or begins with a slash."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            if kept:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments and segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept) if segments else ""
