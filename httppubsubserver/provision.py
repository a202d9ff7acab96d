"""`--setup` and `--rotate`: the secrets files of both sides, a main.py to start from, and what to do with them.

Both files hold the same keys, until an operator adds some for others to the broadcaster's; each direction has keys of
its own. Rotation (rotation.py) adds keys and lets the present ones end, so that everybody who is restarted with the new
files during the first half of the grace, in any order, understands everybody else all the time. Nothing but the
standard library and the core is imported here: this is how people meet the project.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote_to_bytes

from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.errors import ConfigurationError, InvalidUrl
from httppubsubclient.protocol.keys import Credentials, Key, Secrets, secrets_from_json, secrets_to_json
from httppubsubclient.protocol.permissions import Permissions
from httppubsubserver import provision_tls
from httppubsubserver.private_files import write_private
from httppubsubserver.provision_tls import DEFAULT_TLS_URL
from httppubsubserver.rotation import MAX_LIVE_KEYS, Rotated, new_key, rotated_secrets, shown_moment

__all__ = [
    "BROADCASTER_FILE",
    "DEFAULT_DATABASE",
    "DEFAULT_URL",
    "MAX_LIVE_KEYS",
    "STORAGE_KEY_FILE",
    "AuthType",
    "add_tls",
    "lacks_certificates_only",
    "rotate",
    "set_up",
]

AuthType = Literal["hmac", "token", "none"]

_STORAGE_KEY_BYTES = 32

BROADCASTER_FILE = "broadcaster-secrets.json"
SUBSCRIBER_FILE = "subscriber-secrets.json"
MAIN_FILE = "main.py"
STORAGE_KEY_FILE = "storage-key"

DEFAULT_DATABASE = "sqlite:///httppubsub.sqlite3"
DEFAULT_URL = "http://127.0.0.1:3003"
_DEFAULT_PORT = 3003

_MAIN = '''\
"""The broadcaster as an ASGI application:

    {command}

Settings: HTTPPUBSUB_* variables, or a TOML file that HTTPPUBSUB_CONFIG names. Relative paths below start here.
"""

import logging
from pathlib import Path

from httppubsubserver.app import create_app
from httppubsubserver.config import load_config

logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
logging.getLogger("httppubsub").setLevel(logging.INFO)

app = create_app(
    load_config(
        defaults={{
            "db": {db},
            "secrets_file": {secrets_file},
            "storage_key_file": {storage_key_file},
            "callback_networks": ["loopback", "private"],  # partners want "public": docs/configuration.md
{more}        }},
        defaults_directory=Path(__file__).resolve().parent,
    )
)
'''


@dataclass(frozen=True, slots=True)
class _Site:
    """The folder that is set up, and its files."""

    directory: Path

    @property
    def broadcaster(self) -> Path:
        return self.directory / BROADCASTER_FILE

    @property
    def subscriber(self) -> Path:
        return self.directory / SUBSCRIBER_FILE

    @property
    def main(self) -> Path:
        return self.directory / MAIN_FILE

    @property
    def storage_key(self) -> Path:
        return self.directory / STORAGE_KEY_FILE

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Two of these commands at once would mix the keys of the one with those of the other."""
        import fcntl

        descriptor = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


# -- setup ------------------------------------------------------------------------------------------------------------


