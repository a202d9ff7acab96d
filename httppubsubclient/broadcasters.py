"""Calls to the broadcasters: signed, spread over all of them, tried again elsewhere, and always over by a deadline.

What happens to one attempt, and whether another one follows:

| outcome                                              | then                                                    |
|------------------------------------------------------|---------------------------------------------------------|
| no connection                                        | the next broadcaster                                    |
| a certificate that is not trusted, or no TLS at all  | the next broadcaster; this one is not tried once more   |
| 429, 503                                             | the next broadcaster: this one refused to process it    |
| cut off or timed out before the body was sent        | the next broadcaster                                    |
| cut off or timed out after it, 502, 504              | the next one if the call is `repeatable`, else an error |
| 2xx                                                  | the answer                                              |
| anything else                                        | the error of its problem document, with the URL         |

After each round over all of them there is a pause with full jitter. Every broadcaster of a deployment shares one
store, so it does not matter which of them takes a call.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from httppubsubclient.bearer import BearerSource, bearer_headers
from httppubsubclient.bodies import Body, BodyWriter
from httppubsubclient.call_failures import is_hopeless, what_failed
from httppubsubclient.outgoing import Outgoing
from httppubsubclient.protocol.credentials import Credentials, sign_request
from httppubsubclient.protocol.errors import (
    ConfigurationError,
    InvalidRequest,
    PreconditionFailed,
    PubSubError,
    QuotaExceeded,
    Unavailable,
    from_problem,
)
from httppubsubclient.protocol.messages import Subscription
from httppubsubclient.protocol.retry import Verdict, backoff_delay, retry_after_seconds, verdict
from httppubsubclient.protocol.signatures import content_digest
from httppubsubclient.tls import Identity, client_context

__all__ = ["Answer", "Broadcasters", "BroadcastersUnavailable"]

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""The largest answer that is read: the whole set of a URL has about 300 bytes a subscription."""

MAX_CONNECTIONS = 200
"""Calls at once over httpx's own transport; further ones wait for their turn, within their deadline. Its pool looks at
all that are under way, or wait, for each of them: with 1,000 it comes to 15 a second. A transport that is given has
bounds of its own."""

_MAX_IDLE_CONNECTIONS = 100

_BASE_PAUSE_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 5.0
_AVOID_SECONDS = 10.0
"""A broadcaster that could not be connected to, or did not answer, is tried last for this long."""

_KEEPALIVE_SECONDS = 2.0
"""Shorter than what servers commonly allow (uvicorn: 5 s), so that we close idle connections before they do: a request
that meets a connection just being closed is ambiguous."""


class BroadcastersUnavailable(Unavailable):
    """No broadcaster took the call. The text and `answers` say what each of them did."""

    def __init__(
        self,
        detail: str,
        *,
        answers: Mapping[str, str],
        maybe_processed: bool,
        retry_after_seconds: float | None = None,
        settings_at_fault: bool = False,
    ) -> None:
        super().__init__(detail, retry_after_seconds=retry_after_seconds)
        self.answers = dict(answers)
        """URL of a broadcaster -> what it answered last."""
        self.maybe_processed = maybe_processed
        """False when it is certain that the call had no effect."""
        self.settings_at_fault = settings_at_fault
        """True when another try comes out the same until a certificate or a setting is another."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer."""

    url: str
    """The broadcaster that gave it."""
    status: int
    headers: httpx.Headers
    content: bytes
    body: Body | None = None
    """Instead of `content`, when it was asked for with `open_body`."""

    def fields(self) -> dict[str, Any]:
        """The JSON object in it. Raises `PubSubError` naming the broadcaster when there is none."""
        try:
            fields = json.loads(self.content)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise PubSubError(f"{self.url} answered {self.status} without a JSON object: it is not a broadcaster")
        return fields


