"""The configuration of the client: who we are, where the broadcasters are, and the limit of everything.

    send_auth, receive_auth = get_auth_config_from_file("subscriber-secrets.json")
    HttpPubSubConfig(
        bind=HttpPubSubBindUvicornConfig(type="uvicorn", address="0.0.0.0", port=3002),
        host="http://192.0.2.0:3002",
        send_auth=send_auth,
        receive_auth=receive_auth,
    )

Everything is checked when it is constructed: a wrong value raises `ConfigurationError` that names it.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired
from urllib.parse import urlsplit

from typing_extensions import TypedDict

from httppubsubclient.bearer import BearerSource, check_bearer_source
from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.credentials import Credentials, secrets_from_json
from httppubsubclient.protocol.errors import ConfigurationError, InvalidUrl
from httppubsubclient.protocol.messages import RECEIVE_PATH

if TYPE_CHECKING:
    from fastapi import APIRouter

__all__ = [
    "HttpPubSubBindManualConfig",
    "HttpPubSubBindUvicornConfig",
    "HttpPubSubConfig",
    "get_auth_config_from_file",
]

logger = logging.getLogger(__name__)

MEBIBYTE = 1024 * 1024
GIBIBYTE = 1024 * MEBIBYTE

_PORT_ZERO = re.compile(r"(?P<origin>[A-Za-z]+://(?:\[[^\]/?#]*\]|[^:/?#@\[]*)):0+(?=/|\Z)")


class HttpPubSubBindUvicornConfig(TypedDict):
    """The client listens by itself, with uvicorn inside the running event loop. Port 0 takes a free one."""

    type: Literal["uvicorn"]
    address: str
    port: int
    ssl_certfile: NotRequired[Path | str]
    """PEM: with it, what is listened for is TLS."""
    ssl_keyfile: NotRequired[Path | str]
    """Its key, if that is in another file."""
    ssl_ca_certs: NotRequired[Path | str]
    """PEM: only those are let in who show a certificate that leads to one of these."""


class HttpPubSubBindManualConfig(TypedDict):
    """You serve the router. The callback gets it when the client is entered; it may be sync or async, and may return
    an async context manager, which is then entered and left together with the client."""

    type: Literal["manual"]
    callback: Callable[[APIRouter], object]


@dataclass(frozen=True, kw_only=True)
class HttpPubSubConfig:
    """What a `HttpPubSubClient` is told. Only the two directions of authentication are required."""

    send_auth: Credentials
    """How we prove ourselves to the broadcasters."""
    receive_auth: Credentials
    """How the broadcasters prove themselves to us."""
    bearer_token: BearerSource | None = field(default=None, repr=False)
    """Instead of the keys of `send_auth`: a function that returns a token (or something to await), or the
    `pathlib.Path` of a file that holds it; asked anew for each request, so for tokens of an issuer."""
    host: str | None = None
    """How the broadcasters reach us: the URL under which our router is served, without `/v1/receive`. It may have a
    path, and a fragment that tells apart several processes behind one address: `http://192.0.2.0:3002/pubsub#1`.
    Port 0 stands for the port that `bind` really got. None: this client only publishes."""
    bind: HttpPubSubBindUvicornConfig | HttpPubSubBindManualConfig | None = None
    """Who listens. None: include `client.router` in an app of your own."""
    broadcasters: Sequence[str] | None = None
    """Their base URLs; None takes those of the secrets file."""
    broadcaster_ca_file: Path | str | None = None
    """PEM certificates to trust for https broadcasters instead of the built-in ones."""
    broadcaster_client_certfile: Path | str | None = None
    """PEM: the certificate that we show to https broadcasters that ask for one."""
    broadcaster_client_keyfile: Path | str | None = None
    """Its key, if that is in another file."""

    request_timeout_seconds: float = 10.0
    """Until when a call is tried again, and the whole deadline of every call but notify: all broadcasters together."""
    connect_timeout_seconds: float = 3.0
    """The longest that one connection to one broadcaster may take to open."""
    notify_timeout_seconds: float = 45.0
    """The deadline of one notify. The broadcaster itself gives up on its subscribers after 30 s by default: stay above
    that."""
    min_bytes_per_second: int = 1_000_000
    """A large body extends the deadline of its notify by its size divided by this, once in and once out."""
    leave_timeout_seconds: float = 5.0
    """How long leaving a subscription, a callback or the client waits for the broadcasters."""
    lease_seconds: int = 600
    """How long the broadcasters keep our subscriptions when we die; renewed at a third of it."""

    durable_lease_seconds: int = 864_000
    """How long the broadcasters keep what is subscribed under a durable name while it is away; renewed at a third of
    it. At most what their `max_lease_seconds` allows."""
    ack_timeout_seconds: float = 8.0
    """How long the answer to a durable delivery waits to be acknowledged; then it is 503, and the next attempt waits
    on. Stay below the broadcasters' `attempt_timeout_seconds`."""

    buffer_messages: int = 1024
    """Messages that wait in one subscription for its consumer; more are answered 503, to be sent again later."""
    buffer_bytes: int = 64 * MEBIBYTE
    """The same in bytes of bodies in memory. An empty buffer takes any one message."""
    buffer_spooled_bytes: int = 4 * GIBIBYTE
    """The same in bytes of bodies in temporary files."""
    remembered_message_ids: int = 10_000
    """Ids that one subscription remembers to drop duplicates; of durable ones the client remembers so many in all."""
    remember_file: Path | str | None = None
    """Where the client remembers durable messages across its restarts; a second file `.2` lies beside it, and for those
    of best effort `.once` and `.once.2`. Each process needs its own. None: in memory only."""
    spool_bytes: int = 10 * MEBIBYTE
    """Larger bodies, in either direction, lie in a temporary file."""
    spool_directory: Path | str | None = None
    """Where; the system's temporary directory by default."""
    max_body_bytes: int = 5 * GIBIBYTE
    """The largest message, in either direction."""
    max_webhook_bytes: int = 16 * MEBIBYTE
    """The largest message that is verified or decoded as a whole: of a subscription with a secret of its own, or in
    structured mode."""
    body_idle_timeout_seconds: float = 30.0
    """A delivery whose body stops arriving for this long is answered 408."""
    signature_tolerance_seconds: int = 300
    """How far `created` of a signature may lie from our clock."""
    max_remembered_nonces: int = 100_000
    """Signatures that are remembered against replay; beyond it the oldest go, and what is older is refused."""

    def __post_init__(self) -> None:
        for name in ("send_auth", "receive_auth"):
            if not isinstance(getattr(self, name), Credentials):
                raise ConfigurationError(
                    f"{name} is a Credentials: send_auth, receive_auth = get_auth_config_from_file(path)"
                )
        if self.bearer_token is not None:
            check_bearer_source(self.bearer_token)
        for name, (least, whole) in _NUMBERS.items():
            _check_number(name, getattr(self, name), least, whole)
        if self.host is not None:
            _check_host(self.host)
        if self.bind is not None:
            _check_bind(self.bind)
        if self.bind is not None and self.host is None:
            raise ConfigurationError("bind needs host: the URL at which the broadcasters reach what it serves")
        listens = self.bind is not None and self.bind["type"] == "uvicorn"
        if self.host is not None and _PORT_ZERO.match(self.host) and not listens:
            raise ConfigurationError("host with port 0 needs bind with type='uvicorn', which knows the real port")
        for name in _PATHS:
            path = getattr(self, name)
            if path is not None and not isinstance(path, (str, Path)):
                raise ConfigurationError(f"{name} is a path, not {type(path).__name__}")
        if self.broadcaster_client_keyfile is not None and self.broadcaster_client_certfile is None:
            raise ConfigurationError(
                "broadcaster_client_keyfile is the key of a certificate: set broadcaster_client_certfile, too"
            )
        if listens and self.bind is not None and "ssl_certfile" in self.bind and (self.host or "").startswith("http:"):
            raise ConfigurationError(
                "bind['ssl_certfile'] makes the listener speak TLS, but host begins with http: write https"
            )
        if self.broadcasters is not None:
            urls = tuple(dict.fromkeys(_broadcaster_url(url) for url in _several(self.broadcasters)))
            object.__setattr__(self, "broadcasters", urls)

    def broadcaster_urls(self) -> tuple[str, ...]:
        """The base URLs of the broadcasters, without a slash at the end. Raises when nobody said where they are."""
        urls = self.broadcasters
        if urls is None:
            urls = tuple(dict.fromkeys(_broadcaster_url(url) for url in self.send_auth.broadcasters))
        if not urls:
            raise ConfigurationError(
                "no broadcaster is known: list their URLs under 'broadcasters' in the secrets file, or give "
                "HttpPubSubConfig(broadcasters=['http://192.0.2.1:3003']) (httppubsubclient: --broadcaster URL)"
            )
        return tuple(urls)

    def callback_url(self, port: int | None) -> str:
        """The URL that we subscribe with, fragment included; `port` replaces port 0 of `host`."""
        if self.host is None:
            raise ConfigurationError(
                "subscribing needs HttpPubSubConfig(host='http://...'): the URL at which the broadcasters reach us"
            )
        return _callback_url(self.host, port)

    @property
    def spool_path(self) -> str | None:
        """`spool_directory` as text."""
        return None if self.spool_directory is None else os.fspath(self.spool_directory)

    @property
    def has_port_of_its_own(self) -> bool:
        """Whether the callback URL is the same after a restart, as durable names need it."""
        return self.host is not None and not _PORT_ZERO.match(self.host)

    @property
    def path(self) -> str:
        """The path of `host`, without a slash at the end: the prefix under which our router is expected."""
        return urlsplit((self.host or "").partition("#")[0]).path.rstrip("/")

    @property
    def fragment(self) -> str | None:
        """The fragment of `host`, which each delivery for this process carries; None without one."""
        return parse_callback_url(_callback_url(self.host, 1)).fragment if self.host is not None else None


