"""`httppubsubclient notify | listen | sign | verify`: the client library from a shell.

Messages go to stdout, everything about them to stderr. Exit status: 0 done, 1 something failed, 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import difflib
import ipaddress
import json
import logging
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from httppubsubclient import __version__
from httppubsubclient.protocol.errors import ConfigurationError, InvalidRequest, PubSubError, Unavailable
from httppubsubclient.protocol.topics import encode_topic, topic_to_json

__all__ = ["main"]

_VARIABLE_PREFIX = "HTTPPUBSUB_CLIENT_"
_SECRETS_VARIABLE = "HTTPPUBSUB_CLIENT_SECRETS"
_BROADCASTERS_VARIABLE = "HTTPPUBSUB_CLIENT_BROADCASTERS"
_DEFAULT_SECRETS = "subscriber-secrets.json"
_COMMANDS = ("notify", "listen", "sign", "verify")
_SHOWN_BYTES = 64 * 1024
"""A larger body is not printed; --save keeps it in a file."""
_PROGRESS_BYTES = 1024 * 1024
"""A progress bar is shown for files from this size on."""
_PIPE_BYTES = 256 * 1024
"""Read at once from a pipe or a terminal, at most."""

_NOTIFY_HELP = """\
The answer counts the subscriptions: matched = notified (they confirmed it) + pending (not decided within --wait) +
failed (given up). Exit status 0: nobody failed, also when nobody was subscribed (matched 0); 1: somebody failed, or no
broadcaster took the message; 2: wrong usage; 130: interrupted.
"""


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
        _abandon_stdout()
        return 1
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
    known = (_SECRETS_VARIABLE, _BROADCASTERS_VARIABLE)
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
            return f"no broadcaster took it: {told}. {advice}"
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


def _abandon_stdout() -> None:
    """Nobody reads it any more. What is still buffered for it must not fail once more when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


# -- notify -----------------------------------------------------------------------------------------------------------


def _notify(options: argparse.Namespace) -> int:
    _check_body(options)
    with contextlib.ExitStack() as stack:
        # Opened out here: opening a named pipe waits for its writer, and only here Ctrl-C can interrupt that.
        body = _body(options, stack)
        return asyncio.run(_publish(options, body))


def _check_body(options: argparse.Namespace) -> None:
    ways = "--data TEXT, --file FILE, or - for standard input"
    if options.stdin not in (None, "-"):
        options.parser.error(f"{options.stdin!r} is neither topic nor option; the message is given as {ways}")
    given = [way for way in (options.data, options.file, options.stdin) if way is not None]
    if len(given) != 1:
        options.parser.error(f"say once what to publish: {ways}" if given else f"say what to publish: {ways}")


def _body(options: argparse.Namespace, stack: contextlib.ExitStack) -> dict[str, Any]:
    """The body as `HttpPubSubClient.notify` takes it."""
    if options.data is not None:
        return {"data": os.fsencode(options.data)}
    file: BinaryIO
    if options.stdin is None and str(options.file) != "-":
        file = stack.enter_context(options.file.open("rb"))
    elif sys.stdin is None:
        raise InvalidRequest("standard input is closed: there is nothing to publish")
    else:
        # The descriptor stays open: it is not ours.
        file = stack.enter_context(os.fdopen(sys.stdin.fileno(), "rb", closefd=False))
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or file.isatty():
        return {"data": _piped(file.fileno())}
    return {"sync_file": _with_progress(file, stack) if stat.S_ISREG(mode) else file}


async def _piped(descriptor: int) -> AsyncIterator[bytes]:
    """What comes through a pipe or from a terminal. A thread that waits for it could not be interrupted."""
    reader = asyncio.StreamReader()
    was_blocking = os.get_blocking(descriptor)
    # A copy, because the transport closes what it gets.
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(descriptor), "rb", buffering=0)
    )
    try:
        while chunk := await reader.read(_PIPE_BYTES):
            yield chunk
    finally:
        transport.close()
        # The mode belongs to the open file, which a terminal shares with the shell and with our own output.
        os.set_blocking(descriptor, was_blocking)


