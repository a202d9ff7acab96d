"""Every setting of the broadcaster, in one frozen model. docs/configuration.md describes them; a test compares.

They come from a TOML file, then `HTTPPUBSUB_<SETTING>` variables, then flags; the later one wins. A setting that
does not exist is an error that names the nearest one that does. Relative paths in the file, that of an SQLite
database included, are relative to the folder of the file; elsewhere to the current one.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.keys import Secrets, secrets_from_json

__all__ = ["ServerConfig", "load_config", "load_secrets", "nearest"]

MEBIBYTE = 1024 * 1024
_CENTURY_SECONDS = 100 * 365 * 86_400

_LOG = logging.getLogger("httppubsub.server")

_VARIABLE_PREFIX = "HTTPPUBSUB_"
_FILE_VARIABLE = "HTTPPUBSUB_CONFIG"
STORAGE_KEY_VARIABLE = "HTTPPUBSUB_STORAGE_KEY"
"""Holds a secret, so it is no setting: settings can be flags, and are shown."""
_CLIENT_PREFIX = "HTTPPUBSUB_CLIENT_"
"""The commands of the client have variables of their own."""

_UNSHOWN = frozenset({"db", "egress_proxy"})
"""Settings whose value may hold a password: error texts never repeat it."""

_LISTS = {
    "callback_networks": '["public", "10.1.0.0/16"]',
    "callback_ports": '["web", 9000, "9100-9199"]',
    "nat64_prefixes": '["2001:db8:64::/96"]',
    "callback_hosts": '["orders.internal"]',
}
"""An example of each setting that is a list."""


class ServerConfig(BaseModel):
    """What a `Broadcaster` is told. Everything but the secrets file has a default."""

    # An input in an error may hold a password.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    db: str = Field(default="sqlite:///httppubsub.sqlite3", description="Where subscriptions are kept.")
    secrets_file: Path | None = Field(
        default=None, description="broadcaster-secrets.json, made by `httppubsubserver --setup`. Required."
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="The address that `serve` listens on.")
    port: int = Field(default=3003, ge=0, le=65535, description="The port that `serve` listens on; 0 takes a free one.")
    workers: int = Field(default=1, ge=1, le=256, description="Processes that `serve` starts behind one port.")
    log_level: Literal["critical", "error", "warning", "info", "debug"] = Field(
        default="info", description="How much `serve` logs."
    )

    max_body_bytes: int = Field(default=1024 * MEBIBYTE, ge=0, description="The largest message.")
    spool_bytes: int = Field(default=10 * MEBIBYTE, ge=0, description="Larger bodies lie in a temporary file.")
    bodies_in_memory_bytes: int = Field(
        default=256 * MEBIBYTE,
        ge=0,
        description="When the bodies in memory add up to this, smaller ones are spooled, too.",
    )
    spool_directory: Path | None = Field(
        default=None, description="Where; the system's temporary directory by default."
    )
    body_idle_timeout_seconds: float = Field(
        default=30.0, gt=0, description="A publisher that sends nothing for this long is answered 408."
    )

    max_in_flight: int = Field(default=1000, ge=1, description="Attempts under way at once, in total.")
    max_in_flight_per_host: int = Field(
        default=32, ge=1, description="Attempts under way at once to one host and port."
    )
    max_waiting_per_callback: int = Field(
        default=10_000,
        ge=0,
        description="Deliveries waiting for their turn at one callback URL; more are failed at once.",
    )
    max_pending_notifies: int = Field(
        default=10_000, ge=1, description="Notifies under way at once; more are answered 503."
    )
    attempt_timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        description="The deadline of one attempt, from connecting to the end of the answer's head. With a large body: "
        "of connecting, of every pause in which the receiver takes nothing, and of the answer after the last byte.",
    )
    min_bytes_per_second: int = Field(
        default=1_000_000, ge=1, description="A large body extends the deadlines by its size divided by this."
    )
    notify_timeout_seconds: float = Field(
        default=30.0, gt=0, description="When a notify gives up on what is not confirmed yet, quick retries included."
    )
    max_durable_in_flight: int = Field(
        default=512, ge=1, description="Attempts of durable deliveries under way at once, in total."
    )
    max_durable_in_flight_per_callback: int = Field(
        default=32, ge=1, description="Attempts of durable deliveries under way at once to one callback URL."
    )
    delivery_lease_seconds: float = Field(
        default=30.0,
        gt=0,
        le=86_400,
        description="How long a durable delivery belongs to the process that attempts it; after a crash it is "
        "attempted again then. Longer than `attempt_timeout_seconds` by at least 10 s; large bodies extend it.",
    )
    max_answer_bytes: int = Field(default=65_536, ge=0, description="How much of a subscriber's answer is read.")
    callback_networks: tuple[str, ...] = Field(
        default=("loopback", "private"),
        description="Which addresses may be called back: CIDRs, and the names `loopback`, `private` and `public`. "
        "Partners want `public`; metadata services and other special addresses only by their own CIDR.",
    )
    callback_ports: tuple[str, ...] = Field(
        default=("usual",),
        description="Which ports may be called back: numbers, ranges like `8000-8999`, and the names `web` (80, 443, "
        "8080, 8443), `usual` (80, 443 and 1024-65535 without the ports of well-known other services) and `all`.",
    )
    nat64_prefixes: tuple[str, ...] = Field(
        default=(),
        description="IPv6 prefixes by which your network reaches IPv4 (RFC 6052), beside 64:ff9b::/96: what is "
        "embedded in such an address has to be allowed, too.",
    )
    callback_hosts: tuple[str, ...] = Field(
        default=(),
        description="Host names that may be called back although only an own network knows them: `localhost`, those "
        "of one label, and those below `.local`, `.internal`, `.lan` and the like. Each as it is, without patterns.",
    )
    https_only: bool = Field(default=False, description="Refuse callbacks that are http.")
    egress_proxy: str | None = Field(
        default=None,
        repr=False,
        description="http://[user:password@]host:port of an HTTP proxy that all callbacks go through, by CONNECT to an "
        "address that was checked before. Variables like HTTP_PROXY play no part.",
    )
    callback_ca_file: Path | None = Field(
        default=None, description="PEM certificates to trust for https callbacks instead of the built-in ones."
    )
    callback_client_certfile: Path | None = Field(
        default=None, description="PEM certificate (chain) to show to https callbacks that ask for one."
    )
    callback_client_keyfile: Path | None = Field(
        default=None, description="Its private key, if that is in a file of its own."
    )
    verify_callbacks: Literal["always", "public", "never"] = Field(
        default="public",
        description="Which callbacks have to agree before they are sent anything: all, those at public addresses, or "
        "none.",
    )
    verification_timeout_seconds: float = Field(
        default=5.0, gt=0, le=60, description="How long a callback may take to agree."
    )
    verifications_per_hour: int = Field(
        default=60, ge=1, description="How often an owner of keys may have one host asked in vain; then 429."
    )
    webhook_origin: str | None = Field(
        default=None,
        description="The host name that stands for this system in WebHook-Request-Origin (CloudEvents); by default "
        "that of the first broadcaster in the secrets file.",
    )

    signature_tolerance_seconds: int = Field(
        default=300,
        ge=1,
        le=86_400,
        description="How far `created` of a signature may lie from the broadcaster's clock.",
    )
    jwt_issuer: str | None = Field(
        default=None, description="Accept JSON Web Tokens of this issuer (`iss`), beside keys."
    )
    jwt_audience: str | None = Field(default=None, description="And for this audience (`aud`). Required with it.")
    jwks_file: Path | None = Field(default=None, description="The issuer's public keys, a JSON Web Key Set.")
    jwks_url: str | None = Field(default=None, description="Where they are fetched, instead of a file.")
    max_subscriptions_per_key: int = Field(
        default=10_000, ge=0, description="Subscriptions that one owner of keys may have; more are answered 429."
    )
    storage_key_file: Path | None = Field(
        default=None,
        description="The keys that encrypt the secrets of subscriptions: base64 of 32 bytes a line, the first for new "
        "ones. HTTPPUBSUB_STORAGE_KEY can hold the same. Without either, subscriptions have no secrets of their own.",
    )
    secret_grace_seconds: int = Field(
        default=86_400,
        ge=0,
        le=7 * 86_400,
        description="How long deliveries are still signed with the old secret of a subscription beside a new one.",
    )
    max_webhook_bytes: int = Field(
        default=16 * MEBIBYTE,
        ge=0,
        description="The largest message for subscriptions with a secret of their own or another format than raw.",
    )
    max_hops: int = Field(
        default=8, ge=1, le=999, description="A message that has been through so many broadcasters is refused (508)."
    )
    max_connections: int = Field(
        default=8192, ge=1, description="Connections that `serve` holds at once, in each process; more get 503."
    )
    ssl_certfile: Path | None = Field(
        default=None, description="`serve` speaks https with this certificate (PEM, with its chain)."
    )
    ssl_keyfile: Path | None = Field(default=None, description="Its private key, if that is in a file of its own.")
    ssl_ca_certs: Path | None = Field(
        default=None, description="Clients have to show a certificate that one of these signed (PEM)."
    )
    default_lease_seconds: int = Field(
        default=86_400, ge=1, description="The lease of a subscription that asks for none."
    )
    max_lease_seconds: int = Field(default=864_000, ge=1, description="The longest lease that may be asked for.")
    idempotency_seconds: int = Field(default=86_400, ge=1, description="How long an Idempotency-Key is remembered.")
    keep_bodies_seconds: int = Field(
        default=7 * 86_400,
        ge=0,
        le=_CENTURY_SECONDS,
        description="How long the body of a durable message is kept when nobody is owed it any more: as long it can be "
        "replayed.",
    )
    keep_messages_seconds: int = Field(
        default=30 * 86_400,
        ge=0,
        le=_CENTURY_SECONDS,
        description="How long a durable message is known, with its deliveries, when nobody is owed it any more.",
    )
    max_stored_bytes: int | None = Field(
        default=10 * 1024 * MEBIBYTE,
        ge=0,
        description="While the database is larger, bodies that nobody is owed go earlier, the oldest first, and then "
        "messages.",
    )
    shutdown_timeout_seconds: float = Field(
        default=30.0,
        ge=0,
        description="How long a stop waits for running attempts; they have their own deadlines, too.",
    )

    @field_validator("callback_networks", "callback_ports", "nat64_prefixes", "callback_hosts", mode="before")
    @classmethod
    def _one_or_several(cls, value: object, field: ValidationInfo) -> tuple[str, ...]:
        """One entry stands for a list of it, and a port may be a number."""
        entries = tuple(value) if isinstance(value, list | tuple | set | frozenset) else (value,)
        if field.field_name == "callback_ports":
            entries = tuple(str(entry) if type(entry) is int else entry for entry in entries)
        if not all(isinstance(entry, str) for entry in entries):
            raise ValueError(f"should be a list like {_LISTS[str(field.field_name)]}")
        return tuple(str(entry) for entry in entries)

    @model_validator(mode="after")
    def _delivery_leases_outlast_attempts(self) -> Self:
        shortest = self.attempt_timeout_seconds + 10
        if self.delivery_lease_seconds < shortest:
            raise ValueError(
                f"delivery_lease_seconds ({self.delivery_lease_seconds:g}) should be at least {shortest:g}: a delivery "
                f"whose lease ends while it is attempted (attempt_timeout_seconds, {self.attempt_timeout_seconds:g}) "
                "would be made twice"
            )
        return self

    @model_validator(mode="after")
    def _leases_fit(self) -> Self:
        if self.default_lease_seconds > self.max_lease_seconds:
            raise ValueError(
                f"default_lease_seconds ({self.default_lease_seconds}) should be at most max_lease_seconds "
                f"({self.max_lease_seconds}): set both"
            )
        return self

    @model_validator(mode="after")
    def _bodies_go_first(self) -> Self:
        if self.keep_bodies_seconds > self.keep_messages_seconds:
            raise ValueError(
                f"keep_bodies_seconds ({self.keep_bodies_seconds}) should be at most keep_messages_seconds "
                f"({self.keep_messages_seconds}): a message that is forgotten has no body"
            )
        return self


class _Given(NamedTuple):
    """A value and where it stands, in words."""

    value: object
    source: str


def load_config(
    *,
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    overrides: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
    defaults_directory: Path | None = None,
) -> ServerConfig:
    """The settings of the TOML `file` (or of the one that HTTPPUBSUB_CONFIG names), of `environ`, of `overrides`.

    `overrides` are what flags say and win over everything; `defaults` replace the built-in ones, and relative paths
    among them are relative to `defaults_directory`. Both map names of settings to values or to their text. The text
    of a list has commas; an empty text is None where a setting may be unset. Raises `ConfigurationError`, which says
    what is wrong where, and what was expected.
    """
    given: dict[str, _Given] = {}
    for name, value in (defaults or {}).items():
        _known(name, "the default {!r}", ServerConfig.model_fields)
        given[name] = _Given(_rooted(name, value, defaults_directory), f"the default {name}")
    path, path_source = _file_of(file, environ)
    if path is not None:
        for name, value in _read_toml(path, path_source).items():
            _known(name, f"{path}: {{!r}}", ServerConfig.model_fields)
            given[name] = _Given(_rooted(name, value, path.parent), f"{path}: {name}")
    given.update(_from_environ(environ))
    for name, value in (overrides or {}).items():
        flag = f"--{name.replace('_', '-')}"
        _known(flag, "{!r}", (f"--{known.replace('_', '-')}" for known in ServerConfig.model_fields))
        given[name] = _Given(_from_text(name, value), flag)
    return _validated(given)


def load_secrets(path: Path) -> Secrets:
    """The secrets file of a broadcaster. Raises `ConfigurationError`, whose text never holds a secret.

    That others may read the file is a warning in the log: there are setups in which that is how it is given to us.
    """
    try:
        with open(path, encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read()
    except FileNotFoundError:
        raise ConfigurationError(
            f"there is no secrets file {str(path)!r}: `httppubsubserver --setup` makes one in the current directory, "
            "and --secrets FILE (HTTPPUBSUB_SECRETS_FILE, secrets_file) says where yours is"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"the secrets file {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"the secrets file {str(path)!r} is not UTF-8") from None
    if mode & 0o077:
        _LOG.warning("the secrets file %r is open to other users (mode %03o): chmod 600 it", str(path), mode)
    try:
        return secrets_from_json(json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"the secrets file {str(path)!r} is not JSON, at line {error.lineno}") from None
    except RecursionError:
        raise ConfigurationError(f"the secrets file {str(path)!r} is nested too deeply") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"the secrets file {str(path)!r}: {error.detail}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """What to append to the text about an unknown name: the closest known one, if any is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _known(name: str, place: str, known: Iterable[str]) -> None:
    names = list(known)
    if name not in names:
        hint = nearest(name, names) or "; docs/configuration.md lists all"
        raise ConfigurationError(f"{place.format(name)} is not a setting{hint}")