def set_up(
    directory: Path,
    *,
    db: str = DEFAULT_DATABASE,
    to_broadcasters: AuthType = "hmac",
    to_subscribers: AuthType = "hmac",
    broadcaster_urls: Sequence[str] = (),
    tls: bool = False,
    subscriber_hosts: Sequence[str] = (),
    force: bool = False,
) -> str:
    """Write the two secrets files, a storage key and main.py into `directory`, which is made; returns what to do next.

    A relative SQLite path lies beside main.py; its folder is made, too. Without `force` nothing that exists is
    overwritten, and a storage key never: what lies encrypted in the database can be read with that one alone. With
    `tls` a private certificate authority and the certificates of both sides are made, too, for the hosts of the URLs
    and for `subscriber_hosts`.
    Raises `ConfigurationError`.
    """
    urls = tuple(_checked_url(url) for url in broadcaster_urls) or (DEFAULT_TLS_URL if tls else DEFAULT_URL,)
    if tls:
        provision_tls.check_urls(urls)
    _check_database(db)
    site = _Site(directory.resolve())
    try:
        site.directory.mkdir(parents=True, exist_ok=True)
        with site.locked():
            certificates = provision_tls.certificate_files(site.directory) if tls else ()
            existing = [
                str(path) for path in (site.broadcaster, site.subscriber, site.main, *certificates) if path.exists()
            ]
            if existing and not force:
                raise ConfigurationError(
                    f"not overwritten: {', '.join(existing)}. --rotate replaces keys while everything runs on; "
                    "--renew-certificates replaces certificates; --setup --tls adds some where there are none; "
                    "--force makes new files, which locks out everybody who has the old ones"
                )
            made_folder = _make_database_folder(site, db)
            made = Secrets(
                to_broadcasters=_new_credentials(to_broadcasters, "to-broadcasters", urls),
                to_subscribers=_new_credentials(to_subscribers, "to-subscribers", urls),
                broadcasters=urls,
            )
            if tls:
                provision_tls.make_certificates(site.directory, urls, subscriber_hosts)
            write_private(site.broadcaster, _as_text(made))
            write_private(site.subscriber, _as_text(made))
            made_key = not site.storage_key.exists()
            if made_key:
                write_private(site.storage_key, _new_storage_key())
            write_private(site.main, _main_text(site, db, urls, tls=tls), mode=0o644)
    except OSError as error:
        raise _not_written(site, error) from None
    return _setup_steps(
        site,
        db,
        urls,
        unauthenticated=[
            name
            for name, kind in (("to broadcasters", to_broadcasters), ("to subscribers", to_subscribers))
            if kind == "none"
        ],
        made_folder=made_folder,
        tls=tls,
        made_key=made_key,
    )


def lacks_certificates_only(directory: Path) -> bool:
    """Whether somebody set this folder up without `tls`."""
    return (directory / BROADCASTER_FILE).exists() and not any(
        path.exists() for path in provision_tls.certificate_files(directory)
    )


def add_tls(directory: Path, *, broadcaster_urls: Sequence[str] = (), subscriber_hosts: Sequence[str] = ()) -> str:
    """Certificates for a folder that was set up without; returns what to do next.

    Keys stay, and so does main.py. In the secrets files of both sides the broadcasters become those of
    `broadcaster_urls`, or https where they were http. Raises `ConfigurationError`.
    """
    given = tuple(_checked_url(url) for url in broadcaster_urls)
    provision_tls.check_urls(given)
    site = _Site(directory.resolve())
    try:
        with site.locked():
            if not lacks_certificates_only(site.directory):
                raise ConfigurationError(f"{site.directory} has certificates already, or no {BROADCASTER_FILE}")
            present = {path: _read(path) for path in (site.broadcaster, site.subscriber) if path.exists()}
            urls = {
                path: given or tuple(_checked_url(_https(url)) for url in secrets.broadcasters) or (DEFAULT_TLS_URL,)
                for path, secrets in present.items()
            }
            known = tuple(dict.fromkeys(url for path in present for url in urls[path]))
            provision_tls.make_certificates(site.directory, known, subscriber_hosts)
            for path, secrets in present.items():
                write_private(path, _as_text(replace(secrets, broadcasters=urls[path])), keep_mode=True)
    except OSError as error:
        raise _not_written(site, error) from None
    return _add_tls_steps(site, known)


def _https(url: str) -> str:
    return f"https:{url.removeprefix('http:')}" if url.startswith("http:") else url


def _add_tls_steps(site: _Site, urls: Sequence[str]) -> str:
    return "\n".join(
        [
            "Made, beside the keys, which stay:",
            *provision_tls.tls_made(site.directory),
            "",
            "The secrets files say now where the broadcasters are; partners have to be told:",
            *(f"  {url}" for url in urls),
            "",
            "Start the broadcaster with these further flags, or with uvicorn as below:",
            f"  {shlex.join(provision_tls.serve_flags(site.directory))}",
            f"  {_uvicorn_command(site, urls, tls=True)}",
            f"{site.main} stays as it is; it should say among its defaults:",
            *(f'  "{name}": "{value}",' for name, value in provision_tls.main_defaults().items()),
            "",
            f"From then on nobody gets through by http: copy {SUBSCRIBER_FILE}, ca.pem, subscriber.pem and",
            "subscriber-key.pem to those who subscribe and publish. Their commands take:",
            f"  {shlex.join(provision_tls.client_flags(site.directory))}",
            *provision_tls.tls_notes(site.directory),
            "",
        ]
    )


def _checked_url(text: str) -> str:
    """A base URL of a broadcaster, without a slash at its end. Errors do not repeat it: it may hold a password."""
    try:
        url = parse_callback_url(text)
    except InvalidUrl as error:
        fault = error.detail.replace("callback URL", "broadcaster's URL")
        raise ConfigurationError(f"--broadcaster-url: {fault}") from None
    if url.fragment is not None or "?" in url.target:
        raise ConfigurationError("--broadcaster-url: a broadcaster's URL has neither query nor fragment")
    return url.request_url.rstrip("/")


