"""`httppubsubserver --setup | --rotate | --renew-certificates | serve | deliveries`: set a broadcaster up, renew its
keys and certificates, run it, look after what it owes.

Every setting is a flag of `serve`. What went wrong goes to stderr in one line. Exit status: 0 done, 1 something is
wrong, 2 wrong usage. What a command does not need is not imported: setting up knows no web framework.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from httppubsubclient import __version__
from httppubsubclient.protocol.errors import PubSubError
from httppubsubserver.provision import (
    BROADCASTER_FILE,
    DEFAULT_DATABASE,
    DEFAULT_URL,
    STORAGE_KEY_FILE,
    add_tls,
    lacks_certificates_only,
    rotate,
    set_up,
)
from httppubsubserver.provision_tls import https_urls, renew_certificates, settings_here

__all__ = ["main"]

_AUTH_TYPES = ("hmac", "token", "none")

_ALONE = ("--setup", "--rotate", "--renew-certificates", "serve", "deliveries")
_OF_THE_CLIENT = ("notify", "listen", "sign", "verify")
_SETUP_ONLY = ("db", "to_broadcasters_auth", "to_subscribers_auth", "broadcaster_url", "tls", "force")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads our output any more. What is still buffered must not fail once more when Python ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except PubSubError as error:
        print(f"httppubsubserver: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        print(f"httppubsubserver: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    else:
        return status


# -- the commands -----------------------------------------------------------------------------------------------------


def _run(given: Sequence[str]) -> int:
    match given[:1]:
        case ["serve"]:
            return _serve(given)
        case ["deliveries"]:
            from httppubsubserver.cli_deliveries import deliveries

            return deliveries(given[1:])
        case _:
            return _set_up_or_rotate(given)


def _set_up_or_rotate(given: Sequence[str]) -> int:
    parser = _parser()
    options = _parsed(parser, given)
    if options.rotate:
        return _rotate(parser, options)
    if options.renew_certificates:
        return _renew_certificates(parser, options)
    if options.setup:
        return _set_up(parser, options)
    return parser.error("say what to do: --setup, --rotate, --renew-certificates, serve or deliveries")


def _set_up(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if "grace_seconds" in options:
        parser.error("--grace-seconds belongs to --rotate")
    if "subscriber_host" in options and "tls" not in options:
        parser.error("--subscriber-host is for a certificate: it goes with --tls")
    if "tls" in options and "force" not in options and lacks_certificates_only(options.directory):
        for name in ("db", "to_broadcasters_auth", "to_subscribers_auth"):
            if name in options:
                flag = f"--{name.replace('_', '-')}"
                parser.error(
                    f"the folder is set up already, so --setup --tls adds certificates alone: leave out {flag}"
                )
        urls, hosts = (getattr(options, name, ()) for name in ("broadcaster_url", "subscriber_host"))
        print(add_tls(options.directory, broadcaster_urls=urls, subscriber_hosts=hosts), end="")
        return 0
    steps = set_up(
        options.directory,
        db=getattr(options, "db", DEFAULT_DATABASE),
        to_broadcasters=getattr(options, "to_broadcasters_auth", "hmac"),
        to_subscribers=getattr(options, "to_subscribers_auth", "hmac"),
        broadcaster_urls=getattr(options, "broadcaster_url", ()),
        tls="tls" in options,
        subscriber_hosts=getattr(options, "subscriber_host", ()),
        force=getattr(options, "force", False),
    )
    print(steps, end="")
    return 0


def _renew_certificates(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    for name in (*_SETUP_ONLY, "grace_seconds"):
        if name in options:
            parser.error(f"--{name.replace('_', '-')} does not belong to --renew-certificates")
    hosts = getattr(options, "subscriber_host", ())
    print(renew_certificates(options.directory, subscriber_hosts=hosts), end="")
    return 0


def _rotate(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    for name in (*_SETUP_ONLY, "subscriber_host"):
        if name in options:
            parser.error(f"--{name.replace('_', '-')} belongs to --setup alone; rotating changes keys only")
    print(rotate(options.directory, grace_seconds=getattr(options, "grace_seconds", 86_400)), end="")
    return 0


def _serve(given: Sequence[str]) -> int:
    from httppubsubserver.config import ServerConfig, load_config

    options = _parsed(_serve_parser(), given[1:])
    defaults = {"secrets_file": Path(BROADCASTER_FILE)}
    if Path(STORAGE_KEY_FILE).exists():
        defaults["storage_key_file"] = Path(STORAGE_KEY_FILE)
    overrides = {name: value for name, value in vars(options).items() if name in ServerConfig.model_fields}
    config = load_config(file=options.config, overrides=overrides, defaults=defaults)
    certificates = settings_here(Path())
    # All of them or none: whoever says something about certificates has others, or wants none.
    if certificates and config.model_fields_set.isdisjoint(certificates) and https_urls(config.secrets_file):
        config = load_config(file=options.config, overrides=overrides, defaults={**defaults, **certificates})
    from httppubsubserver import serving

    if options.fd is not None:
        return serving.serve_as_worker(config, fd=options.fd, lifeline=options.lifeline)
    return serving.serve(config, worker_command=[sys.executable, "-m", "httppubsubserver", *given])


# -- what can be said on the command line -----------------------------------------------------------------------------


def _parsed(parser: argparse.ArgumentParser, given: Sequence[str]) -> argparse.Namespace:
    """Ends the process with status 2 when something is not understood, and says what may have been meant."""
    options, unknown = parser.parse_known_args(given)
    if unknown:
        from httppubsubserver.config import nearest

        name = next((text for text in unknown if text.startswith("-")), unknown[0]).partition("=")[0]
        if name in _ALONE:
            parser.error(f"{name!r} is a command of its own: httppubsubserver {name} [options]")
        known = [flag for action in parser._actions for flag in action.option_strings]
        close = nearest(name, known if name.startswith("-") else ["serve", "deliveries"])
        if name in _OF_THE_CLIENT:
            close = f"; httppubsubclient has it: httppubsubclient {name} --help"
        parser.error(f"there is no {name!r} here{close}")
    return options


def _parser() -> argparse.ArgumentParser:
    """Everything but `serve`. Options that are not given are not in the namespace, so that misplaced ones show."""
    parser = argparse.ArgumentParser(
        prog="httppubsubserver",
        usage="httppubsubserver --setup | --rotate | --renew-certificates | serve | deliveries | --version [options]",
        description="Publish/subscribe over plain HTTP: the broadcaster.",
        epilog="`httppubsubserver serve` runs a broadcaster; `httppubsubserver serve --help` lists its settings. "
        "`httppubsubserver deliveries --help`: what became of durable messages, and sending them again.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(setup=False, rotate=False, renew_certificates=False, directory=Path())
    parser.add_argument("--version", action="version", version=f"httppubsub {__version__}")
    parser.add_argument("--setup", action="store_true", help="write secrets for both sides and a main.py to start from")
    parser.add_argument("--rotate", action="store_true", help="add new keys; the present ones end after the grace")
    parser.add_argument(
        "--renew-certificates", action="store_true", help="new certificates by the authority that --setup --tls made"
    )
    parser.add_argument(
        "--directory", type=Path, metavar="D", help="the folder of the files (default: the current one)"
    )
    _add_setup_options(parser.add_argument_group("with --setup"))
    rotation = parser.add_argument_group("with --rotate")
    rotation.add_argument(
        "--grace-seconds",
        type=_whole_number,
        metavar="N",
        help="how long the present keys are still taken (default: 86400); new ones are used from half of it on",
    )
    return parser


def _add_setup_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--db", metavar="URL", help=f"beside main.py if relative (default: {DEFAULT_DATABASE})")
    for name, who in (("broadcasters", "publishers and subscribers"), ("subscribers", "broadcasters")):
        group.add_argument(f"--to-{name}-auth", choices=_AUTH_TYPES, help=f"how {who} prove themselves (default: hmac)")
    group.add_argument(
        "--broadcaster-url",
        action="append",
        metavar="URL",
        help=f"how others reach a broadcaster; again for more of them (default: {DEFAULT_URL})",
    )
    group.add_argument(
        "--tls",
        action="store_true",
        help="make a private certificate authority, and certificates for both sides; in a folder that is set up "
        "already, these alone",
    )
    group.add_argument(
        "--subscriber-host",
        action="append",
        metavar="HOST",
        help="with --tls or --renew-certificates: a name or address that broadcasters call listeners at; may be "
        "repeated (localhost always is one)",
    )
    group.add_argument("--force", action="store_true", help="overwrite what is there")


def _serve_parser() -> argparse.ArgumentParser:
    """One flag for each setting; those that are not given are not in the namespace."""
    from httppubsubserver.config import ServerConfig

    serve = argparse.ArgumentParser(
        prog="httppubsubserver serve",
        usage="httppubsubserver serve [--config FILE] [--secrets FILE] [--db URL] [--host H] [--port P] [settings]",
        description="Listen and deliver. Settings come from a TOML file, then from HTTPPUBSUB_<SETTING> variables, "
        "then from these flags; the later one wins.",
        epilog="The first line on stdout says where it listens; the log goes to stderr. SIGTERM or Ctrl-C stops it "
        "once running deliveries are done, a second one at once.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    serve.add_argument(
        "--config", type=Path, metavar="FILE", default=None, help="TOML (default: what HTTPPUBSUB_CONFIG names)"
    )
    settings = serve.add_argument_group("settings")
    for name, field in ServerConfig.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        flags = ["--secrets", flag] if name == "secrets_file" else [flag]
        default = f"./{BROADCASTER_FILE}" if name == "secrets_file" else field.default
        help_text = (field.description or "").replace("%", "%%")
        if default is not None:
            help_text += f" (default: {default})"
        settings.add_argument(*flags, dest=name, metavar="VALUE", help=help_text)
    # How a process with several workers starts them.
    for flag in ("--fd", "--lifeline"):
        serve.add_argument(flag, type=int, default=None, help=argparse.SUPPRESS)
    return serve


def _whole_number(text: str) -> int:
    with contextlib.suppress(ValueError):
        if 0 <= int(text) <= 10 * 365 * 86_400:
            return int(text)
    raise argparse.ArgumentTypeError(f"a whole number of seconds, from 0 to ten years; got {text!r}")
