"""What durable delivery needs of a store: messages that were accepted, and what is owed of them to whom.

    accepted = await store.accept(Publication(notification, body, subscription_ids), now=now, terms=terms)
    claims = await store.claim(terms, now=now)
    [in_time] = await store.settle([Settlement(claimed.held, "delivered", attempt)], now=now)

`DurableStore` is the contract; tests/stores/test_durable_*.py is its suite, which every backend passes. It is what
`open_store` opens.

A *message* is accepted once. A *delivery* is that message for one durable subscription. An *attempt* is one POST of a
delivery. An *endpoint* is a callback URL without its fragment: what fails together, and what takes turns.

| a delivery is | which means                                                                                     |
|---------------|-------------------------------------------------------------------------------------------------|
| `pending`     | owed: it can be claimed from `due_at` on, unless it is leased or its endpoint is blocked        |
| `waiting`     | owed, but behind another one of its ordered subscription                                        |
| `delivered`   | taken by the subscriber                                                                         |
| `dead`        | given up, and why: it can be replayed                                                           |
| `cancelled`   | not wanted any more: it was unsubscribed from, called off, or sent again to a successor         |

Who claims a delivery holds its lease. A lease that ends frees the delivery for anybody, so there is nothing to repair
after a crash. What is left of a delivery stays visible until retention takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

from httppubsubclient.protocol.messages import Notification
from httppubsubclient.protocol.options import DeliveryFormat
from httppubsubserver.stores import Store

__all__ = [
    "CHUNK_BYTES",
    "MAX_ANSWER_BYTES",
    "MAX_ATTEMPTS_KEPT",
    "MAX_COUNTED",
    "MAX_REPLAYS",
    "MAX_REPLAYS_KEPT",
    "Accepted",
    "Attempt",
    "Attempted",
    "Claimed",
    "Claims",
    "Counts",
    "DeliveryPage",
    "DeliveryState",
    "DurableStore",
    "Held",
    "MessageAndDeliveries",
    "OwedDelivery",
    "Pruned",
    "Publication",
    "Replay",
    "Selection",
    "SequencePage",
    "Sequenced",
    "Settlement",
    "StoredMessage",
    "Terms",
]

CHUNK_BYTES: Final = 256 * 1024
"""A body up to this size is part of its message; a larger one is written in pieces of this size, but for the last."""

MAX_ANSWER_BYTES: Final = 1024
"""What is kept of the body of an answer, and (in characters) of an error."""

MAX_ATTEMPTS_KEPT: Final = 32
"""Of each delivery, the last that failed."""

MAX_COUNTED: Final = 20_000
"""See `Counts`. Counting so many takes some 40 ms in a large file."""

MAX_REPLAYS: Final = 16
"""Of one owner, that are not finished."""

MAX_REPLAYS_KEPT: Final = 1000
"""Of one owner, that are finished: the progress of those before is forgotten."""

DeliveryState = Literal["pending", "waiting", "delivered", "dead", "cancelled"]


class Publication(NamedTuple):
    """A message to be accepted."""

    notification: Notification
    body: bytes | None
    """None for one above `CHUNK_BYTES`, which `write_chunk` has written before."""
    subscription_ids: Sequence[str]
    """The durable subscriptions that match, each once. Others among them count as gone."""
    deliver_at: int | None = None
    """A scheduled message: its deliveries are due then."""
    expires_at: int | None = None
    """From then on it is not sent any more: what is pending of it is dead, with the reason `expired`."""
    owner: str | None = None
    """Of the key that published it."""


class Terms(NamedTuple):
    """On which terms deliveries are leased."""

    holder: str
    """Who leases: an id that is new for every start of a process."""
    until: int
    """The end of the leases; later than any attempt that begins now may end."""
    at_most: int = 100
    """Deliveries in all."""
    per_endpoint: int = 8
    """Deliveries of one endpoint. 0: only those in `limits` are looked at."""
    limits: Mapping[str, int] = {}
    """By the URL of an endpoint, instead of `per_endpoint`: 0 passes it over, because its slots are taken or its
    circuit is open; 1 is a probe. Each one that is passed over is a row that is looked at, nothing more."""
    max_body_bytes: int = 8 * 1024 * 1024
    """Bodies in memory: a claim ends with the one that passes it."""


class StoredMessage(NamedTuple):
    """A message that was accepted."""

    notification: Notification
    accepted_at: int
    deliver_at: int | None
    expires_at: int | None
    body: bytes | None
    """None when it is large (read it with `read_chunk`), was not asked for, or is no longer kept."""
    body_kept: bool
    """False when retention has taken the body."""
    owner: str | None = None
    """Of the key that published it; None: published without one."""


class Held(NamedTuple):
    """The lease of one delivery, as `settle` and `extend` know it. Its fields are the store's own."""

    message: int
    subscription_id: str
    holder: str
    lease: int
    endpoint: int
    ordered: bool


