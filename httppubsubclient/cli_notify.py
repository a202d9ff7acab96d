"""`httppubsubclient notify`: publish one message, from the command line, a file or standard input."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from httppubsubclient.cli_connection import broadcasters, credentials, tls_to_broadcasters
from httppubsubclient.protocol.errors import InvalidRequest

__all__ = ["add_notify", "notify"]

_PROGRESS_BYTES = 1024 * 1024
"""A progress bar is shown for files from this size on."""
_PIPE_BYTES = 256 * 1024
"""Read at once from a pipe or a terminal, at most."""

_NOTIFY_HELP = """\
The answer counts the subscriptions: matched = notified (they confirmed it) + pending (not decided within --wait, or
owed to a durable subscription) + failed (given up). Exit status 0: nobody failed, also when nobody was subscribed
(matched 0); 1: somebody failed, or no broadcaster took the message; 2: wrong usage; 130: interrupted.
"""


def notify(options: argparse.Namespace) -> int:
    """Publish, and tell what became of it; returns the exit status."""
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
            deliver_at=options.deliver_at,
            expires=options.expires,
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


def _moment(text: str) -> datetime | float:
    if text.isascii() and text.isdecimal():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise argparse.ArgumentTypeError(
            f"expected seconds from now, or a moment like 2026-11-21T02:11:00Z with its offset; got {text!r}"
        )
    return moment


def _publisher_config(options: argparse.Namespace) -> Any:
    from httppubsubclient.config import HttpPubSubConfig

    send_auth, receive_auth = credentials(options)
    return HttpPubSubConfig(
        send_auth=send_auth,
        receive_auth=receive_auth,
        bearer_token=options.token_file,
        broadcasters=broadcasters(options),
        request_timeout_seconds=options.timeout,
        **cast(Any, tls_to_broadcasters(options)),
    )


def add_notify(commands: Any, common: argparse.ArgumentParser) -> None:
    """The sub-command `notify`."""
    parser = commands.add_parser(
        "notify",
        parents=[common],
        usage="httppubsubclient notify TOPIC (--data TEXT | --file FILE | -) [options]",
        help="publish one message",
        description="Publish one message and tell what became of it.",
        epilog=_NOTIFY_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=notify, parser=parser)
    parser.add_argument("topic", metavar="TOPIC", help="one topic, like foo/bar; patterns are for `listen`")
    parser.add_argument("stdin", nargs="?", metavar="-", help="the message is read from standard input")
    parser.add_argument(
        "--data", metavar="TEXT", help="the message itself, sent as it is, without a newline at its end"
    )
    parser.add_argument("--file", type=Path, metavar="FILE", help="the message is this file, of whatever size")
    parser.add_argument(
        "--content-type",
        metavar="TYPE",
        default="application/octet-stream",
        help="what the message is, told to the subscribers, like text/plain or application/json (default: %(default)s)",
    )
    parser.add_argument("--idempotency-key", metavar="KEY", help="the same message with the same key is sent once")
    parser.add_argument("--wait", type=float, metavar="SECONDS", help="answer after so long at the latest; 0: at once")
    parser.add_argument(
        "--deliver-at",
        type=_moment,
        metavar="WHEN",
        help="not before: seconds from now, or a moment like 2026-11-21T02:11:00Z; only durable subscriptions get it",
    )
    parser.add_argument(
        "--expires",
        type=_moment,
        metavar="WHEN",
        help="durable subscriptions are not sent it any more from then on: a moment, or seconds after it is due",
    )
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