class Broadcasters:
    """All broadcasters of one deployment, used as a context manager while their connections are needed."""

    def __init__(
        self,
        urls: Sequence[str],
        credentials: Credentials,
        *,
        connect_timeout_seconds: float,
        bearer_token: BearerSource | None = None,
        ca_file: str | None = None,
        identity: Identity | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`bearer_token` proves the requests instead of `credentials`. `transport` stays open: it belongs to who made
        it, and others may use it too."""
        self._urls = tuple(urls)
        self._credentials = credentials
        self._bearer_token = bearer_token
        self._shows_certificate = identity is not None
        self._avoided_until: dict[str, float] = {}
        self._turn = asyncio.Semaphore(MAX_CONNECTIONS) if transport is None else nullcontext()
        self._http = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            verify=transport is None and _tls(self._urls, ca_file, identity),
            transport=None if transport is None else _Lent(transport),
            # Only connecting has a timeout of its own; everything else is bounded by the deadline of the attempt.
            timeout=httpx.Timeout(None, connect=connect_timeout_seconds),
            limits=httpx.Limits(
                max_connections=MAX_CONNECTIONS,
                max_keepalive_connections=_MAX_IDLE_CONNECTIONS,
                keepalive_expiry=_KEEPALIVE_SECONDS,
            ),
        )

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: Outgoing | None = None,
        fields: Mapping[str, Any] | None = None,
        repeatable: bool,
        retry_seconds: float,
        deadline_seconds: float,
        attempt_seconds: float | None = None,
        open_body: Callable[[], BodyWriter] | None = None,
    ) -> Answer:
        """One call to whichever broadcaster takes it.

        `query` comes percent-encoded, without "?"; `fields` is sent as JSON. No new attempt starts after
        `retry_seconds`, nothing lasts longer than `deadline_seconds`; one attempt lasts at most `attempt_seconds`,
        by default its share of the time that is left, so that a broadcaster that hangs leaves time for the others.
        What is answered may be large when `open_body` says where it goes; it is asked anew for each attempt.
        Raises the error that a broadcaster's problem document stands for, or `BroadcastersUnavailable`; what
        `bearer_headers` raises when there is no token. What is beyond
        a quota (`QuotaExceeded`) is tried again only where the broadcaster says when.
        """
        if not self._urls:
            raise ConfigurationError("no broadcaster is known")
        sent_headers = dict(headers or {})
        if fields is not None:
            body = Body.of(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode())
            sent_headers["content-type"] = "application/json"
        loop = asyncio.get_running_loop()
        start = loop.time()
        no_attempt_from = start + min(retry_seconds, deadline_seconds)
        answers: dict[str, str] = {}
        hopeless: set[str] = set()
        maybe_processed = False
        retry_after: float | None = None
        urls = self._order(start)
        tried = 0
        while True:
            url = urls[tried % len(urls)]
            proof: dict[str, str] | None = None
            if self._bearer_token is not None:
                proof = await bearer_headers(self._bearer_token, seconds=start + deadline_seconds - loop.time())
            left = start + deadline_seconds - loop.time()
            left = min(left, attempt_seconds or left / (len(urls) - tried % len(urls)))
            request: _Request | None = None
            exceeded: QuotaExceeded | None = None
            try:
                async with asyncio.timeout(left), self._turn:
                    request = _Request(
                        self._http, proof or self._credentials, method, url, path, query, sent_headers, body
                    )
                    answer = await request.send(open_body)
            except (TimeoutError, httpx.TransportError, httpx.StreamError) as error:
                answers[url] = "was not asked: too many calls were under way"
                if request:
                    answers[url] = what_failed(error, left, url, shows_certificate=self._shows_certificate)
                (hopeless.add if is_hopeless(error) else hopeless.discard)(url)
                ambiguous = request is not None and request.handed_over
                if request and isinstance(error, (TimeoutError, httpx.ConnectError, httpx.ConnectTimeout)):
                    self._avoided_until[url] = loop.time() + _AVOID_SECONDS
            else:
                self._avoided_until.pop(url, None)
                hopeless.discard(url)
                outcome = verdict(answer.status)
                if outcome is Verdict.ACCEPTED:
                    return answer
                exceeded = _exceeded(method, path, answer)
                if outcome is not Verdict.AGAIN or (exceeded is not None and exceeded.retry_after_seconds is None):
                    raise exceeded or _refusal(method, path, answer)
                answers[url] = _what_it_said(answer)
                retry_after = retry_after_seconds(answer.headers.get("retry-after"), time.time())
                ambiguous = answer.status not in (429, 503)
            maybe_processed = maybe_processed or ambiguous
            tried += 1
            pause = _pause(tried // len(urls), retry_after) if tried % len(urls) == 0 else 0.0
            at_fault = hopeless.issuperset(urls)
            if loop.time() + pause < no_attempt_from and (repeatable or not ambiguous) and not at_fault:
                logger.info("%s %s: %s %s; trying again", method, path, url, answers[url])
                await asyncio.sleep(pause)
                if loop.time() < no_attempt_from:
                    continue
            if exceeded is not None and not maybe_processed:
                raise exceeded
            raise _unavailable(
                method,
                path,
                answers,
                loop.time() - start,
                ambiguous=maybe_processed,
                retry_after=retry_after,
                at_fault=at_fault,
            )

    def _order(self, now: float) -> list[str]:
        """All broadcasters from a random one on, those that could not be reached lately last."""
        first = random.randrange(len(self._urls))  # noqa: S311 - spreads load, protects nothing
        urls = [*self._urls[first:], *self._urls[:first]]
        return sorted(urls, key=lambda url: self._avoided_until.get(url, 0.0) > now)

    async def __aenter__(self) -> Broadcasters:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()


class _Lent(httpx.AsyncBaseTransport):
    """A transport of somebody else: not closed with the client that uses it."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._transport.handle_async_request(request)


class _Request:
    """One attempt. `proof` is what to sign with, or the headers that prove it. `handed_over` tells whether the
    broadcaster may have the whole request."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        proof: Credentials | Mapping[str, str],
        method: str,
        url: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body: Outgoing | None,
    ) -> None:
        self._http = http
        self._url = url
        self._body = body
        self.handed_over = False
        target = httpx.URL(f"{url}{path}?{query}" if query else f"{url}{path}")
        # What httpx really sends is what must be signed.
        sent_path, _, sent_query = target.raw_path.decode("ascii").partition("?")
        signed = {name.lower(): value for name, value in headers.items()}
        if body is not None:
            signed["content-digest"] = content_digest(body.sha256)
        if isinstance(proof, Credentials):
            proof = sign_request(
                proof,
                method=method,
                path=sent_path,
                query=sent_query,
                headers=signed,
                now=int(time.time()),
                nonce=secrets.token_urlsafe(16),
            )
        length = {} if body is None else {"content-length": str(body.size)}
        self._request = http.build_request(
            method,
            target,
            headers={"accept-encoding": "identity", "user-agent": "httppubsubclient", **signed, **length, **proof},
            content=None if body is None else self._chunks(body),
        )

    async def send(self, open_body: Callable[[], BodyWriter] | None) -> Answer:
        self.handed_over = False
        if self._body is None:
            # There is no telling when a request without a body is complete at the other side; only a connection
            # that never came about is certain.
            self.handed_over = True
        try:
            response = await self._http.send(self._request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
            self.handed_over = False
            raise
        try:
            if open_body is not None and response.status_code == 200:
                with open_body() as writer:
                    async for chunk in response.aiter_raw():
                        await writer.write(chunk)
                    return Answer(self._url, 200, response.headers, b"", await writer.finish())
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise PubSubError(f"{self._url} answered with more than {MAX_ANSWER_BYTES} bytes")
        finally:
            await response.aclose()
        return Answer(self._url, response.status_code, response.headers, bytes(content))

    async def _chunks(self, body: Outgoing) -> AsyncIterator[bytes]:
        async for chunk in body.chunks():
            yield chunk
        # The transport asks for more only after it has written what it got.
        self.handed_over = True


def parse_subscriptions(answer: Answer) -> list[Subscription]:
    """The whole set of a URL as a broadcaster answered it. Raises `PubSubError` that names the broadcaster."""
    entries = answer.fields().get("subscriptions")
    if not isinstance(entries, list):
        raise PubSubError(f"{answer.url} answered without the list of subscriptions")
    return [parse_subscription(answer, entry) for entry in entries]


def parse_subscription(answer: Answer, fields: Any) -> Subscription:
    """A subscription as a broadcaster answered it. Raises `PubSubError` that names the broadcaster."""
    try:
        return Subscription.from_json(fields)
    except (InvalidRequest, AttributeError, TypeError) as error:
        # Not InvalidRequest any more: it is not our request that was refused.
        raise PubSubError(f"{answer.url} answered {answer.status} with what is no subscription: {error}") from None


def _tls(urls: Sequence[str], ca_file: str | None, identity: Identity | None) -> ssl.SSLContext | bool:
    if not any(url.startswith("https:") for url in urls):
        return False  # nothing to verify, and loading the certificates takes long
    return client_context(ca_file=ca_file, ca_setting="broadcaster_ca_file", identity=identity)


def _pause(rounds: int, retry_after: float | None) -> float:
    """Seconds between one round over all broadcasters and the next."""
    pause = backoff_delay(
        rounds,
        random.random(),  # noqa: S311 - spreads load, protects nothing
        base_seconds=_BASE_PAUSE_SECONDS,
        max_seconds=_MAX_PAUSE_SECONDS,
    )
    return max(pause, retry_after or 0.0)


def _what_it_said(answer: Answer) -> str:
    return f"answered {answer.status}: {_problem_of(answer)[1]}"


def _problem_of(answer: Answer) -> tuple[object, str]:
    """`(code, detail)` of an answer that is not 2xx; the code is None when it is no problem document."""
    try:
        fields = json.loads(answer.content)
    except ValueError:
        fields = None
    if isinstance(fields, dict) and isinstance(fields.get("detail"), str):
        return fields.get("code"), fields["detail"][:2000]
    return None, "(no explanation)"


def _refusal(method: str, path: str, answer: Answer) -> PubSubError:
    code, detail = _problem_of(answer)
    if code is None:
        if 300 <= answer.status < 400:
            hint = "redirects are not followed: give the broadcaster's own URL"
        elif answer.status in (404, 405):
            hint = "is that the URL of a broadcaster, with the prefix under which it is mounted?"
        else:
            hint = detail
        return PubSubError(f"{answer.url} answered {answer.status} to {method} {path}: {hint}")
    text = f"{answer.url} answered {answer.status} to {method} {path}: {detail}"
    error = from_problem(code, text)
    if isinstance(error, PreconditionFailed):
        error.etag = answer.headers.get("etag")
    return error


def _exceeded(method: str, path: str, answer: Answer) -> QuotaExceeded | None:
    """The error of an answer that says that a quota is used up."""
    if answer.status != 429:
        return None
    error = _refusal(method, path, answer)
    if not isinstance(error, QuotaExceeded):
        return None
    error.retry_after_seconds = retry_after_seconds(answer.headers.get("retry-after"), time.time())
    return error


def _unavailable(
    method: str,
    path: str,
    answers: Mapping[str, str],
    seconds: float,
    *,
    ambiguous: bool,
    retry_after: float | None,
    at_fault: bool,
) -> BroadcastersUnavailable:
    told = "; ".join(f"{url} {answer}" for url, answer in answers.items())
    if ambiguous:
        advice = "It may have been processed nevertheless; with an idempotency_key it can be repeated safely."
        if method != "POST" or not path.endswith("/notify"):
            advice = "It may have been processed nevertheless; repeating it is safe."
    elif at_fault:
        advice = "It had no effect."
    else:
        advice = "It had no effect. Check that a broadcaster runs at the URLs in the secrets file or `broadcasters`."
    return BroadcastersUnavailable(
        f"no broadcaster took {method} {path} within {seconds:.3g} s: {told}. {advice}",
        answers=answers,
        maybe_processed=ambiguous,
        retry_after_seconds=retry_after,
        settings_at_fault=at_fault,
    )
