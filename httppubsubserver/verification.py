"""One question to a callback: do you want to be called? (protocol/intent.py has the two forms.)

The question goes where a delivery would, over an `Egress` with the same policy and a connection of its own: what may
not be dialled is not asked. It is small, has no body, follows no redirect, and ends after `timeout_seconds`, however
the callback drips; at most `MAX_ANSWER_BYTES` of an answer are read, as they are.

| answer                                                                  | becomes                                |
|-------------------------------------------------------------------------|----------------------------------------|
| 2xx, and the challenge as the whole body (or the header of a handshake) | consent                                |
| 503, when the callback URL has a fragment                               | the same to another process behind it, |
|                                                                         | `MAX_QUESTIONS` times in all           |
| 408, 429, 5xx                                                           | `CallbackUnreachable`                  |
| any other, a redirect included                                          | `CallbackRefused`                      |
| none: no address, blocked, no connection, no HTTP, too long, too late   | `CallbackUnreachable`                  |

The text of each is always the same: whoever asks about hosts that are not its own learns nothing about them.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import httpx

from httppubsubclient import __version__
from httppubsubclient.protocol.addresses import parse_address
from httppubsubclient.protocol.callback_urls import CallbackUrl
from httppubsubclient.protocol.errors import (
    CallbackRefused,
    CallbackUnreachable,
    InvalidRequest,
    QuotaExceeded,
    Unavailable,
)
from httppubsubclient.protocol.intent import (
    Handshake,
    IntentMode,
    Verification,
    check_handshake,
    check_verification,
    handshake_headers,
    verification_target,
)
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.delivery.answers import AttemptFailed
from httppubsubserver.delivery.egress import Egress
from httppubsubserver.delivery.httpx_transport import FastTransport
from httppubsubserver.question_limits import Charge, QuestionBudget, Turns, address_charges, question_charges
from httppubsubserver.randomness import random_bytes

__all__ = ["MAX_ANSWER_BYTES", "MAX_QUESTIONS", "Asker", "Question"]

_LOG = logging.getLogger("httppubsub.server.consent")

MAX_ANSWER_BYTES: Final = 4096
MAX_QUESTIONS: Final = 5
"""To the processes behind one callback URL, which a fragment tells apart."""

_CHALLENGE_BYTES: Final = 24
_MAX_DIALLED: Final = 8
"""Of the addresses of a name, those that pay: no more of them are tried."""
_TOO_OFTEN: Final = "asked_too_often"
_NOT_ITS_FAULT: Final = ("proxy_error", "closed")
_FOR_ANOTHER_PROCESS: Final = 503


class Question(NamedTuple):
    """What a callback is asked. Two that are equal are one question."""

    callback: CallbackUrl
    mode: IntentMode
    pattern: Pattern | None
    """None for a handshake, which is about all."""
    lease_seconds: int | None
    """None: permanent, or none is named."""
    owner: str | None
    """Who wants to know."""

    @property
    def handshake(self) -> Handshake:
        """Which form it has."""
        return "cloudevents" if self.pattern is None else "websub"


@dataclass(slots=True)
class _Bill:
    """Who has paid for a question that is under way."""

    host: str
    owner: str | None
    paid: list[Charge] = field(default_factory=list)
    refused: QuotaExceeded | None = None


_BILL: ContextVar[_Bill | None] = ContextVar("bill", default=None)
"""Of the question for whose connection a name is being resolved: tasks that a question begins inherit it."""


class Asker:
    """Asks, for one event loop. `aclose` it."""

    def __init__(
        self,
        egress: Egress,
        tls: Callable[[], ssl.SSLContext],
        *,
        budget: QuestionBudget,
        timeout_seconds: float,
        origin: str | None,
    ) -> None:
        """`egress`: the way out of deliveries. `tls`: whom to trust; called for the first question, since certificates
        take long to read and most broadcasters ask nobody. `origin`: the host name that stands for this broadcaster,
        None when it has none; then there are no handshakes."""
        self._deliveries = egress
        # Of its own, because it counts: each name is resolved once for its connection, so what is resolved is dialled.
        self._egress = egress.resolving_by(self._resolved)
        self._forget = egress.on_change(lambda: self._egress.set_policy(egress.policy))
        self._tls = tls
        self._transport: FastTransport | None = None
        self._budget = budget
        self._turns = Turns()
        self._timeout_seconds = timeout_seconds
        self._origin = origin

    async def aclose(self) -> None:
        """What is under way has failed."""
        self._forget()
        if self._transport is not None:
            await self._transport.aclose()
        self._egress.close()

    async def ask(self, question: Question) -> None:
        """Return when the callback agrees. Raises `CallbackRefused`, `CallbackUnreachable`, `QuotaExceeded`,
        `Unavailable`, `InvalidRequest`; takes `timeout_seconds` at most."""
        charges = question_charges(question.callback.host, question.owner)
        loop = asyncio.get_running_loop()
        began = loop.time()
        in_time = False
        try:
            async with asyncio.timeout(self._timeout_seconds), self._turns.turn(charges):
                in_time = loop.time() - began < self._timeout_seconds / 2
                await self._ask(question, charges)
        except TimeoutError:
            if not in_time:  # most of it was spent waiting for others
                raise Unavailable(
                    "too many callbacks are being asked whether they agree", retry_after_seconds=1
                ) from None
            self._tell(question, f"no answer within {self._timeout_seconds:g} s")
            raise _unreachable() from None

    async def _ask(self, question: Question, charges: list[Charge]) -> None:
        questions = MAX_QUESTIONS if question.callback.fragment is not None else 1
        for left in reversed(range(questions)):
            status = await self._asked(question, charges)
            if 200 <= status <= 299:
                return
            if status != _FOR_ANOTHER_PROCESS or not left:
                raise _unreachable()

    async def _asked(self, question: Question, charges: list[Charge]) -> int:
        """Ask once: 2xx when the callback agrees, 408, 429 or 5xx when it could not say. Raises as `ask` does."""
        self._budget.spend(charges)
        bill = _Bill(question.callback.host, question.owner, list(charges))
        _BILL.set(bill)
        try:
            if parse_address(question.callback.host) is not None:
                self._charge(bill, [question.callback.host])
            status = await self._answered(question)
        except _NotSentError as error:
            self._budget.give_back(bill.paid)
            raise error.because from None
        except httpx.TransportError as error:
            reason = error.__cause__.reason if isinstance(error.__cause__, AttemptFailed) else ""
            if reason in _NOT_ITS_FAULT or bill.refused is not None:
                self._budget.give_back(bill.paid)
                raise bill.refused or Unavailable(
                    "the callback cannot be asked whether it agrees: the way out is disturbed", retry_after_seconds=5
                ) from None
            self._tell(question, f"{reason or type(error).__name__}: {error}")
            raise _unreachable() from None
        except CallbackRefused:
            self._tell(question, "it does not agree")
            raise
        except InvalidRequest:
            self._budget.give_back(bill.paid)  # there is no such question
            raise
        if 200 <= status <= 299:
            self._budget.give_back(bill.paid)
        else:
            self._tell(question, f"it answered {status}")
        return status

    async def _answered(self, question: Question) -> int:
        callback = question.callback
        if question.pattern is None:
            if self._origin is None:
                raise InvalidRequest(
                    "this broadcaster has no webhook_origin to name in a handshake: its operator sets it"
                )
            request = _request("OPTIONS", callback, callback.target, handshake_headers(self._origin))
            response = await self._sent(request)
            if not _could_not_say(response.status_code):
                headers = {name.lower(): value for name, value in response.headers.items()}
                check_handshake(self._origin, None, response.status_code, headers)
            return response.status_code
        challenge = urlsafe_b64encode(random_bytes(_CHALLENGE_BYTES)).decode("ascii")
        verification = Verification(question.mode, question.pattern, challenge, question.lease_seconds)
        request = _request("GET", callback, verification_target(callback.target, verification), {})
        response = await self._sent(request)
        if not _could_not_say(response.status_code):
            # Raw: what is compressed is not the challenge, and nothing is unpacked.
            body = b"".join([chunk async for chunk in response.aiter_raw()])
            check_verification(verification, response.status_code, body)
        return response.status_code

    async def _sent(self, request: httpx.Request) -> httpx.Response:
        if self._transport is None:
            self._transport = FastTransport(
                tls=self._tls(),
                max_requests=1 << 20,
                idle_per_origin=0,
                max_answer_bytes=MAX_ANSWER_BYTES,
                egress=self._egress,
            )
        return await self._transport.handle_async_request(request)

    async def _resolved(self, host: str, port: int) -> list[str]:
        """The resolver of the way out: whoever is at the addresses pays, too."""
        found = await self._deliveries.resolve(host, port)
        bill = _BILL.get()
        if bill is not None and host == bill.host:
            try:
                self._charge(bill, found[:_MAX_DIALLED])
            except _NotSentError as error:
                bill.refused = error.because
                raise AttemptFailed(_TOO_OFTEN, again=False) from None
        return found

    def _charge(self, bill: _Bill, addresses: Iterable[str]) -> None:
        charges = list(dict.fromkeys(charge for one in addresses for charge in address_charges(one, bill.owner)))
        try:
            self._budget.spend(charges)
        except QuotaExceeded as error:
            raise _NotSentError(error) from None
        bill.paid += charges

    @staticmethod
    def _tell(question: Question, outcome: str) -> None:
        """For the operator alone: why a callback could not be asked is no business of whoever wants that."""
        _LOG.info("%s was asked to %s: %s", question.callback.origin, question.mode, ascii(outcome[:300])[1:-1])


class _NotSentError(Exception):
    """Somebody could not pay for a question."""

    def __init__(self, because: QuotaExceeded) -> None:
        super().__init__()
        self.because = because


def _request(method: str, callback: CallbackUrl, target: str, headers: dict[str, str]) -> httpx.Request:
    fragment = {} if callback.fragment is None else {"pubsub-fragment": callback.fragment}
    return httpx.Request(
        method,
        f"{callback.origin}/",
        headers={
            # As deliveries have it. httpx would decode the name for its own, and fail where that cannot be done.
            "host": callback.request_url.split("/", 3)[2],
            "user-agent": f"httppubsub/{__version__}",
            "accept": "*/*",
            "accept-encoding": "identity",
            **fragment,
            **headers,
        },
        # As it was canonicalised, and not once more.
        extensions={"target": target.encode("ascii")},
    )


def _could_not_say(status: int) -> bool:
    """Whether an answer means that the callback may say something else a little later."""
    return status >= 500 or status in (408, 429)


def _unreachable() -> CallbackUnreachable:
    return CallbackUnreachable(
        "the callback could not be asked whether it agrees to be called, or did not answer in time: it has to be "
        "running, reachable and allowed, and answer the GET or OPTIONS that docs/protocol.md describes"
    )
