"""`httppubsubclient notify | listen | sign | verify`: the client library from a shell.

Messages go to stdout, everything about them to stderr. Exit status: 0 done, 1 something failed, 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from httppubsubclient import __version__
from httppubsubclient.cli_connection import (
    BROADCASTERS_VARIABLE,
    SECRETS_VARIABLE,
    TLS_VARIABLE,
    connection_options,
)
from httppubsubclient.cli_listen import abandon_stdout, add_listen
from httppubsubclient.cli_notify import add_notify, notify
from httppubsubclient.cli_signatures import add_sign, add_verify
from httppubsubclient.protocol.errors import ConfigurationError, PubSubError, Unavailable

__all__ = ["main"]

_VARIABLE_PREFIX = "HTTPPUBSUB_CLIENT_"
_COMMANDS = ("notify", "listen", "sign", "verify")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    try:
        options = _parsed(sys.argv[1:] if arguments is None else arguments)
        logging.basicConfig(level=logging.WARNING, format="httppubsubclient: %(message)s")
        _check_variables(os.environ)
        command: Callable[[argparse.Namespace], int] = options.command
        status = command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        abandon_stdout()
        return 1
    except SystemExit:
        # --help and --version end here, and what they printed may still be buffered.
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            abandon_stdout()
        raise
    except PubSubError as error:
        print(f"httppubsubclient: {_advice(error)}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"httppubsubclient: {_fault(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    else:
        return status


def _check_variables(environ: Mapping[str, str]) -> None:
    known = (SECRETS_VARIABLE, BROADCASTERS_VARIABLE, TLS_VARIABLE)
    for name in environ:
        if name.startswith(_VARIABLE_PREFIX) and name not in known:
            raise ConfigurationError(f"there is no variable {name!r}{_nearest(name, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}"


def _advice(error: PubSubError) -> str:
    """What went wrong, with advice for somebody who sits at a shell."""
    if isinstance(error, Unavailable):
        from httppubsubclient.broadcasters import BroadcastersUnavailable

        if isinstance(error, BroadcastersUnavailable):
            told = "; ".join(f"{url} {answer}" for url, answer in error.answers.items())
            if error.maybe_processed:
                advice = "It may have been processed nevertheless; with --idempotency-key a notify is safe to repeat."
            else:
                advice = "Check that a broadcaster runs there; --broadcaster URL, or the secrets file, says where."
            return f"no broadcaster took it: {told}." + ("" if error.settings_at_fault else f" {advice}")
    return str(error)


def _fault(error: OSError) -> str:
    """Without the number, which tells nobody anything."""
    if error.filename is None:
        return error.strerror or str(error)
    name = repr(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else str(error.filename)
    if isinstance(error, FileNotFoundError):
        return f"there is no file {name}"
    if isinstance(error, FileExistsError):
        return f"{name} is there already, and is not a folder"
    return f"{name}: {error.strerror or error}"


def _parsed(given: Sequence[str]) -> argparse.Namespace:
    """Ends the process with status 2 when something is not understood, and says what may have been meant."""
    parser = _parser()
    if given and not given[0].startswith("-") and given[0] not in _COMMANDS:
        parser.error(f"there is no command {given[0]!r}{_nearest(given[0], _COMMANDS)}")
    options, unknown = parser.parse_known_args(given)
    if unknown == ["-"] and options.command is notify and options.stdin is None:
        # argparse takes an optional argument for absent when options stand between the topic and it.
        options.stdin = "-"
    elif unknown:
        name = next((text for text in unknown if text.startswith("-")), unknown[0]).partition("=")[0]
        known = [flag for action in options.parser._actions for flag in action.option_strings]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        options.parser.error(f"there is no {name!r} here" + (f"; did you mean {close[0]!r}?" if close else ""))
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="httppubsubclient",
        description="Publish, listen, and check signatures.",
        epilog="`httppubsubclient COMMAND --help` says more about each.",
    )
    parser.add_argument("--version", action="version", version=f"httppubsub {__version__}")
    common = connection_options()
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_notify(commands, common)
    add_listen(commands, common)
    add_sign(commands, common)
    add_verify(commands, common)
    return parser
