"""`httppubsubserver deliveries list | show | replay`: looking after durable deliveries, straight in the database.

It works while a broadcaster runs and while none does. A replay is a row in the database: a running broadcaster begins
with it within seconds, one that is started later then. Nothing is created or migrated, whatever --db names.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubclient.protocol.messages import format_time
from httppubsubclient.protocol.moments import parse_moment
from httppubsubclient.protocol.topics import encode_topic
from httppubsubserver.audit import OPERATOR
from httppubsubserver.delivery_json import delivery_json, message_json, replay_json
from httppubsubserver.escaping import escaped
from httppubsubserver.operations import REPLAYED_STATES, STATES, Operations, selection_of
from httppubsubserver.stores import open_store
from httppubsubserver.stores.durable import (
    Attempted,
    DeliveryPage,
    DurableStore,
    MessageAndDeliveries,
    OwedDelivery,
    Replay,
    Selection,
)

__all__ = ["deliveries"]

_PAGE: Final = 100
_MICROSECONDS: Final = 1_000_000
_PAUSE_SECONDS: Final = 0.1
_EPILOG: Final = "A MOMENT is RFC 3339 (2026-11-21T02:11:00Z), or how long ago: 90s, 15m, 2h, 7d."
_AGO = re.compile(r"([0-9]{1,9})([smhd])", re.ASCII)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

_ROW: Final = "{:<20} {:<28} {:<26} {:<9} {:>3} {:>6}  {}"
_HEADINGS: Final = _ROW.format("ACCEPTED (UTC)", "MESSAGE", "SUBSCRIPTION", "STATE", "ATT", "STATUS", "WHAT")


def deliveries(given: Sequence[str]) -> int:
    """Run `deliveries` with these arguments; returns its exit status. Wrong usage ends the process with status 2."""
    parser = _parser()
    options = parser.parse_args(given)
    try:
        selections = _selections(options)
    except InvalidRequest as error:
        options.parser.error(error.detail)
    run: Callable[[argparse.Namespace, list[Selection]], Coroutine[Any, Any, int]] = options.run
    return asyncio.run(run(options, selections))


# -- the commands -----------------------------------------------------------------------------------------------------


async def _list(options: argparse.Namespace, selections: list[Selection]) -> int:
    printed = 0
    async with _opened(options) as (_, operations):
        ask = partial(operations.deliveries, selections[0])
        async for page in _pages(ask, None if options.all else options.limit):
            if page.deliveries and not printed and not options.json:
                print(_HEADINGS)
            for delivery in page.deliveries:
                print(_json_line(delivery_json(delivery)) if options.json else _row(delivery))
            printed += len(page.deliveries)
    if not printed:
        print("there are no such deliveries", file=sys.stderr)
    return 0


async def _show(options: argparse.Namespace, selections: list[Selection]) -> int:
    found: list[MessageAndDeliveries] = []
    async with _opened(options) as (_, operations):

        async def ask(*, cursor: str | None, limit: int) -> DeliveryPage:
            found.append(await operations.message(options.messages[0], cursor=cursor, limit=limit))
            return found[-1].page

        async for _ in _pages(ask, None if options.all else options.limit):
            pass
    whole = MessageAndDeliveries(
        found[0].message,
        DeliveryPage(tuple(each for part in found for each in part.page.deliveries), found[-1].page.cursor),
        tuple(each for part in found for each in part.attempts),
    )
    if options.json:
        print(_json_line(message_json(whole)))
    else:
        _print_message(whole)
    return 0


class _Ask(Protocol):
    def __call__(self, *, cursor: str | None, limit: int) -> Awaitable[DeliveryPage]: ...


async def _pages(ask: _Ask, at_most: int | None) -> AsyncIterator[DeliveryPage]:
    """All pages, or as many as have so many deliveries; says on stderr when there are more."""
    left = sys.maxsize if at_most is None else at_most
    cursor: str | None = None
    while left:
        page = await ask(cursor=cursor, limit=min(_PAGE, left))
        yield page
        left -= len(page.deliveries)
        cursor = page.cursor
        if cursor is None:
            return
    print(f"there are more than these {at_most}: --limit N or --all", file=sys.stderr)


async def _replay(options: argparse.Namespace, selections: list[Selection]) -> int:
    async with _opened(options) as (store, operations):
        # All of them first: a misspelt id asks for nothing.
        for selection in selections:
            if selection.message_id is not None:
                await operations.message(selection.message_id)
        for selection in selections:
            replay = await operations.replay(selection, by=OPERATOR)
            if options.wait:
                replay = await _finished(store, operations, replay)
            if options.json:
                print(_json_line(replay_json(replay)))
            elif options.wait:
                print(f"replay {replay.number}: {replay.replayed} are pending again, {replay.skipped} could not be")
            else:
                print(f"replay {replay.number}: a running broadcaster begins with it within seconds")
            sys.stdout.flush()
    return 0


async def _finished(store: DurableStore, operations: Operations, replay: Replay) -> Replay:
    """Do the work, beside whatever broadcasters do of it."""
    while replay.finished_at is None:
        if not await store.work_off(now=_now()):
            await asyncio.sleep(_PAUSE_SECONDS)
        replay = await operations.replay_progress(replay.number)
    return replay


@contextlib.asynccontextmanager
async def _opened(options: argparse.Namespace) -> AsyncIterator[tuple[DurableStore, Operations]]:
    from httppubsubserver.config import load_config

    overrides = {} if options.db is None else {"db": options.db}
    config = load_config(file=options.config, overrides=overrides)
    async with open_store(config.db, create=False) as store:
        yield store, Operations(store, now=_now, wake=lambda: None)


def _now() -> int:
    return int(time.time() * _MICROSECONDS)


# -- what is printed --------------------------------------------------------------------------------------------------


def _row(delivery: OwedDelivery) -> str:
    return _ROW.format(
        _shown(delivery.accepted_at),
        delivery.message_id,
        delivery.subscription_id,
        delivery.state,
        delivery.attempts,
        delivery.status or "-",
        "  ".join([*_condition(delivery), encode_topic(delivery.topic), delivery.url]),
    )


def _condition(delivery: OwedDelivery) -> list[str]:
    """Why it is over, or when it goes on."""
    if delivery.reason is not None:
        return [escaped(delivery.reason)]
    if delivery.leased_until is not None:
        return ["under way"]
    if delivery.state == "pending" and delivery.due_at is not None:
        return [f"due {_shown(delivery.due_at)}"]
    return []


def _print_message(found: MessageAndDeliveries) -> None:
    message, notification = found.message, found.message.notification
    print(f"message    {notification.message_id}")
    print(f"topic      {encode_topic(notification.topic)}")
    kept = "" if message.body_kept else ", no longer kept"
    print(f"body       {notification.size} bytes of {escaped(notification.content_type)}{kept}")
    print(f"accepted   {_shown(message.accepted_at)}")
    if message.deliver_at is not None:
        print(f"scheduled  {_shown(message.deliver_at)}")
    if message.expires_at is not None:
        print(f"expires    {_shown(message.expires_at)}")
    for delivery in found.page.deliveries:
        print()
        condition = "".join(f", {each}" for each in _condition(delivery))
        print(f"{delivery.subscription_id}  number {delivery.sequence}  {delivery.url}")
        print(f"  {delivery.state}{condition}, attempts: {delivery.attempts}")
        for attempted in found.attempts:
            if attempted.subscription_id == delivery.subscription_id:
                print(f"  {_attempt_line(attempted)}")


def _attempt_line(attempted: Attempted) -> str:
    attempt = attempted.attempt
    outcome = f"status {attempt.status}" if attempt.error is None else escaped(attempt.error)
    answer = f"  {escaped(attempt.answer)}" if attempt.answer else ""
    seconds = (attempt.ended_at - attempt.began_at) / _MICROSECONDS
    return f"failed {attempted.number}: {_shown(attempt.began_at)} {seconds:.3f} s  {outcome}{answer}"


def _json_line(document: dict[str, Any]) -> str:
    """One object. In ASCII: what a terminal, or a pipe in another encoding, makes of the rest is not known."""
    return json.dumps(document).replace("\x7f", "\\u007f")


def _shown(moment: int) -> str:
    """UTC, to the second: `2026-11-21 02:11:00`."""
    return format_time(moment)[:19].replace("T", " ")


# -- what can be said on the command line -----------------------------------------------------------------------------


def _selections(options: argparse.Namespace) -> list[Selection]:
    """One for each message that is named, or one for all. Raises `InvalidRequest`."""
    selections = [
        selection_of(
            state=options.state,
            subscription_id=options.subscription,
            message_id=message_id,
            accepted_from=options.accepted_from,
            accepted_until=options.accepted_until,
        )
        for message_id in options.messages or [None]
    ]
    if options.run is _replay and selections[0]._replace(state=None) == Selection():
        raise InvalidRequest("say what to replay: messages by their ids, --subscription, --from or --until")
    return selections


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="httppubsubserver deliveries",
        description="Look after durable deliveries, in the database itself: whether a broadcaster runs or not.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="list | show | replay", required=True)
    _add_list(commands)
    _add_show(commands)
    _add_replay(commands)
    return parser


def _add_list(commands: Any) -> None:
    command = _command(commands, "list", _list, "deliveries, the newest messages first")
    command.add_argument("--state", choices=STATES, help="only those in this state")
    command.add_argument(
        "--message", dest="messages", type=lambda text: [text], metavar="ID", help="only those of this message"
    )
    _selecting(command)
    _limiting(command)


def _add_show(commands: Any) -> None:
    command = _command(commands, "show", _show, "a message, its deliveries and their failed attempts")
    command.add_argument("messages", nargs=1, metavar="MESSAGE_ID")
    command.set_defaults(state=None, subscription=None, accepted_from=None, accepted_until=None)
    _limiting(command)


def _add_replay(commands: Any) -> None:
    command = _command(commands, "replay", _replay, "send deliveries again, with their schedule from the beginning")
    command.add_argument("messages", nargs="*", metavar="MESSAGE_ID")
    command.add_argument("--state", choices=REPLAYED_STATES, default="dead", help="(default: %(default)s)")
    _selecting(command)
    command.add_argument(
        "--wait", action="store_true", help="until all of it is pending again; needs no running broadcaster for that"
    )


def _command(commands: Any, name: str, run: Any, words: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=words, description=f"{words[0].upper()}{words[1:]}.", epilog=_EPILOG, allow_abbrev=False
    )
    command.set_defaults(run=run, parser=command)
    command.add_argument("--config", type=Path, metavar="FILE", help="TOML, as for serve; its `db` is what matters")
    command.add_argument("--db", metavar="URL", help="the broadcaster's database (default: as for serve)")
    command.add_argument("--json", action="store_true", help="for programs: one JSON object in each line")
    return command


def _selecting(command: argparse.ArgumentParser) -> None:
    command.add_argument("--subscription", metavar="ID", help="only those of this subscription")
    command.add_argument("--from", dest="accepted_from", type=_moment, metavar="MOMENT", help="accepted then or later")
    command.add_argument("--until", dest="accepted_until", type=_moment, metavar="MOMENT", help="accepted before")


def _limiting(command: argparse.ArgumentParser) -> None:
    command.add_argument("--limit", type=_count, default=_PAGE, metavar="N", help="at most so many (default: 100)")
    command.add_argument("--all", action="store_true", help="however many there are")


def _moment(text: str) -> str:
    """As RFC 3339."""
    if (ago := _AGO.fullmatch(text)) is not None:
        return format_time(max(_now() - int(ago[1]) * _UNITS[ago[2]] * _MICROSECONDS, 0))
    with contextlib.suppress(InvalidRequest):
        return format_time(parse_moment("it", text))
    raise argparse.ArgumentTypeError(
        f"a moment like 2026-11-21T02:11:00Z (RFC 3339), or how long ago like 90s, 15m, 2h, 7d; got {text!r}"
    )


def _count(text: str) -> int:
    if text.isascii() and text.isdecimal() and 1 <= len(text) <= 9 and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(f"a number, 1 or more; got {text!r}")
