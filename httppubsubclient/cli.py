"""`httppubsubclient notify | listen | sign | verify`: the client library from a shell.

Messages go to stdout, everything about them to stderr. Exit status: 0 done, 1 something failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from httppubsubclient import __version__
from httppubsubclient.protocol.errors import PubSubError
from httppubsubclient.protocol.topics import encode_topic, topic_to_json

__all__ = ["main"]

_SECRETS_VARIABLE = "HTTPPUBSUB_CLIENT_SECRETS"
_BROADCASTERS_VARIABLE = "HTTPPUBSUB_CLIENT_BROADCASTERS"
_DEFAULT_SECRETS = "subscriber-secrets.json"
_SHOWN_BYTES = 64 * 1024
"""A larger body is not printed; --save keeps it in a file."""
_PROGRESS_BYTES = 1024 * 1024
"""A progress bar is shown for files from this size on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except (PubSubError, OSError) as error:
        print(f"httppubsubclient: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


# -- notify -----------------------------------------------------------------------------------------------------------


def _notify(options: argparse.Namespace) -> int:
    return asyncio.run(_notify_once(options))


async def _notify_once(options: argparse.Namespace) -> int:
    from httppubsubclient.client import HttpPubSubClient

    with contextlib.ExitStack() as stack:
        body: dict[str, Any]
        if options.data is not None:
            body = {"data": os.fsencode(options.data)}
        elif options.file is not None:
            body = {"sync_file": stack.enter_context(_with_progress(options.file))}
        else:
            body = {"sync_file": sys.stdin.buffer}
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


@contextlib.contextmanager
def _with_progress(path: Path) -> Any:
    """The file, opened; its reads move a progress bar if somebody is watching and it is worth one."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < _PROGRESS_BYTES or not sys.stderr.isatty():
            yield file
            return
        try:
            from tqdm import tqdm
        except ImportError:
            print("sending; `pip install 'httppubsub[progress]'` shows a progress bar here", file=sys.stderr)
            yield file
            return
        with tqdm(total=size, unit="B", unit_scale=True, unit_divisor=1024, desc="hashing", file=sys.stderr) as bar:
            yield _ProgressFile(file, bar)


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
        options.error("say what to listen to: a glob like 'foo/*', --exact TOPIC or --mqtt FILTER")
    return asyncio.run(_until_signalled(_listen_on(options)))


async def _until_signalled(work: Coroutine[Any, Any, int]) -> int:
    """Run `work`; SIGINT and SIGTERM cancel it, which unsubscribes, and count as a good end."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return 0


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="httppubsubclient", description="Publish, listen, and check signatures.")
    parser.add_argument("--version", action="version", version=f"httppubsub {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--secrets",
        metavar="FILE",
        default=os.environ.get(_SECRETS_VARIABLE, _DEFAULT_SECRETS),
        help="subscriber-secrets.json, made by httppubsubserver --setup (default: %(default)s)",
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
        default=10.0,
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
    notify = commands.add_parser("notify", parents=[common], help="publish one message")
    notify.set_defaults(command=_notify)
    notify.add_argument("topic")
    body = notify.add_mutually_exclusive_group(required=True)
    body.add_argument("--data", metavar="TEXT")
    body.add_argument("--file", type=Path, metavar="FILE")
    body.add_argument("stdin", nargs="?", choices=["-"], help="read the message from standard input")
    notify.add_argument("--content-type", metavar="TYPE", default="application/octet-stream")
    notify.add_argument("--idempotency-key", metavar="KEY", help="the same message with the same key is sent once")
    notify.add_argument("--wait", type=float, metavar="SECONDS", help="answer after so long at the latest; 0: at once")
    notify.add_argument("--json", action="store_true", help="print the counts as JSON")


def _add_listen(commands: Any, common: argparse.ArgumentParser) -> None:
    listen = commands.add_parser("listen", parents=[common], help="print messages as they come")
    listen.set_defaults(command=_listen, error=listen.error)
    listen.add_argument("globs", nargs="*", metavar="GLOB", help="like 'foo/*'; quote it")
    listen.add_argument("--exact", action="append", default=[], metavar="TOPIC")
    listen.add_argument("--mqtt", action="append", default=[], metavar="FILTER")
    listen.add_argument("--json", action="store_true", help="one JSON object a line")
    listen.add_argument("--save", type=Path, metavar="DIRECTORY", help="keep each body in a file named by message id")
    listen.add_argument("--count", type=int, metavar="N", help="end after so many messages")
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
        help="how the broadcaster reaches us, if not at the bound address",
    )
