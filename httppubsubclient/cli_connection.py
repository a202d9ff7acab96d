"""Which broadcasters the commands talk to, and with which secrets."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, cast

__all__ = [
    "BROADCASTERS_VARIABLE",
    "SECRETS_VARIABLE",
    "TLS_VARIABLE",
    "broadcasters",
    "connection_options",
    "credentials",
    "tls_to_broadcasters",
]

SECRETS_VARIABLE = "HTTPPUBSUB_CLIENT_SECRETS"
BROADCASTERS_VARIABLE = "HTTPPUBSUB_CLIENT_BROADCASTERS"
TLS_VARIABLE = "HTTPPUBSUB_CLIENT_TLS"
DEFAULT_SECRETS = "subscriber-secrets.json"


def credentials(options: argparse.Namespace) -> tuple[Any, Any]:
    """What --secrets names: to broadcasters, to subscribers."""
    from httppubsubclient.config import get_auth_config_from_file

    return get_auth_config_from_file(options.secrets)


def broadcasters(options: argparse.Namespace) -> list[str] | None:
    """What --broadcaster or the variable names; None: those of the secrets file."""
    if options.broadcaster:
        return cast(list[str], options.broadcaster)
    listed = os.environ.get(BROADCASTERS_VARIABLE, "")
    return [url.strip() for url in listed.split(",") if url.strip()] or None


def tls_to_broadcasters(options: argparse.Namespace) -> dict[str, Path]:
    """What --tls and --ca-file say, as parameters of HttpPubSubConfig."""
    if options.tls is None:
        return {} if options.ca_file is None else {"broadcaster_ca_file": options.ca_file}
    return {
        "broadcaster_ca_file": options.ca_file or options.tls / "ca.pem",
        "broadcaster_client_certfile": options.tls / "subscriber.pem",
        "broadcaster_client_keyfile": options.tls / "subscriber-key.pem",
    }


def connection_options() -> argparse.ArgumentParser:
    """The options that all commands share."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--secrets",
        metavar="FILE",
        default=os.environ.get(SECRETS_VARIABLE) or DEFAULT_SECRETS,
        help="subscriber-secrets.json, made by httppubsubserver --setup "
        f"(default: what ${SECRETS_VARIABLE} names, or ./{DEFAULT_SECRETS})",
    )
    common.add_argument(
        "--broadcaster",
        metavar="URL",
        action="append",
        help=f"instead of those in the secrets file; may be repeated (or ${BROADCASTERS_VARIABLE}, comma-separated)",
    )
    tls = os.environ.get(TLS_VARIABLE)
    common.add_argument(
        "--tls",
        type=Path,
        metavar="DIRECTORY",
        default=Path(tls) if tls else None,
        help="the folder of ca.pem, subscriber.pem and subscriber-key.pem, made by httppubsubserver --setup --tls "
        f"(or ${TLS_VARIABLE})",
    )
    common.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="a bearer token for the broadcasters, of an issuer say, instead of the keys of the secrets file; read "
        "anew for each request",
    )
    common.add_argument("--ca-file", type=Path, metavar="FILE", help="PEM certificates to trust for https broadcasters")
    common.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long broadcasters that do not answer are tried again, all together (default: %(default)g)",
    )
    return common