class Claimed(NamedTuple):
    """A delivery that is leased, with what an attempt needs."""

    held: Held
    message: StoredMessage
    """The same object for all deliveries of a message in one answer."""
    url: str
    """The callback URL with its fragment."""
    sequence: int
    """1, 2, 3 ... without gaps, in the order in which the subscription's messages were accepted."""
    previous_message_id: str | None
    """That of the delivery with the sequence before; None for the first."""
    attempt: int
    """1, 2, ...: which one is to be made. A replayed delivery begins again at 1."""
    retry_schedule_seconds: tuple[float, ...] | None
    subscribed_until: int
    """`Subscription.expires_at`, for `Settlement.subscribed_until`."""
    leased_until: int
    format: DeliveryFormat = "raw"
    sealed: bytes | None = None
    """`Subscription.sealed`."""


class Claims(NamedTuple):
    """What a claim got."""

    deliveries: tuple[Claimed, ...]
    next_due_at: int | None
    """As `DurableStore.next_due` on the same terms says after it."""


class Accepted(NamedTuple):
    """What became of a message that was given to `accept`."""

    deliveries: int
    """How many durable deliveries it has. 0: none of the subscriptions is there any more, and nothing was written."""
    repeated: bool
    """It had been accepted before; this time nothing happened."""
    leased: tuple[Claimed, ...]
    """Those that are leased already and shall be attempted at once."""


class Attempt(NamedTuple):
    """One POST and what came of it."""

    began_at: int
    ended_at: int
    status: int | None = None
    """None: there was no answer, see `error`."""
    error: str | None = None
    answer: bytes = b""
    """The beginning of the answer's body, as it came: to be escaped wherever it is shown."""


class Attempted(NamedTuple):
    """An attempt as it is kept: those that failed."""

    subscription_id: str
    number: int
    """1, 2, ... over the whole life of the delivery; numbers are missing where a process died or one succeeded."""
    attempt: Attempt


class Settlement(NamedTuple):
    """What shall become of a delivery after an attempt."""

    held: Held
    outcome: Literal["delivered", "again", "dead", "gone"]
    """again: at `due_at`. dead: given up, see `reason`. gone: dead, and the subscription is removed (a 410)."""
    attempt: Attempt
    due_at: int = 0
    """again: when."""
    reason: str | None = None
    """dead: why, in a few words or a code, such as `exhausted` or `refused`."""
    subscribed_until: int | None = None
    """gone: the subscription stays when it has been renewed since, that is when its expiry is another one."""


class OwedDelivery(NamedTuple):
    """A delivery as an operator sees it, whatever its state."""

    message_id: str
    subscription_id: str
    """With the message's id it names the delivery."""
    topic: bytes
    url: str
    """Of the endpoint, without a fragment; also when the subscription is gone."""
    state: DeliveryState
    reason: str | None
    """Why it is dead or cancelled."""
    sequence: int
    previous_message_id: str | None
    accepted_at: int
    due_at: int | None
    """When the next attempt is due; None while it is leased, and when nothing is owed any more."""
    leased_until: int | None
    attempts: int
    """Begun since it was accepted or replayed."""
    updated_at: int
    """When its state or its `due_at` last changed; of one that is over, its end."""
    status: int | None
    """Of the last answer."""


class Selection(NamedTuple):
    """Which deliveries; what is None does not matter."""

    subscription_id: str | None = None
    state: DeliveryState | None = None
    message_id: str | None = None
    accepted_from: int | None = None
    accepted_until: int | None = None
    """Not included."""
    owner: str | None = None
    """Those of subscriptions that this owner has, or nobody (see `Only`), none of those that are gone. None: all."""


class DeliveryPage(NamedTuple):
    """One page of deliveries, the newest messages first; for an owner one subscription after another, and of each the
    newest first."""

    deliveries: tuple[OwedDelivery, ...]
    cursor: str | None
    """Give it to the next call; None on the last page. A page that is not the last may be short, even empty: a call
    looks at a bounded number of rows. That of an owner has nothing in it but what is his own, whoever reads it."""


class MessageAndDeliveries(NamedTuple):
    """One message, without its body, and a page of its deliveries with their attempts."""

    message: StoredMessage
    page: DeliveryPage
    attempts: tuple[Attempted, ...]
    """Of the deliveries on this page."""