def _check_database(db: str) -> None:
    # Without the URL itself, which may hold a password.
    if not db.startswith("sqlite:///") or len(db) == len("sqlite:///"):
        raise ConfigurationError("--db should be sqlite:///relative.db or sqlite:////absolute.db")
    if "?" in db or "#" in db or "%00" in db:
        raise ConfigurationError("--db has no parameters; ? and # in the name of a file are %3F and %23")


def _make_database_folder(site: _Site, db: str) -> Path | None:
    """SQLite makes the file, but not the folder it lies in. Returns that if it was not there."""
    folder = (site.directory / os.fsdecode(unquote_to_bytes(db.removeprefix("sqlite:///")))).parent
    if folder.is_dir():
        return None
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigurationError(f"--db: the folder {folder} cannot be made: {error.strerror or error}") from None
    return folder


def _new_credentials(kind: AuthType, direction: str, urls: tuple[str, ...]) -> Credentials:
    return Credentials(kind, () if kind == "none" else (new_key(kind, direction),), urls)


def _new_storage_key() -> str:
    return base64.b64encode(secrets.token_bytes(_STORAGE_KEY_BYTES)).decode("ascii") + "\n"


def _main_text(site: _Site, db: str, urls: Sequence[str], *, tls: bool) -> str:
    # In a docstring, where a path may hold anything.
    command = _uvicorn_command(site, urls, tls=tls).replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    more = provision_tls.main_defaults() if tls else {}
    return _MAIN.format(
        command=command,
        db=_literal(db),
        secrets_file=_literal(BROADCASTER_FILE),
        more="".join(f'            "{name}": "{value}",\n' for name, value in more.items()),
        storage_key_file=_literal(STORAGE_KEY_FILE),
    )


def _literal(text: str) -> str:
    """A Python literal, with double quotes where they need no thought."""
    return f'"{text}"' if repr(text) == f"'{text}'" and '"' not in text else repr(text)


def _uvicorn_command(site: _Site, urls: Sequence[str], *, tls: bool) -> str:
    host, port = _listening(urls, tls=tls)
    command = ["uvicorn", "--app-dir", str(site.directory), "main:app", "--host", host, "--port", str(port)]
    return shlex.join(command + (provision_tls.uvicorn_flags(site.directory) if tls else []))


def _listening(urls: Sequence[str], *, tls: bool) -> tuple[str, int]:
    """Where to listen so that the first of the URLs leads here, as far as a URL can tell."""
    url = parse_callback_url(urls[0])
    if (url.scheme == "https" and not tls) or url.port == 80:  # somebody in front of us passes it on
        return "127.0.0.1", _DEFAULT_PORT
    if url.host in ("127.0.0.1", "localhost"):
        return "127.0.0.1", url.port
    return ("::" if ":" in url.host else "0.0.0.0"), url.port  # noqa: S104 - others shall reach it


def _setup_steps(
    site: _Site,
    db: str,
    urls: Sequence[str],
    *,
    unauthenticated: Sequence[str],
    made_folder: Path | None,
    tls: bool,
    made_key: bool,
) -> str:
    host, port = _listening(urls, tls=tls)
    path = db.removeprefix("sqlite:///")
    if not path.startswith("/") and path != ":memory:":
        db = f"sqlite:///{quote(os.fsencode(site.directory))}/{path}"
    serve = ["httppubsubserver", "serve", "--secrets", str(site.broadcaster)]
    serve += ["--storage-key-file", str(site.storage_key), "--db", db, "--host", host, "--port", str(port)]
    client = ["--secrets", str(site.subscriber)]
    if tls:
        serve += provision_tls.serve_flags(site.directory)
        client += provision_tls.client_flags(site.directory)
    lines = [
        "Made:",
        f"  {site.broadcaster}   for the broadcaster; keep it secret",
        f"  {site.subscriber}   for those who subscribe and publish: copy it to them, keep it secret",
        f"  {site.main}   the broadcaster as an application",
        f"  {site.storage_key}   encrypts secrets in the database; keep it secret, and a copy of it"
        if made_key
        else f"  {site.storage_key} was there and stays: what is encrypted can be read with it alone",
    ]
    if tls:
        lines += provision_tls.tls_made(site.directory)
    if made_folder is not None:
        lines.append(f"  {made_folder}/   for the database, which is made at the first start")
    if unauthenticated:
        lines += [
            "",
            f"Nobody has to prove anything {' and '.join(unauthenticated)}: whoever reaches the port may do all.",
        ]
    lines += [
        "",
        "Start the broadcaster:",
        f"  {shlex.join(serve)}",
        "or, the same with uvicorn:",
        f"  {_uvicorn_command(site, urls, tls=tls)}",
        "",
        "Then, from a second and a third terminal:",
        f"  {shlex.join(['httppubsubclient', 'listen', *client, 'foo/*'])}",
        f"  {shlex.join(['httppubsubclient', 'notify', *client, 'foo/bar', '--data', 'hello'])}",
        *(provision_tls.tls_notes(site.directory) if tls else ()),
        "",
    ]
    return "\n".join(lines)