def _file_of(file: Path | None, environ: Mapping[str, str]) -> tuple[Path | None, str]:
    if file is not None:
        return file, "--config"
    named = environ.get(_FILE_VARIABLE)
    return (Path(named), _FILE_VARIABLE) if named else (None, "")


def _read_toml(path: Path, source: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(
            f"the configuration file {str(path)!r} (from {source}) cannot be read: {error.strerror}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None


def _from_environ(environ: Mapping[str, str]) -> dict[str, _Given]:
    known = {f"{_VARIABLE_PREFIX}{name.upper()}": name for name in ServerConfig.model_fields}
    given: dict[str, _Given] = {}
    for variable, text in environ.items():
        if not variable.startswith(_VARIABLE_PREFIX) or variable.startswith(_CLIENT_PREFIX):
            continue
        if variable not in (_FILE_VARIABLE, STORAGE_KEY_VARIABLE):
            _known(variable, "the environment variable {!r}", known)
            name = known[variable]
            given[name] = _Given(_from_text(name, text), variable)
    return given


def _rooted(name: str, value: object, directory: Path | None) -> object:
    """A value of a file: what is a relative path in it starts at the folder of the file."""
    value = _from_text(name, value)
    if directory is None or not isinstance(value, str | Path):
        return value
    if name == "db":
        return _rooted_database(str(value), directory)
    return directory / value if Path in _alternatives(_annotation(name)) else value


def _rooted_database(url: str, directory: Path) -> str:
    scheme, separator, path = url.partition(":///")
    if scheme != "sqlite" or not separator or path in ("", ":memory:") or path.startswith("/"):
        return url
    return f"sqlite:///{quote(os.fsencode(directory.absolute()))}/{path}"


def _from_text(name: str, value: object) -> object:
    """Text as the setting's own kind of value; whatever is not text stays as it is."""
    return value_of_text(_annotation(name), value) if isinstance(value, str) else value


def value_of_text(annotation: object, text: str) -> object:
    """Text for a setting of this type: lists are split at commas, an empty text unsets what may be None."""
    alternatives = _alternatives(annotation)
    if not text and type(None) in alternatives:
        return None
    if any(get_origin(alternative) in (list, tuple, frozenset) for alternative in alternatives):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _annotation(name: str) -> object:
    return ServerConfig.model_fields[name].annotation


def _alternatives(annotation: object) -> tuple[object, ...]:
    """`Path | None` as (Path, None's type); a type that is no union as itself alone."""
    return get_args(annotation) if type(None) in get_args(annotation) else (annotation,)


def _validated(given: Mapping[str, _Given]) -> ServerConfig:
    for name, (value, source) in given.items():
        # Pydantic takes true for 1.
        if isinstance(value, bool) and bool not in _alternatives(_annotation(name)):
            raise ConfigurationError(f"{source} should not be true or false; see docs/configuration.md")
    try:
        config = ServerConfig.model_validate({name: value for name, (value, _) in given.items()})
    except ValidationError as error:
        faults = [_fault(fault["loc"], fault["msg"], given) for fault in error.errors(include_url=False)]
        raise ConfigurationError("; ".join(faults)) from None
    # Needed by the first large message only, which is too late to find out.
    if config.spool_directory is not None and not os.access(config.spool_directory, os.W_OK | os.X_OK):
        source = given["spool_directory"].source
        raise ConfigurationError(f"{source} should be a folder to write to; got {str(config.spool_directory)!r}")
    return config


def _fault(location: tuple[int | str, ...], message: str, given: Mapping[str, _Given]) -> str:
    """One complaint of pydantic, with its source; its own text never quotes the value."""
    if not location:
        return message.removeprefix("Value error, ")
    name = str(location[0])
    value, source = given[name]
    expected = message.removeprefix("Input ").removeprefix("Value error, ")
    if not expected.startswith("should"):
        expected = f"is wrong: {expected}"
    return f"{source} {expected}" + ("" if name in _UNSHOWN else f"; got {_shortened(repr(value))}")


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."
