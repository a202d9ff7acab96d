"""`httppubsubclient listen`: print messages as they come."""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import ipaddress
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

from httppubsubclient.cli_connection import broadcasters, credentials, tls_to_broadcasters
from httppubsubclient.protocol.topics import encode_topic, topic_to_json

__all__ = ["abandon_stdout", "add_listen"]

_SHOWN_BYTES = 64 * 1024
"""A larger body is not printed; --save keeps it in a file."""

_NO_PATTERNS = ("generate", "whsec_", "whsk_")
"""So begin the values that `secret=` of the library takes."""


def _listen(options: argparse.Namespace) -> int:
    if not (options.globs or options.exact or options.mqtt or options.forget):
        options.parser.error("say what to listen to: a glob like 'foo/*', --exact TOPIC or --mqtt FILTER")
    address, port = options.bind
    if options.host is None and _is_unspecified(address):
        options.parser.error(
            f"--bind {address or '(nothing)'} takes connections at every address of this machine; "
            f"say with --host http://ADDRESS:{port or 'PORT'} at which one the broadcaster reaches it"
        )
    if options.durable is not None and not port and options.host is None:
        options.parser.error(
            "--durable needs a port of its own, because the broadcaster calls back there after a restart, too: "
            "--bind 127.0.0.1:3002"
        )
    for flag, given in (
        ("--ordered", options.ordered),
        ("--ack", options.ack is not None),
        ("--remember", options.remember is not None),
        ("--forget", options.forget),
    ):
        if given and options.durable is None:
            options.parser.error(f"{flag} goes with --durable NAME")
    if options.forget and (options.globs or options.exact or options.mqtt):
        options.parser.error("--forget removes the whole name: leave out the patterns")
    if options.own_secret is not None and any(glob.startswith(_NO_PATTERNS) for glob in options.globs):
        options.parser.error("--own-secret has no value, and what follows it is a pattern; there is --own-secret-v1a")
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
        abandon_stdout()
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


def _forgotten(name: str, subscriptions: int, callback_url: str) -> int:
    if not subscriptions:
        print(f"nothing is subscribed as {name} at {callback_url}: are the name and --bind the same?", file=sys.stderr)
        return 1
    print(f"{name} is forgotten: {subscriptions} subscriptions at {callback_url}", file=sys.stderr)
    return 0


async def _listen_on(options: argparse.Namespace) -> int:
    from httppubsubclient.client import HttpPubSubClient

    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
    remaining = options.count
    async with HttpPubSubClient(_subscriber_config(options)) as client:
        if options.forget:
            return _forgotten(options.durable, await client.forget_durable(options.durable), client.callback_url)
        subscription = client.subscribe(
            exact=[os.fsencode(topic) for topic in options.exact],
            glob=options.globs,
            mqtt=options.mqtt,
            durable=options.durable,
            ordered=options.ordered,
            secret=options.own_secret,
            format=options.format,
            # What is processed is what was printed.
            ack="explicit" if options.durable is not None and options.ack != "accepted" else "accepted",
        )
        async with subscription:
            print(f"subscribed, called back at {client.callback_url}", file=sys.stderr, flush=True)
            async for message in subscription:
                print(_shown(message, options), flush=True)
                message.ack()
                if remaining is not None:
                    remaining -= 1
                    if remaining <= 0:
                        break
    return 0


def abandon_stdout() -> None:
    """Nobody reads it any more. What is still buffered for it must not fail once more when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


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


def _subscriber_config(options: argparse.Namespace) -> Any:
    from httppubsubclient.config import HttpPubSubConfig

    address, port = options.bind
    send_auth, receive_auth = credentials(options)
    shown_address = f"[{address}]" if ":" in address else address
    bind: dict[str, Any] = {"type": "uvicorn", "address": address, "port": port}
    if options.tls is not None:
        bind |= {
            "ssl_certfile": options.tls / "subscriber.pem",
            "ssl_keyfile": options.tls / "subscriber-key.pem",
            "ssl_ca_certs": options.tls / "ca.pem",
        }
    return HttpPubSubConfig(
        bind=cast(Any, bind),
        host=options.host or f"{'http' if options.tls is None else 'https'}://{shown_address}:{port}",
        **cast(Any, tls_to_broadcasters(options)),
        send_auth=send_auth,
        receive_auth=receive_auth,
        bearer_token=options.token_file,
        broadcasters=broadcasters(options),
        request_timeout_seconds=options.timeout,
        remember_file=options.remember,
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


def add_listen(commands: Any, common: argparse.ArgumentParser) -> None:
    """The sub-command `listen`."""
    listen = commands.add_parser(
        "listen",
        parents=[common],
        usage="httppubsubclient listen [GLOB ...] [--exact TOPIC] [--mqtt FILTER] [options]",
        help="print messages as they come",
        description="Subscribe, print each message that comes, and unsubscribe at the end: Ctrl-C, --count, or when "
        "nobody reads the output any more. With --durable it stays subscribed, and what comes meanwhile is printed the "
        "next time.",
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
        "--durable",
        metavar="NAME",
        help="stay subscribed under this name; the same name, with the same --bind or --host, gets what came meanwhile",
    )
    listen.add_argument("--ordered", action="store_true", help="with --durable: one at a time, in order")
    listen.add_argument(
        "--ack",
        choices=("accepted", "processed"),
        help="with --durable: a message counts as received when it is in memory, or when it was printed (the default)",
    )
    listen.add_argument(
        "--remember",
        type=Path,
        metavar="FILE",
        help="with --durable: remember what was received, so that no message comes twice, whatever happens",
    )
    listen.add_argument(
        "--forget",
        action="store_true",
        help="with --durable: remove the name, with everything that is pending for it, and end",
    )
    # Without values: an optional one would take the pattern behind it.
    own_secret = listen.add_mutually_exclusive_group()
    own_secret.add_argument(
        "--own-secret",
        action="store_const",
        const="generate",
        help="deliveries are signed with a secret of this subscription alone",
    )
    own_secret.add_argument(
        "--own-secret-v1a",
        action="store_const",
        dest="own_secret",
        const="generate-v1a",
        help="the same with ed25519: the broadcaster keeps the private key, and we get the public one",
    )
    listen.add_argument(
        "--format",
        choices=("raw", "cloudevents-binary", "cloudevents-structured"),
        default="raw",
        help="what deliveries look like on the wire (default: %(default)s); what is printed is the same",
    )
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