async def _publish(options: argparse.Namespace, body: dict[str, Any]) -> int:
    from httppubsubclient.client import HttpPubSubClient

    async with HttpPubSubClient(_publisher_config(options)) as client:
        result = await client.notify(
            topic=os.fsencode(options.topic),
            content_type=options.content_type,
            idempotency_key=options.idempotency_key,
            wait=options.wait,
            **body,
        )
    if options.json:
        print(json.dumps(result.to_json()))
    else:
        print(
            f"{result.message_id}: matched {result.matched}, notified {result.notified}, "
            f"pending {result.pending}, failed {result.failed}"
        )
    return 1 if result.failed else 0


def _with_progress(file: BinaryIO, stack: contextlib.ExitStack) -> Any:
    """The file; its reads move a progress bar if somebody is watching and it is worth one."""
    size = os.fstat(file.fileno()).st_size
    if size < _PROGRESS_BYTES or not sys.stderr.isatty():
        return file
    try:
        from tqdm import tqdm
    except ImportError:
        print("sending; `pip install 'httppubsub[progress]'` shows a progress bar here", file=sys.stderr)
        return file
    bar = tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1024, desc="hashing", file=sys.stderr)
    return _ProgressFile(file, stack.enter_context(bar))


class _ProgressFile:
    """A file whose position is a progress bar's. It is read twice: to hash it, then to send it."""

    def __init__(self, file: BinaryIO, bar: Any) -> None:
        self._file = file
        self._bar = bar

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._bar.update(len(data))
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = self._file.seek(offset, whence)
        if position < self._bar.n:
            self._bar.reset()
            self._bar.set_description("sending")
        self._bar.update(position - self._bar.n)
        return position

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return self._file.seekable()


# -- listen -----------------------------------------------------------------------------------------------------------


def _listen(options: argparse.Namespace) -> int:
    if not (options.globs or options.exact or options.mqtt):
        options.parser.error("say what to listen to: a glob like 'foo/*', --exact TOPIC or --mqtt FILTER")
    address, port = options.bind
    if options.host is None and _is_unspecified(address):
        options.parser.error(
            f"--bind {address or '(nothing)'} takes connections at every address of this machine; "
            f"say with --host http://ADDRESS:{port or 'PORT'} at which one the broadcaster reaches it"
        )
    return asyncio.run(_until_signalled(_listen_on(options)))