class Sequenced(NamedTuple):
    """A message as one of a subscription's."""

    sequence: int
    previous_message_id: str | None
    state: DeliveryState
    message: StoredMessage


class SequencePage(NamedTuple):
    """What a subscription got after a sequence, in order."""

    messages: tuple[Sequenced, ...]
    complete: bool
    """Between `after` and the last of `messages` (when `last` is not among them: and on this page) nothing is
    missing: no number, and no body."""
    last: int
    """The subscription's last sequence. Ask again after the last one of `messages` until that is it."""


class Replay(NamedTuple):
    """Deliveries that are being sent again."""

    number: int
    selection: Selection
    requested_at: int
    replayed: int
    """Made pending again up to now."""
    skipped: int
    """Could not be: the subscription is gone and has no successor, the body is no longer kept, or the message has
    expired."""
    finished_at: int | None


class Pruned(NamedTuple):
    """What retention has taken."""

    bodies: int
    messages: int
    """With their deliveries and attempts."""


class Counts(NamedTuple):
    """For metrics. Rows are counted, up to `MAX_COUNTED` of a kind: others wait for what is read meanwhile."""

    pending: int
    """And waiting."""
    dead: int
    endpoints_blocked: int
    bytes_used: int
    """Of the database as a whole."""


class DurableStore(Store, Protocol):
    """What every `Store` promises holds here too; methods that say "in slices" may, when cancelled, have done a part
    of it, and asking again does the rest.

    A subscription is durable when its options say so. When it ends, by whichever method, by expiry or by a 410, what
    is pending of it is called off by `work_off`, and never claimed: `cancelled` with the reason `unsubscribed`, or
    `dead` with `subscription_expired` or `gone`. When it is made best effort again, what it was owed stays owed.

    What calls at the same time ask for shares a transaction. What is answered by `accept`, `replay`,
    `work_off` and `cancel_scheduled` has reached the disk. Leases and settlements survive the death of a process at
    once, and the power cut of the machine a moment later: then a delivery is made again.
    """

    async def write_chunk(self, message_id: str, position: int, data: bytes, *, now: int) -> None:
        """Write the piece at `position` (0, 1, 2 ...) of a large body; again is the same.

        The pieces of a message that is not accepted within an hour after the last one of them are deleted.
        """
        ...

    async def read_chunk(self, message_id: str, position: int) -> bytes | None:
        """A piece of a body; one that is not large is piece 0. None behind the last, or when it is no longer kept."""
        ...

    async def accept(self, publication: Publication, *, now: int, terms: Terms | None = None) -> Accepted:
        """Write a message and one delivery for each of its durable subscriptions, if there are any.

        A message id that was accepted before is left as it is. With `terms` the first deliveries are leased by the
        way, for an attempt at once: those that are due, of endpoints that are not blocked and have nothing older
        that is due, and of an ordered subscription only when nothing is before it.
        Raises `Unavailable` when the pieces of a large body are not all there: they have been written long ago.
        """
        ...

    async def claim(self, terms: Terms, *, now: int) -> Claims:
        """Lease deliveries that are due, `terms.per_endpoint` of each endpoint, the endpoints in turn.

        What lies at an endpoint that is blocked, passed over or has had its turn costs the others nothing. A delivery
        whose message has expired, or whose subscription is gone, is given up instead; so an answer may be empty while
        `next_due_at` says that there is more now. Two holders never hold one delivery at the same time.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement], *, now: int) -> list[bool]:
        """Decide deliveries by the attempts that were made. False: that lease is lost, and nothing happened.

        A lease is lost when somebody else has claimed the delivery after its end; while nobody has, a late settlement
        still counts. `again` does not make an endpoint wait, see `block_endpoint`. When `work_off` has met the
        delivery meanwhile because its subscription has ended, then `again` and `dead` end it for that reason.
        """
        ...

    async def extend(self, held: Sequence[Held], *, until: int, now: int) -> list[bool]:
        """Let leases end at `until`, where they are not lost."""
        ...

    async def release(self, held: Sequence[Held], *, now: int) -> list[bool]:
        """Give deliveries back of which no attempt was begun, where the lease is not lost: they are due at once, and
        the attempt that was to be made is still to be made; or they end as `settle` has it when the subscription has
        ended meanwhile."""
        ...

    async def bring_forward(self, subscription_id: str, *, now: int) -> int:
        """Let everything that waits for its next attempt be due now, in slices; how much that was.

        For a subscriber that is back: its schedule begins again, so the next attempt is number 1, and that of what
        was attempted and is due already, too. Not what is scheduled for later, and not what is leased.
        """
        ...

    async def next_due(self, limits: Mapping[str, int] | None = None, *, per_endpoint: int = 1) -> int | None:
        """When there may be something to claim: not later than there is. None: nothing is pending.

        A moment that has passed means now. Endpoints whose limit is 0 are not looked at;
        `per_endpoint` is that of those that are not in `limits`. To be asked again after
        every accept, settle and replay of one's own, and now and then because of those of other processes.
        """
        ...

    async def block_endpoint(self, url: str, *, until: int, now: int) -> None:
        """Let nothing of an endpoint (a callback URL without its fragment) be claimed before `until`.

        Of several blocks, whoever asked for them, the one that ends last counts. An `until` that is not later than
        `now` ends them all. Does nothing when the endpoint is unknown.
        """
        ...

    async def cancel_scheduled(self, message_id: str, *, now: int) -> int:
        """Call off the deliveries of a scheduled message of which no attempt was begun, in slices; how many."""
        ...

    async def deliveries(self, selection: Selection, *, cursor: str | None, limit: int) -> DeliveryPage:
        """A page of the deliveries that are selected. `limit` >= 1. Raises `InvalidRequest` for a cursor that is
        not from here."""
        ...

    async def message(
        self, message_id: str, *, cursor: str | None, limit: int, owner: str | None = None
    ) -> MessageAndDeliveries | None:
        """One message and a page of its deliveries; None when it is unknown or no longer kept. For an `owner` as in
        `Selection`, and None when he did not publish it and none of its deliveries is there for him."""
        ...

    async def messages_after(
        self, subscription_id: str, after: int, *, limit: int, max_body_bytes: int = 8 * 1024 * 1024, now: int
    ) -> SequencePage | None:
        """What a durable subscription got after the sequence `after`, whether it was delivered or not.

        At most `limit` messages, and bodies until they pass `max_body_bytes`. None as `durability` says.
        """
        ...

    async def replay(self, selection: Selection, *, now: int) -> Replay:
        """Ask for deliveries to be sent again. `work_off` does it, in the order of acceptance, each once; for an owner
        one subscription after another, each in its order.

        Those that are selected when it comes to them, of messages that have been accepted by now. Without a state,
        the dead; `delivered` and `cancelled` can be asked for. Raises `InvalidRequest` for others, and `QuotaExceeded`
        for an owner who has `MAX_REPLAYS` that are not finished. Owners take turns.

        When the subscription is gone or has expired, a successor gets the message: of the durable subscriptions of
        the same endpoint and the same owner that match the topic and have no delivery of this message, the one with
        the lowest id; what was nobody's may be succeeded by anybody's. It
        has a delivery of its own, with its next sequence, due now; the old one is `cancelled` with the reason
        `sent_again`, which cannot be replayed. It counts as one that was replayed.
        """
        ...

    async def replay_progress(self, number: int) -> Replay | None:
        """How far a replay has got; None when it is unknown or long finished."""
        ...

    async def work_off(self, *, now: int) -> int:
        """One bounded slice of what was asked for at large: replays, the ends of subscriptions, messages that expire.

        Returns how many rows it looked at; to be called again at once until that is 0, and every few seconds, by any
        process. Each slice is a transaction, and goes on where the last one ended, whoever made it.
        """
        ...

    async def prune_messages(
        self, *, now: int, bodies_before: int, messages_before: int, max_bytes: int | None = None
    ) -> Pruned:
        """Delete, in slices, what nobody is owed any more: bodies of messages that were over for all of their
        subscriptions before `bodies_before`, and all of those that were before `messages_before`.

        While the database uses more than `max_bytes`, further bodies, the oldest first, and then further messages.
        What is pending is never deleted, nor is the message that was accepted last. Also deletes the pieces of
        messages that were never accepted, finished replays, and endpoints that nothing is left of.
        """
        ...

    async def notice_clock(self, *, now: int) -> int:
        """Tell the store what the time is; to be called when a process starts, and about every half minute.

        When it is more than five seconds earlier than it has been, the clock was set back. Then what was decided in
        that future (waits, leases, blocks) is moved to as long after `now` as it was meant to be; how many rows that
        were. Moments that somebody named (`deliver_at`, `expires_at`) are left. A clock that was set forward needs
        nothing: waits are over early, leases are lost early.
        """
        ...

    async def counts(self, *, now: int) -> Counts:
        """How much there is."""
        ...
