"""POSTs to subscriptions that want more than the published bytes: signed with their own secrets, or as CloudEvents.

`Webhooks.post` is to them what `Outbound.post` is to all others. What is small is made and sent at once; what is large
is read, hashed and signed in threads, within the deadline of the attempt and within one room for all (webhook_bodies).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from httppubsubclient.bodies import Body, uncancelled
from httppubsubclient.protocol.callback_urls import CallbackUrl, parse_callback_url
from httppubsubclient.protocol.cloudevents import structured_around
from httppubsubclient.protocol.delivery_heads import NONCE_PREFIX_BYTES
from httppubsubclient.protocol.errors import ConfigurationError, InvalidRequest, PubSubError
from httppubsubclient.protocol.intent import handshake_headers
from httppubsubclient.protocol.keys import Credentials, Secrets
from httppubsubclient.protocol.messages import Notification
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.outbound import Answer, AttemptFailed, Outbound, Post
from httppubsubserver.delivery.webhook_bodies import SMALL_BYTES, SMALL_EVENT_BYTES, DataMembers, Room, read_body
from httppubsubserver.delivery.webhook_heads import (
    WITHHELD,
    NotMade,
    Parcel,
    event_for,
    head_lines,
    media_type_sent,
    structured_sent,
)
from httppubsubserver.randomness import random_bytes
from httppubsubserver.subscription_secrets import SigningKey, SubscriptionSecrets, withheld_from
from httppubsubserver.vault import Unopenable

__all__ = ["EventIdentity", "Webhooks", "event_identity"]

_LOG = logging.getLogger("httppubsub.server.delivery")

_ROOM_BYTES: Final = 64 * 1024 * 1024
"""What all large bodies that are being made, and structured ones on their way, take at most."""

_NO_SOURCE: Final = "httppubsub"
"""Of events, where the secrets file does not say at which URLs the broadcasters are."""

_MAX_TOLD: Final = 1000
"""Subscriptions whose secrets could not be opened: one line in the log for each of so many."""


class EventIdentity(NamedTuple):
    """Who we are in CloudEvents."""

    source: str
    """A URI reference."""
    origin: str | None
    """A host name."""


def event_identity(config: ServerConfig, secrets: Secrets) -> EventIdentity:
    """As the settings and the secrets file say it. Raises `ConfigurationError`."""
    source, host = _NO_SOURCE, None
    if secrets.broadcasters:
        source = secrets.broadcasters[0]
        host = parse_callback_url(source).host
    if config.webhook_origin is not None:
        try:
            handshake_headers(config.webhook_origin)
        except InvalidRequest:
            raise ConfigurationError("webhook_origin should be a host name in lower case") from None
        return EventIdentity(source, config.webhook_origin)
    try:
        return EventIdentity(source, None if host is None else handshake_headers(host)["webhook-request-origin"])
    except InvalidRequest:
        return EventIdentity(source, None)


class _Made(NamedTuple):
    """A request that can be sent."""

    lines: bytes
    sent: Notification
    body: Body | None
    """None: the message's own."""


