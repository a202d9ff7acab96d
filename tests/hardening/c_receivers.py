"""C. What receivers do while they are delivered to: nothing of it costs anybody else anything."""

from __future__ import annotations

import asyncio
import ssl
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.receivers import FORGED, Receiver
from tests.hardening.support import Desk, OpenDesk, OpenReceivers, until
from tests.server.peers import Authority

HASTY: dict[str, Any] = {"attempt_timeout_seconds": 0.5, "notify_timeout_seconds": 1.0}


def url_of(receiver: Receiver, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{receiver.port}/hook"


async def tried(desk: Desk, receiver: Receiver, content: bytes = b"x") -> dict[str, Any]:
    """One durable message for one receiver: what was told of its first attempt."""
    made = await desk.made(url_of(receiver), delivery="durable", retry_schedule_seconds=[0])
    counts = await desk.notify(content)
    deliveries = await desk.settled(counts["message_id"])
    [delivery] = [one for one in deliveries if one["subscription_id"] == made["id"]]
    return delivery


async def failure(desk: Desk, receiver: Receiver, content: bytes = b"x") -> dict[str, Any]:
    """The same, for one that fails."""
    delivery = await tried(desk, receiver, content)
    assert delivery["state"] == "dead", delivery
    [attempt] = delivery["failed_attempts"]
    result: dict[str, Any] = attempt
    return result


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_26_a_redirect_is_a_failure_and_its_target_is_never_contacted(
    open_desk: OpenDesk, hostile: OpenReceivers, status: int
) -> None:
    desk = await open_desk()
    [receiver] = await hostile("redirect" if status == 307 else f"redirect-{status}")
    attempt = await failure(desk, receiver)
    assert attempt["status"] == status
    counts = await desk.notify(topic="u")
    await desk.made(url_of(receiver), topic="u")
    counts = await desk.notify(topic="u")
    assert (counts["matched"], counts["failed"]) == (1, 1)
    assert len(receiver.requests) == 2, "best effort does not try it again either"
    assert receiver.contacts == 0


@pytest.mark.parametrize("temper", ["drip", "drip-read", "interim", "hang", "deaf", "endless-line"])
async def test_27_who_drips_is_cut_off_at_the_deadline(
    open_desk: OpenDesk, hostile: OpenReceivers, temper: str
) -> None:
    desk = await open_desk(**HASTY)
    [slow, good] = await hostile(temper, "accept")
    await desk.made(url_of(good))
    # More than the kernel takes for somebody who does not read.
    attempt = await failure(desk, slow, bytes(8_000_000) if temper in ("drip-read", "deaf") else b"x")
    assert attempt["status"] is None
    assert attempt["error"] in ("timeout", "bad_response", "invalid_response", "bad_answer"), attempt
    assert len(good.requests) == 1, "the others have it"


async def test_27_the_head_decides_and_a_body_that_drips_holds_nobody_up(
    open_desk: OpenDesk, hostile: OpenReceivers
) -> None:
    desk = await open_desk(**HASTY)
    [receiver] = await hostile("drip-body")
    attempt = await failure(desk, receiver)
    assert attempt["status"] == 500


@pytest.mark.parametrize("temper", ["endless", "bomb", "gzip-bomb"])
async def test_28_a_2xx_is_a_success_whatever_comes_behind_it(
    open_desk: OpenDesk, hostile: OpenReceivers, temper: str
) -> None:
    desk = await open_desk()
    [receiver] = await hostile(temper)
    await desk.made(url_of(receiver))
    await desk.notify()  # what is made at the first one, is made
    tracemalloc.start()
    try:
        assert (await desk.notify())["notified"] == 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Both sides are in this process; the receiver's own buffers are the most of it.
    assert peak < 40_000_000
    assert receiver.requests[0]["headers"]["accept-encoding"] == "identity"


@pytest.mark.parametrize("temper", ["endless-head", "endless-error"])
async def test_28_a_head_without_end_is_no_answer_and_of_an_error_a_beginning_is_kept(
    open_desk: OpenDesk, hostile: OpenReceivers, temper: str
) -> None:
    desk = await open_desk(**HASTY)
    [receiver] = await hostile(temper)
    attempt = await failure(desk, receiver)
    if temper == "endless-error":
        assert attempt["status"] == 500
        assert len(attempt["answer"]) <= 1024
    else:
        assert attempt["status"] is None


@pytest.mark.parametrize("temper", ["reset-at-once", "reset", "reset-after-body", "reset-in-head", "close-after-body"])
async def test_30_a_connection_that_ends_before_the_head_is_tried_again_with_the_same_id(
    open_desk: OpenDesk, hostile: OpenReceivers, temper: str
) -> None:
    desk = await open_desk()
    [receiver] = await hostile(temper)
    await desk.made(url_of(receiver), delivery="durable", retry_schedule_seconds=[0, 0.001, 0.001])
    counts = await desk.notify()
    [delivery] = await desk.settled(counts["message_id"])
    assert (delivery["state"], delivery["attempts"]) == ("dead", 3)
    assert receiver.connections >= 3
    assert {request["headers"]["webhook-id"] for request in receiver.requests} <= {counts["message_id"]}
    attempts = [request["headers"]["pubsub-attempt"] for request in receiver.requests]
    assert attempts == [str(number + 1) for number in range(len(attempts))]


async def test_30_after_the_head_of_a_2xx_it_is_delivered(open_desk: OpenDesk, hostile: OpenReceivers) -> None:
    desk = await open_desk()
    receivers = await hostile("reset-after-head", "early")
    for receiver in receivers:
        await desk.made(url_of(receiver))
    assert (await desk.notify())["notified"] == 2
    assert [receiver.connections for receiver in receivers] == [1, 1]


@pytest.mark.parametrize(
    "temper",
    [
        "garbage",
        "two-lengths",
        "two-framings",
        "negative-length",
        "bare-cr",
        "escape",
        "folded",
        "http-0.9",
        "http-2",
        "switching",
    ],
)
async def test_30_what_two_programs_would_read_differently_is_no_answer(
    open_desk: OpenDesk, hostile: OpenReceivers, temper: str
) -> None:
    desk = await open_desk(**HASTY)
    [receiver] = await hostile(temper)
    attempt = await failure(desk, receiver)
    assert attempt["status"] is None
    assert attempt["error"] != "timeout", "it is seen at once"


async def test_30_an_answer_that_came_before_its_request_answers_nothing(
    open_desk: OpenDesk, hostile: OpenReceivers
) -> None:
    desk = await open_desk()
    [receiver] = await hostile("ahead")
    await desk.made(url_of(receiver))
    for _ in range(3):
        assert (await desk.notify())["notified"] == 0, "a 200 that was sent ahead is of no use to anybody"
    assert receiver.connections == 3


async def test_31_a_410_ends_the_subscription_and_what_it_is_owed(open_desk: OpenDesk, hostile: OpenReceivers) -> None:
    desk = await open_desk()
    [receiver] = await hostile("gone")
    await desk.made(url_of(receiver), delivery="durable")
    await desk.made(url_of(receiver), topic="u")
    counts = await desk.notify()
    assert (counts["matched"], counts["failed"]) == (1, 1), "the publisher is told"
    [delivery] = await desk.settled(counts["message_id"])
    assert (delivery["state"], delivery["reason"]) == ("dead", "gone")
    assert [one["topic"] for one in await desk.listed()] == ["u"], "another subscription of the same URL stays"


async def test_33_a_body_is_kept_inert(
    open_desk: OpenDesk, hostile: OpenReceivers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    desk = await open_desk()
    [receiver] = await hostile("ansi")
    attempt = await failure(desk, receiver)
    assert attempt["status"] == 500
    await desk.made(url_of(receiver), topic="u")
    await desk.notify(topic="u")
    told = caplog.text + str(attempt)
    for character in set(FORGED) - {"\n", "\r"}:
        assert character.isprintable() or character not in told, ascii(character)
    assert not any(line.startswith("2026-11-21 CRITICAL") for line in caplog.text.splitlines())
    answer = await desk.api.get("/v1/deliveries")
    assert answer.headers["content-type"] == "application/json"


async def test_33_what_was_published_is_given_back_so_that_no_browser_runs_it(
    open_desk: OpenDesk, hostile: OpenReceivers
) -> None:
    desk = await open_desk()
    [receiver] = await hostile("error")
    await desk.made(url_of(receiver), delivery="durable")
    counts = await desk.notify(b"<script>alert(1)</script>", headers={"content-type": "text/html"})
    answer = await desk.api.get(f"/v1/messages/{counts['message_id']}/body")
    assert answer.content == b"<script>alert(1)</script>"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (
        "sandbox" in answer.headers["content-security-policy"] or "'none'" in answer.headers["content-security-policy"]
    )


TLS_TROUBLE = [
    "expired",
    "self-signed",
    "another authority",
    "wrong address",
    "wrong name",
    "old version",
    "plain http",
]


@pytest.mark.parametrize("trouble", TLS_TROUBLE)
async def test_34_with_tls_that_is_not_right_nothing_is_sent(open_desk: OpenDesk, tmp_path: Path, trouble: str) -> None:
    authority = Authority(tmp_path)
    trusted = authority.file
    name = {"wrong address": "127.0.0.2", "wrong name": "callback.example"}.get(trouble, "127.0.0.1")
    if trouble == "another authority":
        other = tmp_path / "other"
        other.mkdir()
        trusted = Authority(other).file
    context: ssl.SSLContext | None = authority.server(
        name, self_signed=trouble == "self-signed", expired=trouble == "expired"
    )
    assert context is not None
    if trouble == "old version":
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
    read = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        read.extend(await reader.read(65536))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=None if trouble == "plain http" else context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        desk = await open_desk(callback_ca_file=trusted, attempt_timeout_seconds=3)
        await desk.made(f"https://127.0.0.1:{port}/", delivery="durable", retry_schedule_seconds=[0])
        counts = await desk.notify(b"a body that nobody may see")
        [delivery] = await desk.settled(counts["message_id"])
        assert delivery["state"] == "dead"
        # Who does not speak TLS as new as ours just hangs up; in no case was the request written.
        [attempt] = delivery["failed_attempts"]
        reason, _, why = attempt["error"].partition(": ")
        assert reason in ("tls_error", "connect_error")
        assert trouble in ("plain http", "old version") or (reason == "tls_error" and why)
        assert trouble != "expired" or why == "certificate has expired"
    assert b"POST" not in read
    assert b"nobody may see" not in read


async def test_34_there_is_no_setting_that_turns_it_off(open_desk: OpenDesk) -> None:
    from httppubsubserver.config import ServerConfig

    names = " ".join(ServerConfig.model_fields)
    for word in ("insecure", "verify_tls", "verify_ssl", "skip_verify", "trust_all"):
        assert word not in names


async def test_35_cookies_and_challenges_are_passed_over(open_desk: OpenDesk, hostile: OpenReceivers) -> None:
    desk = await open_desk()
    receivers = await hostile("cookies", "challenge")
    for receiver in receivers:
        await desk.made(url_of(receiver))
    for _ in range(2):
        counts = await desk.notify()
        assert (counts["notified"], counts["failed"]) == (1, 1)
    for receiver in receivers:
        assert len(receiver.requests) == 2, "a challenge is not answered"
        for request in receiver.requests:
            assert not {"cookie", "authorization", "proxy-authorization"} & set(request["headers"])
            assert receiver.port == int(request["headers"]["host"].rpartition(":")[2]), "and Alt-Svc not followed"


async def test_37_an_endpoint_that_flaps_is_neither_stopped_nor_forgotten(
    open_desk: OpenDesk, hostile: OpenReceivers
) -> None:
    desk = await open_desk()
    [receiver] = await hostile("flapping")
    made = await desk.made(url_of(receiver), delivery="durable", retry_schedule_seconds=[0, *[0.001] * 30])
    at_once = {"prefer": "respond-async"}
    ids = [(await desk.notify(b"%d" % number, headers=at_once))["message_id"] for number in range(10)]
    states = [delivery["state"] for message_id in ids for delivery in await desk.settled(message_id)]
    assert states == ["delivered"] * 10
    assert [one["id"] for one in await desk.listed()] == [made["id"]]
    assert len(receiver.requests) >= 19, "every other one failed"


async def test_c_of_all_tempers_at_once_the_good_ones_have_it(open_desk: OpenDesk, hostile: OpenReceivers) -> None:
    from tests.e2e.receivers import TEMPERS

    desk = await open_desk(**HASTY)
    receivers = await hostile(*TEMPERS)
    for receiver in receivers:
        await desk.made(url_of(receiver))
    counts = await desk.notify(b"x" * 1000)
    assert counts["matched"] == len(TEMPERS)
    assert counts["matched"] == counts["notified"] + counts["failed"]
    [good] = [receiver for receiver in receivers if receiver.temper == "accept"]
    await until(lambda: good.requests)