async def _until_signalled(work: Coroutine[Any, Any, int]) -> int:
    """Run `work`; SIGINT and SIGTERM cancel it, which unsubscribes, and count as a good end.

    So does the end of whoever reads our output: `listen 'foo/*' | head -1`.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    _when_stdout_ends(loop, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return 0
    except BrokenPipeError:
        _abandon_stdout()
        return 0


def _when_stdout_ends(loop: asyncio.AbstractEventLoop, do: Callable[[], object]) -> None:
    """Tell, without writing, that the other end of the pipe that we write to is closed."""
    try:
        descriptor = sys.stdout.fileno()
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return
    except (OSError, ValueError, AttributeError):
        return

    def ended() -> None:
        loop.remove_reader(descriptor)
        do()

    # There is never anything to read at this end, but its error is reported to readers (as asyncio does for pipes).
    loop.add_reader(descriptor, ended)


async def _listen_on(options: argparse.Namespace) -> int:
    from httppubsubclient.client import HttpPubSubClient

    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
    remaining = options.count
    async with HttpPubSubClient(_subscriber_config(options)) as client:
        subscription = client.subscribe(
            exact=[os.fsencode(topic) for topic in options.exact], glob=options.globs, mqtt=options.mqtt
        )
        async with subscription:
            print(f"subscribed, called back at {client.callback_url}", file=sys.stderr, flush=True)
            async for message in subscription:
                print(_shown(message, options), flush=True)
                if remaining is not None:
                    remaining -= 1
                    if remaining <= 0:
                        break
    return 0


def _shown(message: Any, options: argparse.Namespace) -> str:
    """One line for one message. Control characters are escaped: a message must not drive the terminal."""
    saved = _save(message, options.save) if options.save is not None else None
    data = b"" if saved or message.size > _SHOWN_BYTES else message.data.read()
    if options.json:
        line: dict[str, Any] = {
            "message_id": message.message_id,
            **topic_to_json(message.topic),
            "content_type": message.content_type,
            "size": message.size,
        }
        if saved:
            line["file"] = str(saved)
        elif message.size <= _SHOWN_BYTES:
            line |= _data_to_json(data)
        return json.dumps(line)
    if saved:
        text = f"{message.size} bytes in {saved}"
    elif message.size > _SHOWN_BYTES:
        text = f"{message.size} bytes (--save DIRECTORY keeps them)"
    else:
        text = "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
            for character in data.decode("utf-8", "backslashreplace")
        )
    return f"{encode_topic(message.topic)}: {text}"


def _data_to_json(data: bytes) -> dict[str, str]:
    try:
        return {"data": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"data_b64": base64.b64encode(data).decode("ascii")}


def _save(message: Any, directory: Path) -> Path:
    """Message ids are letters, digits, `_` and `-`, so the name stays inside the directory."""
    path = directory / str(message.message_id)
    with path.open("wb") as file:
        while chunk := message.data.read(1024 * 1024):
            file.write(chunk)
    return path


# -- configuration ----------------------------------------------------------------------------------------------------


def _credentials(options: argparse.Namespace) -> tuple[Any, Any]:
    from httppubsubclient.config import get_auth_config_from_file

    return get_auth_config_from_file(options.secrets)


def _broadcasters(options: argparse.Namespace) -> list[str] | None:
    if options.broadcaster:
        return cast(list[str], options.broadcaster)
    listed = os.environ.get(_BROADCASTERS_VARIABLE, "")
    return [url.strip() for url in listed.split(",") if url.strip()] or None


def _publisher_config(options: argparse.Namespace) -> Any:
    from httppubsubclient.config import HttpPubSubConfig

    send_auth, receive_auth = _credentials(options)
    return HttpPubSubConfig(
        send_auth=send_auth,
        receive_auth=receive_auth,
        broadcasters=_broadcasters(options),
        request_timeout_seconds=options.timeout,
    )


def _subscriber_config(options: argparse.Namespace) -> Any:
    from httppubsubclient.config import HttpPubSubConfig

    address, port = options.bind
    send_auth, receive_auth = _credentials(options)
    shown_address = f"[{address}]" if ":" in address else address
    return HttpPubSubConfig(
        bind={"type": "uvicorn", "address": address, "port": port},
        host=options.host or f"http://{shown_address}:{port}",
        send_auth=send_auth,
        receive_auth=receive_auth,
        broadcasters=_broadcasters(options),
        request_timeout_seconds=options.timeout,
    )


def _address(text: str) -> tuple[str, int]:
    address, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"expected ADDRESS:PORT, like 127.0.0.1:3002; got {text!r}")
    return address.strip("[]"), int(port)


def _is_unspecified(address: str) -> bool:
    """Whether it stands for every address: it can be listened at, but not called."""
    try:
        return not address or ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False  # a name


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1; got {text!r}")
    return int(text)


# -- what can be said on the command line -----------------------------------------------------------------------------


def _parsed(given: Sequence[str]) -> argparse.Namespace:
    """Ends the process with status 2 when something is not understood, and says what may have been meant."""
    parser = _parser()
    if given and not given[0].startswith("-") and given[0] not in _COMMANDS:
        parser.error(f"there is no command {given[0]!r}{_nearest(given[0], _COMMANDS)}")
    options, unknown = parser.parse_known_args(given)
    if unknown == ["-"] and options.command is _notify and options.stdin is None:
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
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--secrets",
        metavar="FILE",
        default=os.environ.get(_SECRETS_VARIABLE) or _DEFAULT_SECRETS,
        help="subscriber-secrets.json, made by httppubsubserver --setup "
        f"(default: what ${_SECRETS_VARIABLE} names, or ./{_DEFAULT_SECRETS})",
    )
    common.add_argument(
        "--broadcaster",
        metavar="URL",
        action="append",
        help=f"instead of those in the secrets file; may be repeated (or ${_BROADCASTERS_VARIABLE}, comma-separated)",
    )
    common.add_argument(
        "--timeout",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long broadcasters that do not answer are tried again, all together (default: %(default)g)",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_notify(commands, common)
    _add_listen(commands, common)
    from httppubsubclient.cli_signatures import add_sign, add_verify

    add_sign(commands, common)
    add_verify(commands, common)
    return parser


def _add_notify(commands: Any, common: argparse.ArgumentParser) -> None:
    notify = commands.add_parser(
        "notify",
        parents=[common],
        usage="httppubsubclient notify TOPIC (--data TEXT | --file FILE | -) [options]",
        help="publish one message",
        description="Publish one message and tell what became of it.",
        epilog=_NOTIFY_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    notify.set_defaults(command=_notify, parser=notify)
    notify.add_argument("topic", metavar="TOPIC", help="one topic, like foo/bar; patterns are for `listen`")
    notify.add_argument("stdin", nargs="?", metavar="-", help="the message is read from standard input")
    notify.add_argument(
        "--data", metavar="TEXT", help="the message itself, sent as it is, without a newline at its end"
    )
    notify.add_argument("--file", type=Path, metavar="FILE", help="the message is this file, of whatever size")
    notify.add_argument(
        "--content-type",
        metavar="TYPE",
        default="application/octet-stream",
        help="what the message is, told to the subscribers, like text/plain or application/json (default: %(default)s)",
    )
    notify.add_argument("--idempotency-key", metavar="KEY", help="the same message with the same key is sent once")
    notify.add_argument("--wait", type=float, metavar="SECONDS", help="answer after so long at the latest; 0: at once")
    notify.add_argument("--json", action="store_true", help="print the counts as JSON")


def _add_listen(commands: Any, common: argparse.ArgumentParser) -> None:
    listen = commands.add_parser(
        "listen",
        parents=[common],
        usage="httppubsubclient listen [GLOB ...] [--exact TOPIC] [--mqtt FILTER] [options]",
        help="print messages as they come",
        description="Subscribe, print each message that comes, and unsubscribe at the end: Ctrl-C, --count, or when "
        "nobody reads the output any more.",
    )
    listen.set_defaults(command=_listen, parser=listen)
    listen.add_argument("globs", nargs="*", metavar="GLOB", help="like 'foo/*'; quote it")
    listen.add_argument(
        "--exact",
        action="append",
        default=[],
        metavar="TOPIC",
        help="exactly this topic, in which * and ? mean nothing; may be repeated",
    )
    listen.add_argument(
        "--mqtt",
        action="append",
        default=[],
        metavar="FILTER",
        help="an MQTT topic filter: + is one level, a final # all the rest, like 'foo/+/#'; may be repeated",
    )
    listen.add_argument("--json", action="store_true", help="one JSON object a line")
    listen.add_argument("--save", type=Path, metavar="DIRECTORY", help="keep each body in a file named by message id")
    listen.add_argument("--count", type=_count, metavar="N", help="end after so many messages")
    listen.add_argument(
        "--bind",
        type=_address,
        default=("127.0.0.1", 0),
        metavar="ADDRESS:PORT",
        help="where to listen (default: 127.0.0.1 and a free port)",
    )
    listen.add_argument(
        "--host",
        metavar="URL",
        help="how the broadcaster reaches us, if not at the bound address; needed with --bind 0.0.0.0:PORT",
    )
