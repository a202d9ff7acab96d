"""What this process is subscribed to at the broadcasters, and keeping it so.

There are two sets. *Wanted* is which local subscriptions want which patterns; it changes at once, without waiting.
*Confirmed* is what a broadcaster has told us it keeps for our URL: pattern -> subscription id. `_settle` makes the
second follow the first, one call at a time under one lock, with the smallest call that does it: a POST or a DELETE for
one difference, a PUT of the whole set for anything else. Calls that wait for the lock find their wish granted by the
PUT before them.

*Certain* says whether confirmed is all there is. It is False at the start (an earlier life of this URL may have left
something behind) and after any call of which it is unknown whether it was processed; the next call is then a PUT, which
repairs whatever happened. A delivery for an id we do not know is answered 410, which makes the broadcaster forget that
subscription, only when no call is under way and we are certain: the broadcaster may deliver before its answer to our
subscribe has reached us.

Leases are renewed at a third of their length by a PUT with If-Match, so that somebody else who uses the same URL is
noticed. The last to leave removes what is left by such a PUT, too: what another process has taken over stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from urllib.parse import quote

from httppubsubclient.broadcasters import (
    Answer,
    Broadcasters,
    BroadcastersUnavailable,
    parse_subscription,
    parse_subscriptions,
)
from httppubsubclient.inbox import Member
from httppubsubclient.protocol.errors import (
    Gone,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    PubSubError,
    Unavailable,
    wire_of,
)
from httppubsubclient.protocol.messages import Delivery, Subscription
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.retry import backoff_delay
from httppubsubclient.webhooks import Agreements, Rotation, Terms

__all__ = ["MAX_PATTERNS", "PATH", "UNDECIDED_SECONDS", "Registrations", "without_effect"]

logger = logging.getLogger(__name__)

PATH = "/v1/subscriptions"
UNDECIDED_SECONDS = 5.0
"""How long a delivery for an unknown subscription waits for our own calls to be decided; then it is answered 503."""

MAX_PATTERNS = 10_000
"""What a broadcaster takes as the whole set of a URL."""

_RENEW_AT = 1 / 3
_MAX_REPAIR_PAUSE_SECONDS = 60.0


class Registrations:
    """The subscriptions of one callback URL. `open` it, then `add` and `remove`, then `close` it."""

    name: None = None
    """They have none, other than those of durable_name.py."""

    def __init__(
        self,
        broadcasters: Broadcasters,
        url: str,
        *,
        lease_seconds: int,
        request_timeout_seconds: float,
        leave_timeout_seconds: float,
        undecided_seconds: float = UNDECIDED_SECONDS,
        agreements: Agreements | None = None,
    ) -> None:
        self._broadcasters = broadcasters
        self.url = url
        self._lease_seconds = lease_seconds
        self._request_timeout_seconds = request_timeout_seconds
        self._leave_timeout_seconds = leave_timeout_seconds
        self._undecided_seconds = undecided_seconds

        self._wanted: dict[Pattern, dict[Member, None]] = {}
        self._agreements = agreements or Agreements()
        self._confirmed: dict[Pattern, str] = {}
        self._patterns_by_id: dict[str, Pattern] = {}
        self._certain = False
        self._touched = False
        self._etag: str | None = None

        self._lock = asyncio.Lock()
        self._undecided_calls = 0
        self._decided = asyncio.Event()

        self._repair_wanted = False
        self._renew_at: float | None = None
        self._not_before = 0.0
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Start renewing and repairing."""
        self._keeper = asyncio.create_task(self._keep(), name=f"renew subscriptions of {self.url}")

    async def close(self) -> None:
        """Drop everything, here at once and at the broadcasters within `leave_timeout_seconds`. Failing at the latter
        is logged: the leases run out by themselves."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        for member in {member: None for members in self._wanted.values() for member in members}:
            member.close()
        for pattern in list(self._wanted):
            self._agreements.forget(pattern)
        self._wanted.clear()
        await self._settle_while_leaving()

    async def add(self, patterns: Collection[Pattern], member: Member) -> None:
        """Subscribe `member`; returns when a broadcaster has confirmed each pattern. When it raises, `member` is as
        little subscribed as before."""
        if not patterns:
            return
        if len(self._wanted.keys() | set(patterns)) > MAX_PATTERNS:
            raise InvalidRequest(f"one client subscribes to {MAX_PATTERNS} patterns at most; a glob may stand for many")
        self._agreements.agree(patterns, member.asked, self._wanted)
        new = [pattern for pattern in patterns if member not in self._wanted.get(pattern, {})]
        for pattern in new:
            self._wanted.setdefault(pattern, {})[member] = None
        try:
            await self._settle(self._request_timeout_seconds, mine=new)
            self._check_wanted(patterns, member)
        except BaseException:
            self._forget(new, member)
            self._ask_for_repair_if_needed()
            raise

    async def remove(self, patterns: Collection[Pattern], member: Member) -> None:
        """Unsubscribe `member`: here at once, at the broadcasters within `leave_timeout_seconds`. Failing at the
        latter is logged and repaired later."""
        self._forget(patterns, member)
        await self._settle_while_leaving()

    async def leave(self, patterns: Collection[Pattern], member: Member) -> None:
        """The same as `remove`: with best effort nothing is kept for those who are away."""
        await self.remove(patterns, member)

    async def rotate(self, patterns: Collection[Pattern], rotation: Rotation) -> None:
        """Change the secrets of these patterns. When it raises `BroadcastersUnavailable` and may have been processed,
        the new ones stand and are told again with the next call; after any other error the old ones stand."""
        async with self._turn(self._request_timeout_seconds) as deadline:
            for pattern in patterns:
                take_back = self._agreements.rotate(pattern, rotation)
                try:
                    await self._post(pattern, deadline)
                except PubSubError as error:
                    if without_effect(error):
                        take_back()
                    else:
                        self._doubt()
                    raise
                except BaseException:
                    self._doubt()
                    raise

    def terms(self, pattern: Pattern) -> Terms:
        """How the deliveries of a pattern come, and what proves them."""
        return self._agreements.of(pattern)

    async def members(self, subscription_id: str, *, proven: bool = True) -> tuple[Pattern, list[Member]]:
        """Who gets the deliveries of a subscription. Raises `Gone` when it certainly is none of ours, `Unavailable`
        when that is not known (yet). Only who is `proven` to be a broadcaster makes us reconcile what we have."""
        end = asyncio.get_running_loop().time() + self._undecided_seconds
        while True:
            pattern = self._patterns_by_id.get(subscription_id)
            if pattern is not None and self._wanted.get(pattern):
                return pattern, list(self._wanted[pattern])
            if self._undecided_calls:
                decided = self._decided
                try:
                    async with asyncio.timeout_at(end):
                        await decided.wait()
                except TimeoutError:
                    raise Unavailable(
                        "whether this subscription is ours is being settled", retry_after_seconds=1
                    ) from None
            elif not self._certain or pattern is not None:
                if proven:
                    self._ask_for_repair()
                raise Unavailable("what is subscribed here is being reconciled", retry_after_seconds=1)
            else:
                raise Gone(f"there is no subscription {subscription_id} here")

    def wants(self, pattern: Pattern) -> bool:
        """Whether somebody here wants this pattern at this moment, confirmed or not."""
        return bool(self._wanted.get(pattern))

    def expects_handshake(self) -> bool:
        """Whether a broadcaster may ask by `OPTIONS` at this moment: we told it to, and a call of ours is under way."""
        return self._undecided_calls > 0 and self._agreements.ask_for_handshake()

    def _check_wanted(self, patterns: Iterable[Pattern], member: Member) -> None:
        if any(member not in self._wanted.get(pattern, {}) for pattern in patterns):
            raise Unavailable("the client was left while it subscribed")

    def _forget(self, patterns: Iterable[Pattern], member: Member) -> None:
        for pattern in patterns:
            members = self._wanted.get(pattern)
            if members is not None:
                members.pop(member, None)
                if not members:
                    del self._wanted[pattern]
                    self._agreements.forget(pattern)

    # -- making confirmed follow wanted ---------------------------------------------------------------------------

    async def _settle(self, seconds: float, *, mine: Collection[Pattern] = (), renew: bool = False) -> None:
        async with self._turn(seconds) as deadline:
            await self._bring_about(deadline, mine, renew)

    @contextlib.asynccontextmanager
    async def _turn(self, seconds: float) -> AsyncIterator[float]:
        """One call at a time; gives the deadline."""
        deadline = asyncio.get_running_loop().time() + seconds
        self._undecided_calls += 1
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._lock.acquire()
            except TimeoutError:
                raise BroadcastersUnavailable(
                    f"earlier calls to the broadcasters took all of {seconds:.3g} s", answers={}, maybe_processed=False
                ) from None
            try:
                yield deadline
            finally:
                self._lock.release()
        finally:
            self._undecided_calls -= 1
            self._decided.set()
            self._decided = asyncio.Event()

    async def _bring_about(self, deadline: float, mine: Collection[Pattern], renew: bool) -> None:
        missing = [pattern for pattern in self._wanted if not self._stands(pattern)]
        extra = [pattern for pattern in self._confirmed if pattern not in self._wanted]
        if self._certain and not missing and not extra and not renew:
            self._repair_wanted = False
            return
        if not self._touched and not self._wanted and not renew:
            return  # nothing of ours is there to be taken back
        try:
            if not self._wanted and self._certain and self._etag is not None:
                await self._leave_what_is_ours(deadline)
            elif not self._certain or renew or len(missing) + len(extra) > 1:
                try:
                    await self._put(list(self._wanted), deadline)
                except PubSubError as error:
                    # Nobody pays for the pattern that somebody else asked for.
                    others = [one for one in missing if one not in mine and one not in self._confirmed]
                    if not _refused(error) or not others:
                        raise
                    await self._put([pattern for pattern in self._wanted if pattern not in others], deadline)
            elif missing:
                await self._post(missing[0], deadline)
            else:
                await self._delete(extra[0], deadline)
        except PubSubError as error:
            if not without_effect(error):
                self._doubt()
            raise
        except BaseException:
            self._doubt()
            raise
        self._touched = True
        self._repair_wanted = False
        self._not_before = 0.0
        self._wake.set()

    def _stands(self, pattern: Pattern) -> bool:
        """Whether a broadcaster has confirmed this pattern, on the present terms."""
        return pattern in self._confirmed and self._agreements.confirmed(pattern)

    def _doubt(self) -> None:
        """A call may or may not have been processed: nothing is certain until the next PUT."""
        self._touched = True
        self._certain = False
        self._etag = None
        self._ask_for_repair()

    async def _put(self, patterns: list[Pattern], deadline: float) -> None:
        query = f"url={quote(self.url, safe='')}"
        kept, answer = await self._put_once(patterns, query, deadline)
        foreign = {
            one.pattern for one in kept if one.pattern in self._wanted and self.terms(one.pattern).is_foreign(one)
        }
        if foreign:
            # An earlier life had secrets there, which nobody knows any more: those begin anew.
            await self._put_once([pattern for pattern in patterns if pattern not in foreign], query, deadline)
            kept, answer = await self._put_once(patterns, query, deadline)
        ids = {subscription.pattern: subscription.id for subscription in kept}
        if not ids.keys() >= set(patterns):
            raise PubSubError(f"{answer.url} confirmed {len(ids)} of {len(patterns)} subscriptions of {self.url}")
        self._confirmed = ids
        self._patterns_by_id = {subscription_id: pattern for pattern, subscription_id in ids.items()}
        self._etag = answer.headers.get("etag")
        self._agreements.keep_only(ids)
        for subscription in kept:
            if subscription.pattern in self._wanted:  # others were left meanwhile, and are removed next
                self._agreements.confirm(subscription)
        self._certain = True
        self._renew_at = None
        self._note_leases(kept)

    async def _put_once(
        self, patterns: list[Pattern], query: str, deadline: float
    ) -> tuple[list[Subscription], Answer]:
        fields = {"subscriptions": [self._fields(pattern) for pattern in patterns]}
        for _ in range(3):
            headers = {"if-match": self._etag} if self._etag is not None else {}
            try:
                answer = await self._call("PUT", PATH, deadline, query=query, headers=headers, fields=fields)
                self._etag = answer.headers.get("etag")
                return parse_subscriptions(answer), answer
            except PreconditionFailed:
                logger.warning(
                    "the subscriptions of %s were changed by somebody else: does another process use this URL? "
                    "A fragment (#1, #2, ...) in `host` tells processes apart",
                    self.url,
                )
                listed = await self._call("GET", PATH, deadline, query=f"{query}&limit=1")
                self._etag = listed.headers.get("etag")
        raise Unavailable(f"somebody else keeps changing the subscriptions of {self.url}", retry_after_seconds=1)

    def _fields(self, pattern: Pattern) -> dict[str, object]:
        return {**pattern.to_json(), **self.terms(pattern).fields(), "lease_seconds": self._lease_seconds}

    async def _leave_what_is_ours(self, deadline: float) -> None:
        """Remove everything, unless another process with this URL has changed it since: then it took it over, as the
        new one of a rolling restart does, and it stays."""
        query = f"url={quote(self.url, safe='')}"
        headers = {"if-match": self._etag or ""}
        try:
            answer = await self._call("PUT", PATH, deadline, query=query, headers=headers, fields={"subscriptions": []})
        except PreconditionFailed as error:
            logger.info("another process has taken over the subscriptions of %s; they stay", self.url)
            self._etag = error.etag
        else:
            self._etag = answer.headers.get("etag")
        self._confirmed.clear()
        self._agreements.keep_only(())
        self._patterns_by_id.clear()
        self._renew_at = None

    async def _post(self, pattern: Pattern, deadline: float) -> None:
        fields = {"url": self.url, "delivery": "best_effort", **self._fields(pattern)}
        answer = await self._call("POST", PATH, deadline, fields=fields)
        kept = parse_subscription(answer, answer.fields())
        if pattern in self._wanted and self.terms(pattern).is_foreign(kept):
            with contextlib.suppress(NotFound):
                await self._call("DELETE", f"{PATH}/{kept.id}", deadline)
            answer = await self._call("POST", PATH, deadline, fields=fields)
            kept = parse_subscription(answer, answer.fields())
        if pattern in self._wanted:
            self._agreements.confirm(kept)
        self._confirmed[pattern] = kept.id
        self._patterns_by_id[kept.id] = pattern
        self._etag = answer.headers.get("etag")
        self._note_leases([kept])

    async def _delete(self, pattern: Pattern, deadline: float) -> None:
        subscription_id = self._confirmed[pattern]
        with contextlib.suppress(NotFound):
            await self._call("DELETE", f"{PATH}/{subscription_id}", deadline)
        del self._confirmed[pattern]
        self._patterns_by_id.pop(subscription_id, None)
        self._etag = None

    async def _call(
        self,
        method: str,
        path: str,
        deadline: float,
        *,
        query: str = "",
        headers: dict[str, str] | None = None,
        fields: Mapping[str, object] | None = None,
    ) -> Answer:
        left = max(0.001, deadline - asyncio.get_running_loop().time())
        return await self._broadcasters.call(
            method,
            path,
            query=query,
            headers=headers,
            fields=fields,
            repeatable=True,
            retry_seconds=left,
            deadline_seconds=left,
        )

    def arrived(self, delivery: Delivery) -> None:
        """A delivery was accepted; with best effort they have no numbers."""

    async def _settle_while_leaving(self) -> None:
        try:
            await self._settle(self._leave_timeout_seconds)
        except PubSubError as error:
            logger.warning("unsubscribing %s failed; its lease will run out: %s", self.url, error)
        finally:
            self._ask_for_repair_if_needed()

    # -- renewing and repairing -------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            due_at = self._due_at()
            try:
                async with asyncio.timeout_at(due_at):
                    await self._wake.wait()
                continue  # something changed: it may be due at another time now
            except TimeoutError:
                pass
            try:
                await self._settle(self._request_timeout_seconds, renew=True)
                failures = 0
            except PubSubError as error:
                failures += 1
                pause = backoff_delay(
                    failures,
                    random.random(),  # noqa: S311 - spreads load, protects nothing
                    base_seconds=1.0,
                    max_seconds=_MAX_REPAIR_PAUSE_SECONDS,
                )
                self._not_before = asyncio.get_running_loop().time() + pause
                logger.warning("renewing the subscriptions of %s failed; again in %.1f s: %s", self.url, pause, error)
            except Exception:
                failures += 1
                self._not_before = asyncio.get_running_loop().time() + _MAX_REPAIR_PAUSE_SECONDS
                logger.exception("renewing the subscriptions of %s failed", self.url)

    def _due_at(self) -> float | None:
        if self._repair_wanted:
            return max(self._not_before, asyncio.get_running_loop().time())
        if self._renew_at is not None and self._confirmed:
            return max(self._not_before, self._renew_at)
        return None

    def _note_leases(self, kept: Iterable[Subscription]) -> None:
        """Renew at a third of the shortest lease that was granted, a little earlier in some processes than in
        others."""
        leases = [subscription.lease_seconds for subscription in kept if subscription.lease_seconds]
        if not leases:
            return
        early = random.uniform(0.9, 1.0)  # noqa: S311 - spreads load, protects nothing
        renew_at = asyncio.get_running_loop().time() + min(leases) * _RENEW_AT * early
        self._renew_at = renew_at if self._renew_at is None else min(self._renew_at, renew_at)

    def _ask_for_repair(self) -> None:
        self._repair_wanted = True
        self._wake.set()

    def _ask_for_repair_if_needed(self) -> None:
        if any(pattern not in self._wanted for pattern in self._confirmed):
            self._ask_for_repair()


def _refused(error: PubSubError) -> bool:
    """Whether a broadcaster said no, so that it is certain that the call changed nothing."""
    return wire_of(error).status < 500


def without_effect(error: PubSubError) -> bool:
    """Whether a call that failed certainly changed nothing."""
    return _refused(error) or (isinstance(error, BroadcastersUnavailable) and not error.maybe_processed)