def get_auth_config_from_file(path: str | os.PathLike[str]) -> tuple[Credentials, Credentials]:
    """`(send_auth, receive_auth)` from the subscriber-secrets.json that `httppubsubserver --setup` wrote.

    Raises `ConfigurationError` that says what is wrong with the file; its text never holds a secret.
    """
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except FileNotFoundError:
        raise ConfigurationError(
            f"there is no secrets file {os.fspath(path)!r}: copy subscriber-secrets.json from where "
            "`httppubsubserver --setup` was run, or name it (httppubsubclient: --secrets FILE)"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"the secrets file {os.fspath(path)!r} is not readable: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"the secrets file {os.fspath(path)!r} is not UTF-8") from None
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        logger.warning(
            "the secrets file %r is open to other users (mode %03o): chmod 600 it", os.fspath(path), stat.S_IMODE(mode)
        )
    try:
        fields = json.loads(content)
    except ValueError as error:
        # The error of the json module quotes no content when only its position is told.
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "somewhere"
        raise ConfigurationError(f"the secrets file {os.fspath(path)!r} is not JSON, at {where}") from None
    try:
        secrets = secrets_from_json(fields)
    except ConfigurationError as error:
        raise ConfigurationError(f"the secrets file {os.fspath(path)!r}: {error.detail}") from None
    return secrets.to_broadcasters, secrets.to_subscribers


# name -> (least, whole number)
_NUMBERS: dict[str, tuple[float, bool]] = {
    "request_timeout_seconds": (0.001, False),
    "connect_timeout_seconds": (0.001, False),
    "notify_timeout_seconds": (0.001, False),
    "min_bytes_per_second": (1, True),
    "leave_timeout_seconds": (0.001, False),
    "lease_seconds": (1, True),
    "durable_lease_seconds": (1, True),
    "ack_timeout_seconds": (0.001, False),
    "buffer_messages": (1, True),
    "buffer_bytes": (0, True),
    "buffer_spooled_bytes": (0, True),
    "remembered_message_ids": (1, True),
    "spool_bytes": (0, True),
    "max_body_bytes": (0, True),
    "max_webhook_bytes": (0, True),
    "body_idle_timeout_seconds": (0.001, False),
    "signature_tolerance_seconds": (1, True),
    "max_remembered_nonces": (1, True),
}

_PATHS = ("remember_file", "broadcaster_ca_file", "broadcaster_client_certfile", "broadcaster_client_keyfile")

_BIND_KEYS: dict[str, dict[str, type]] = {
    "uvicorn": {"type": str, "address": str, "port": int},
    "manual": {"type": str, "callback": object},
}

_BIND_PATHS = ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs")
"""Those of 'uvicorn' that may be left out."""


def _check_number(name: str, value: Any, least: float, whole: bool) -> None:
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    # NaN compares false with everything, so it fails here, too; the upper bound keeps infinity out.
    if not is_number or not least <= value < 2**63:
        raise ConfigurationError(f"{name} is {'a whole number' if whole else 'a number'} from {least}; got {value!r}")


def _check_bind(bind: object) -> None:
    if not isinstance(bind, Mapping):
        raise ConfigurationError(f"bind is a dict with a 'type' of 'uvicorn' or 'manual', not {type(bind).__name__}")
    kind = bind.get("type")
    if kind not in _BIND_KEYS:
        raise ConfigurationError(f"bind['type'] is 'uvicorn' or 'manual'; got {kind!r}{_nearest(kind, _BIND_KEYS)}")
    keys = _BIND_KEYS[kind]
    optional = dict.fromkeys(_BIND_PATHS) if kind == "uvicorn" else {}
    for key in bind:
        if key not in keys and key not in optional:
            raise ConfigurationError(f"bind[{key!r}] means nothing with type={kind!r}{_nearest(key, keys | optional)}")
    for key in optional:
        if key in bind and not isinstance(bind[key], (str, Path)):
            raise ConfigurationError(f"bind[{key!r}] is a path; got {bind[key]!r}")
        if key in bind and "ssl_certfile" not in bind:
            raise ConfigurationError(f"bind[{key!r}] means nothing without a certificate: set bind['ssl_certfile']")
    for key, expected in keys.items():
        if key not in bind:
            raise ConfigurationError(f"bind[{key!r}] is missing with type={kind!r}")
        if not isinstance(bind[key], expected) or isinstance(bind[key], bool):
            raise ConfigurationError(f"bind[{key!r}] is of type {expected.__name__}; got {bind[key]!r}")
    if kind == "uvicorn" and not 0 <= bind["port"] <= 65535:
        raise ConfigurationError(f"bind['port'] is 0 to 65535; got {bind['port']}")
    if kind == "manual" and not callable(bind["callback"]):
        raise ConfigurationError("bind['callback'] is a function that takes the router")


def _nearest(given: object, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(str(given), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(map(repr, known))}"


def _check_host(host: object) -> None:
    if not isinstance(host, str):
        raise ConfigurationError(f"host is a URL as text, not {type(host).__name__}")
    if "?" in host.partition("#")[0]:
        raise ConfigurationError(f"host has no query: the path {RECEIVE_PATH} is appended to it; got {host!r}")
    try:
        parse_callback_url(_callback_url(host, 1))
    except InvalidUrl as error:
        raise ConfigurationError(f"host: {error.detail}") from None


def _callback_url(host: str, port: int | None) -> str:
    base, hash_sign, fragment = host.partition("#")
    if port is not None:
        base = _PORT_ZERO.sub(rf"\g<origin>:{port}", base)
    return parse_callback_url(f"{base.rstrip('/')}{RECEIVE_PATH}{hash_sign}{fragment}").name


def _several(urls: object) -> Sequence[object]:
    if isinstance(urls, str) or not isinstance(urls, Sequence):
        raise ConfigurationError(f"broadcasters is a list of URLs; got {urls!r}")
    return urls


def _broadcaster_url(url: object) -> str:
    if not isinstance(url, str):
        raise ConfigurationError(f"a broadcaster's URL is text, not {type(url).__name__}")
    try:
        parsed = parse_callback_url(url)
    except InvalidUrl as error:
        fault = error.detail.replace("callback URL", "broadcaster's URL")
        shown = "" if "@" in url else f"; got {url[:200]!r}"  # what has an @ may have a password
        raise ConfigurationError(f"broadcasters: {fault}{shown}") from None
    if parsed.fragment is not None or "?" in url:
        raise ConfigurationError(f"a broadcaster's URL has neither query nor fragment; got {url!r}")
    return parsed.request_url.rstrip("/")
