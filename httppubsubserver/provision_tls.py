"""`--setup --tls` and `--renew-certificates`: the files of a private authority beside the secrets, and what to do.

Both sides show a certificate to each other: broadcasters to the listeners that they call, and whoever subscribes or
publishes to the broadcasters. certificates.py makes them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.keys import secrets_from_json
from httppubsubserver.private_files import write_private

if TYPE_CHECKING:
    from httppubsubserver.certificates import Files, Pair

__all__ = [
    "DEFAULT_TLS_URL",
    "certificate_files",
    "https_urls",
    "main_defaults",
    "make_certificates",
    "renew_certificates",
    "settings_here",
    "tls_made",
]

DEFAULT_TLS_URL: Final = "https://127.0.0.1:3003"

_AUTHORITY, _BROADCASTER, _SUBSCRIBER = "ca", "broadcaster", "subscriber"
_NAMES: Final = (_AUTHORITY, _BROADCASTER, _SUBSCRIBER)


def certificate_files(directory: Path) -> tuple[Path, ...]:
    """All that `make_certificates` writes."""
    return tuple(directory / f"{name}{end}" for name in _NAMES for end in (".pem", "-key.pem"))


def check_urls(urls: Sequence[str]) -> None:
    """Raises `ConfigurationError` for a broadcaster that is not reached over https."""
    for url in urls:
        if parse_callback_url(url).scheme != "https":
            raise ConfigurationError(f"--tls makes broadcasters of https: --broadcaster-url {url} should begin with it")


def make_certificates(directory: Path, urls: Sequence[str], subscriber_hosts: Sequence[str]) -> None:
    """Write an authority and the certificates of both sides. Raises `ConfigurationError`, `OSError`."""
    from httppubsubserver.certificates import ALWAYS, Files, new_authority, signed

    authority = new_authority()
    hosts = [parse_callback_url(url).host for url in urls]
    made = {
        _AUTHORITY: authority,
        _BROADCASTER: signed(authority, _BROADCASTER, (*hosts, *ALWAYS)),
        _SUBSCRIBER: signed(authority, _SUBSCRIBER, (*subscriber_hosts, *ALWAYS)),
    }
    for name, pair in made.items():
        _write(Files.of(directory, name), pair)


def renew_certificates(directory: Path, *, subscriber_hosts: Sequence[str] = ()) -> str:
    """New certificates of both sides for the same hosts, by the same authority; returns what to do next.

    `subscriber_hosts` are added to those of the subscribers' certificate. Raises `ConfigurationError`.
    """
    from httppubsubserver.certificates import Files, renewed

    directory = directory.resolve()
    try:
        authority = Files.of(directory, _AUTHORITY).read()
        made = {
            name: renewed(authority, name, Files.of(directory, name).certificate.read_bytes(), hosts)
            for name, hosts in ((_BROADCASTER, ()), (_SUBSCRIBER, subscriber_hosts))
        }
        for name, pair in made.items():
            _write(Files.of(directory, name), pair)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"there is no {error.filename} to renew with: --setup --tls makes an authority and certificates, and "
            "--directory says where yours are"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"cannot renew in {directory}: {error.strerror or error}") from None
    return "\n".join(
        [
            "Renewed, for another 397 days:",
            *(f"  {path}" for name in made for path in Files.of(directory, name)),
            "",
            "Copy subscriber.pem and subscriber-key.pem over the old ones of those who subscribe and publish. Whatever",
            "listens finds its new certificate within an hour. What it shows to those that it calls is the old one",
            "until its next start: restart everything before that ends.",
            "",
        ]
    )


def main_defaults() -> dict[str, str]:
    """Settings for main.py: how its broadcaster calls back. How it listens is uvicorn's affair there."""
    return {
        "callback_ca_file": f"{_AUTHORITY}.pem",
        "callback_client_certfile": f"{_BROADCASTER}.pem",
        "callback_client_keyfile": f"{_BROADCASTER}-key.pem",
    }


def settings_here(directory: Path) -> dict[str, Path]:
    """Settings for what --setup --tls left in `directory`, as `serve_flags` says them; none where a file is missing."""
    settings = {
        "ssl_certfile": directory / f"{_BROADCASTER}.pem",
        "ssl_keyfile": directory / f"{_BROADCASTER}-key.pem",
        "ssl_ca_certs": directory / f"{_AUTHORITY}.pem",
        **{name: directory / file for name, file in main_defaults().items()},
    }
    return settings if all(path.exists() for path in settings.values()) else {}


def https_urls(secrets_file: Path | None) -> tuple[str, ...]:
    """The broadcasters that the secrets name, if all are https; what is wrong with the file, others tell."""
    try:
        urls = secrets_from_json(json.loads((secrets_file or Path()).read_bytes())).broadcasters
    except (OSError, ValueError, RecursionError, ConfigurationError):
        return ()
    return urls if all(url.startswith("https:") for url in urls) else ()


def serve_flags(directory: Path) -> list[str]:
    """Of `httppubsubserver serve`."""
    authority, certificate, key = (
        str(directory / name) for name in (f"{_AUTHORITY}.pem", f"{_BROADCASTER}.pem", f"{_BROADCASTER}-key.pem")
    )
    return [
        *("--ssl-certfile", certificate, "--ssl-keyfile", key, "--ssl-ca-certs", authority),
        *("--callback-ca-file", authority),
        *("--callback-client-certfile", certificate, "--callback-client-keyfile", key),
    ]


def uvicorn_flags(directory: Path) -> list[str]:
    """The same of uvicorn, as far as they are its affair."""
    return [*serve_flags(directory)[:6], "--ssl-cert-reqs", "2"]


def tls_made(directory: Path) -> list[str]:
    """What was made, in lines."""
    return [
        f"  {directory / 'ca.pem'}   the certificate authority: everybody needs it, nobody needs to hide it",
        f"  {directory / 'ca-key.pem'}   its key, for --renew-certificates alone: take it off this machine until then",
        f"  {directory / 'broadcaster.pem'}, broadcaster-key.pem   for the broadcaster; keep the key secret",
        f"  {directory / 'subscriber.pem'}, subscriber-key.pem   for those who subscribe and publish: copy both to "
        "them, with ca.pem",
    ]


def client_flags(directory: Path) -> list[str]:
    """Of the commands of httppubsubclient."""
    return ["--tls", str(directory)]


def tls_notes(directory: Path) -> list[str]:
    """What is worth knowing."""
    return [
        "",
        "Both sides show certificates to each other. Without --ssl-ca-certs nobody needs one to reach the broadcaster;",
        "the keys in the secrets files are asked for in any case. This is for an internal deployment: with",
        "--callback-ca-file nobody else's https can be called (partners: docs/security.md).",
        "Certificates last 397 days:",
        f"  {shlex.join(['httppubsubserver', '--renew-certificates', '--directory', str(directory)])}",
    ]


def _write(files: Files, pair: Pair) -> None:
    # The key first: who finds one that does not fit goes on with what it has.
    write_private(files.key, pair.key)
    write_private(files.certificate, pair.certificate, mode=0o644)