class Webhooks:
    """Makes and sends them. `clock` gives Unix seconds."""

    def __init__(
        self,
        config: ServerConfig,
        outbound: Outbound,
        credentials: Credentials,
        secrets: SubscriptionSecrets,
        *,
        identity: EventIdentity,
        clock: Callable[[], float],
    ) -> None:
        self._max_bytes = config.max_webhook_bytes
        self.outbound = outbound
        self._credentials = credentials
        self._withheld = withheld_from(config, credentials)
        self._secrets = secrets
        self._identity = identity
        self._clock = clock
        self.loop = asyncio.get_running_loop()
        self.members = DataMembers()
        self.room = Room(_ROOM_BYTES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: dict[str, None] = {}

    @property
    def bytes_in_memory(self) -> int:
        """Of bodies that are there beside those of the messages."""
        return self.room.taken + self.members.bytes_in_memory

    def post(
        self,
        parcel: Parcel,
        callback: CallbackUrl,
        body: Body,
        *,
        deadline: float,
        done: Callable[[Answer | AttemptFailed], None],
    ) -> Post:
        """As `Outbound.post`, for one delivery of a message and its body. What fails before anything is sent is told
        as `NotMade`."""
        parcel = parcel._replace(notification=media_type_sent(parcel.notification, parcel.format))
        post = _WebhookPost(self, parcel, callback, body, deadline, done)
        post.begin()
        return post

    async def close(self) -> None:
        """Wait for threads that still work for attempts that were given up."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    # -- for the posts --------------------------------------------------------------------------------------------

    def keys_of(self, parcel: Parcel, callback: CallbackUrl) -> tuple[SigningKey, ...]:
        """What it is signed with; nothing when its subscription has no secrets of its own. Raises `NotMade`."""
        if parcel.sealed is None:
            if self._withheld is not None and self._withheld(callback.host):
                raise NotMade(WITHHELD)
            return ()
        try:
            return self._secrets.signing_keys(parcel.subscription_id, parcel.sealed)
        except Unopenable as error:
            if parcel.subscription_id not in self._told and len(self._told) < _MAX_TOLD:
                self._told[parcel.subscription_id] = None
                _LOG.error("the secret of %s cannot be used: %s", parcel.subscription_id, error)
            raise NotMade("sealed") from None

    def check_size(self, notification: Notification) -> None:
        """Raises `NotMade`."""
        if notification.size > self._max_bytes:
            raise NotMade("too_large", for_good=True)

    def spawn(self, post: _WebhookPost) -> asyncio.Task[None]:
        """Make a large one."""
        task = self.loop.create_task(post.make_large())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def maker(self, parcel: Parcel, keys: Sequence[SigningKey]) -> Callable[[bytes, bytes], _Made]:
        """What makes the request, from the body of the message (unless neither keys nor format need it) and, for a
        structured event, its data member: in any thread."""
        credentials, identity, now = self._credentials, self._identity, int(self._clock())
        nonce_prefix = random_bytes(NONCE_PREFIX_BYTES)

        def make(data: bytes, member: bytes) -> _Made:
            event = None if parcel.format == "raw" else event_for(parcel, identity.source)
            sent, body = parcel.notification, None
            if event is not None and parcel.format == "cloudevents-structured":
                data = structured_around(event, member)
                body = Body.of(data)
                sent = structured_sent(sent, body.sha256, body.size)
            lines = head_lines(
                parcel,
                event,
                sent,
                credentials=credentials,
                keys=keys,
                data=data,
                now=now,
                nonce_prefix=nonce_prefix,
                origin=identity.origin,
            )
            return _Made(lines, sent, body)

        return make

    def lines_again(self, parcel: Parcel, sent: Notification) -> bytes:
        """The header lines of one without keys once more, with a nonce of their own."""
        return head_lines(
            parcel,
            None if parcel.format == "raw" else event_for(parcel, self._identity.source),
            sent,
            credentials=self._credentials,
            keys=(),
            data=b"",
            now=int(self._clock()),
            nonce_prefix=random_bytes(NONCE_PREFIX_BYTES),
            origin=self._identity.origin,
        )


class _WebhookPost:
    """One of them, from the first thought of it to its outcome."""

    __slots__ = (
        "_body",
        "_callback",
        "_deadline",
        "_done",
        "_keys",
        "_over",
        "_parcel",
        "_post",
        "_room",
        "_task",
        "_webhooks",
    )

    def __init__(
        self,
        webhooks: Webhooks,
        parcel: Parcel,
        callback: CallbackUrl,
        body: Body,
        deadline: float,
        done: Callable[[Answer | AttemptFailed], None],
    ) -> None:
        self._webhooks = webhooks
        self._parcel = parcel
        self._callback = callback
        self._body = body
        self._deadline = deadline
        self._done = done
        self._keys: tuple[SigningKey, ...] = ()
        self._task: asyncio.Task[None] | None = None
        self._post: Post | None = None
        self._room = 0
        """Bytes of the room that this one has."""
        self._over = False

    @property
    def _structured(self) -> bool:
        return self._parcel.format == "cloudevents-structured"

    def begin(self) -> None:
        """Make and send it, or begin to. `done` is not called from within this."""
        parcel, body, webhooks = self._parcel, self._body, self._webhooks
        try:
            webhooks.check_size(parcel.notification)
            self._keys = webhooks.keys_of(parcel, self._callback)
            data = member = b""
            if self._structured or self._keys:
                if body.data is None or body.size > (SMALL_EVENT_BYTES if self._structured else SMALL_BYTES):
                    self._task = webhooks.spawn(self)
                    return
                data = body.data
            if self._structured:
                member = webhooks.members.of(parcel.notification, data)
                # Text may grow to six times its size.
                if len(member) > SMALL_EVENT_BYTES * 2:
                    self._task = webhooks.spawn(self)
                    return
            made = webhooks.maker(parcel, self._keys)(data, member)
        except NotMade as failure:
            webhooks.loop.call_soon(self._end, failure)
        except PubSubError as error:
            # No key may be used now: nothing that a receiver would take can be sent.
            webhooks.loop.call_soon(self._end, NotMade(error.code))
        else:
            self._send(made)

    def cancel(self) -> None:
        """See `Post`."""
        self._over = True
        if self._task is not None:
            self._task.cancel()  # gives its room back when its thread is done
        if self._post is not None:
            self._post.cancel()
            self._leave_room(self._room)

    async def make_large(self) -> None:
        """The same as `begin` does for small ones, in threads."""
        try:
            async with asyncio.timeout_at(self._deadline):
                made = await self._made_large()
        except TimeoutError:
            self._fail(NotMade("not_in_time"))
        except PubSubError as error:
            self._fail(NotMade(error.code))
        except OSError as error:
            self._fail(NotMade("body_unreadable", cause=error))
        except asyncio.CancelledError:
            self._leave_room(self._room)
            raise
        except Exception:
            _LOG.exception("a webhook to %s could not be made", self._parcel.subscription_id)
            self._fail(NotMade("internal_error"))
        else:
            self._task = None
            # What was read to be signed is not needed any more, a body of its own is.
            self._leave_room(self._room - (0 if made.body is None else made.body.size))
            self._send(made)

    async def _made_large(self) -> _Made:
        parcel, body, webhooks = self._parcel, self._body, self._webhooks
        # What is read, and what is signed.
        await self._take_room(2 * body.size)
        if self._structured:
            member = await webhooks.members.of_large(parcel.notification, body)
            # Not more beside what it has: two who wait for each other would wait for ever.
            self._leave_room(self._room)
            await self._take_room(2 * len(member))
            make = webhooks.maker(parcel, self._keys)
            return await uncancelled(asyncio.to_thread(make, b"", member))
        make = webhooks.maker(parcel, self._keys)
        shared = body.share()
        return await uncancelled(asyncio.to_thread(lambda: make(read_body(shared), b"")))

    def _send(self, made: _Made) -> None:
        if self._over:
            self._leave_room(self._room)
            return
        if self._keys:
            # Signed seconds ago at most, and a receiver that has seen it knows it by its id.
            def lines_again() -> bytes:
                return made.lines
        else:

            def lines_again() -> bytes:
                return self._webhooks.lines_again(self._parcel, made.sent)

        self._post = self._webhooks.outbound.post(
            self._callback,
            made.lines,
            self._body if made.body is None else made.body,
            deadline=self._deadline,
            done=self._end,
            head_again=lines_again,
        )

    def _fail(self, failure: NotMade) -> None:
        self._task = None
        self._end(failure)

    def _end(self, outcome: Answer | AttemptFailed) -> None:
        self._leave_room(self._room)
        if not self._over:
            self._over = True
            self._done(outcome)

    async def _take_room(self, count: int) -> None:
        await self._webhooks.room.take(count)
        self._room = count

    def _leave_room(self, count: int) -> None:
        if count:
            self._room -= count
            self._webhooks.room.give_back(count)