# -- rotate -----------------------------------------------------------------------------------------------------------


def rotate(directory: Path, *, grace_seconds: int = 86_400, now: float | None = None) -> str:
    """Add keys to each direction that has some, and let the present ones end; returns what to do next.

    The new keys are signed with from half of the grace on; at its end only they are taken. With a grace of 0 this
    happens at once. `now` is in Unix seconds. Raises `ConfigurationError`, also when there is nothing to rotate.
    """
    site = _Site(directory.resolve())
    at = int(time.time() if now is None else now)
    try:
        with site.locked():
            present = _read(site.broadcaster)
            if present.to_broadcasters.type == present.to_subscribers.type == "none":
                raise ConfigurationError(
                    f"there is nothing to rotate: {site.broadcaster} has no keys, only type 'none'"
                )
            theirs = _read(site.subscriber) if site.subscriber.exists() else None
            rotated = rotated_secrets(present, theirs, now=at, grace_seconds=grace_seconds)
            write_private(site.broadcaster, _as_text(rotated.broadcaster), keep_mode=True)
            write_private(site.subscriber, _as_text(rotated.subscriber), keep_mode=True)
            for key in rotated.handed_out:
                write_private(_key_file(site, key), _key_text(rotated.broadcaster.to_broadcasters.type, key))
    except OSError as error:
        raise _not_written(site, error) from None
    return _rotate_steps(site, rotated, at, grace_seconds)


def _rotate_steps(site: _Site, rotated: Rotated, now: int, grace_seconds: int) -> str:
    keys = [key for key in rotated.added if key not in rotated.handed_out]
    lines = []
    if keys:
        lines += [f"Added {' and '.join(key.id for key in keys)} to:", f"  {site.broadcaster}", f"  {site.subscriber}"]
    if rotated.handed_out:
        lines += [f"Added to {site.broadcaster} alone, each to be handed to its owner:"]
        lines += [f"  {key.id}   of {key.owner}: {_key_file(site, key)}" for key in rotated.handed_out]
        if any(key.use_after > now for key in rotated.handed_out):
            lines += [
                "He puts what is in the file behind the old key in his own secrets file, and keeps both until the old",
                "one ends: alone, the new one is of no use before its use_after.",
            ]
        lines.append("Remove these files when they have been handed over.")
    lines.append("")
    switch = min(key.use_after for key in rotated.added)
    if switch > now:
        lines += [
            f"Before {shown_moment(switch)}, in any order: give each broadcaster, subscriber and publisher its new",
            "file and restart it. They switch to the new keys by themselves at that time;",
            f"the old keys end at {shown_moment(now + grace_seconds)}.",
        ]
    else:
        lines += [
            "The old keys have ended. Give each broadcaster, subscriber and publisher its new file and restart it now:",
            "until then, those with the old keys and those with the new ones refuse each other.",
        ]
    return "\n".join([*lines, ""])


# -- files ------------------------------------------------------------------------------------------------------------


def _as_text(content: Secrets) -> str:
    return json.dumps(secrets_to_json(content), indent=2) + "\n"


def _key_file(site: _Site, key: Key) -> Path:
    """For a key that somebody else is given."""
    return site.directory / f"{key.id}.json"


def _key_text(kind: AuthType, key: Key) -> str:
    """As it stands among the `keys` of its owner's own secrets file, where nobody looks for permissions."""
    shown = replace(key, owner="", permissions=Permissions())
    content = secrets_to_json(Secrets(Credentials(kind, (shown,)), Credentials.none(), ()))
    return json.dumps(content["to_broadcasters"]["keys"][0], indent=2) + "\n"


def _read(path: Path) -> Secrets:
    try:
        return secrets_from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigurationError(
            f"there is no {path} to rotate: --setup makes one, and --directory says where yours is"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ConfigurationError(f"{path} is not JSON") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error.detail}") from None


def _not_written(site: _Site, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"cannot write to {site.directory}: {error.strerror or error}")
