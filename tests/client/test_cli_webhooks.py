"""`httppubsubclient verify` of a delivery to a subscription with a secret of its own."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest

from httppubsubclient.cli import main
from httppubsubclient.protocol.explanations import explain_webhook
from httppubsubclient.protocol.standard_webhooks import PrivateKey, SharedSecret
from tests.client.conftest import webhook_signature

SHARED, OTHER, PRIVATE = SharedSecret(bytes(range(32))), SharedSecret(bytes(range(1, 33))), PrivateKey(bytes(range(32)))


def captured(path: Path, *, body: bytes = b"hello", key: Any = SHARED, **changed: str | None) -> str:
    now = int(time.time())
    headers: dict[str, str | None] = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(now),
        "webhook-signature": webhook_signature(key.text(), "msg_1", now, b"hello"),
        "pubsub-subscription": "sub_1",
    }
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value is not None)
    path.write_bytes(f"POST /v1/receive HTTP/1.1\r\n{head}\r\n".encode() + body)
    return str(path)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"{OTHER.text()}\n\n{SHARED.text()}\n{PRIVATE.public().text()}\n")
    return path


@pytest.mark.parametrize("key", [SHARED, PRIVATE])
def test_a_good_webhook_is_explained_as_good(
    tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str], key: Any
) -> None:
    assert main(["verify", captured(tmp_path / "request", key=key), "--webhook-keys", str(keys)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("ok   result: accepted")
    assert f"key {2 if key is SHARED else 3}: " in out


def test_the_private_key_does_as_well_and_may_come_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(PRIVATE.text()))
    assert main(["verify", captured(tmp_path / "request", key=PRIVATE), "--webhook-keys", "-"]) == 0
    assert PRIVATE.text()[5:40] not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"body": b"hello\n"}, "but for the newline at its end: remove it"),
        ({"body": b"hello\r\n"}, "but for the CR LF at its end: remove it"),
        ({"body": b"help"}, "no signature holds"),
        ({"webhook_id": "msg_2"}, "no signature holds"),
        ({"webhook_id": "a.b"}, "webhook-id is 1 to 64"),
        ({"webhook_timestamp": "1000000000"}, "s are tolerated"),
        ({"webhook_timestamp": "1e9"}, "10 to 12 digits"),
        ({"webhook_timestamp": None}, "webhook-timestamp is missing"),
        ({"webhook_signature": ""}, "webhook-signature is missing"),
        ({"webhook_signature": "v1,x"}, "webhook-signature is 'v1,"),
        ({"webhook_signature": "v2,AAAA"}, "none of a version known here"),
        ({"svix_id": "msg_1"}, "both webhook-id and svix-id"),
        ({"key": SharedSecret(bytes(range(2, 34)))}, "no signature holds"),
    ],
)
def test_what_does_not_hold_is_named(
    tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str], changed: Any, told: str
) -> None:
    assert main(["verify", captured(tmp_path / "request", **changed), "--webhook-keys", str(keys)]) == 1
    out = capsys.readouterr().out
    assert told in out
    assert out.splitlines()[-1].startswith("FAIL result: refused")
    assert not any(key.text()[6:] in out for key in (SHARED, OTHER))


def test_it_can_be_judged_as_of_its_own_moment(tmp_path: Path, keys: Path) -> None:
    now = 1_700_000_000
    signature = webhook_signature(SHARED.text(), "msg_1", now, b"hello")
    path = captured(tmp_path / "request", webhook_timestamp=str(now), webhook_signature=signature)
    assert main(["verify", path, "--webhook-keys", str(keys)]) == 1
    assert main(["verify", path, "--webhook-keys", str(keys), "--at", str(now + 299)]) == 0
    assert main(["verify", path, "--webhook-keys", str(keys), "--at", str(now - 299)]) == 0
    assert main(["verify", path, "--webhook-keys", str(keys), "--at", str(now - 301)]) == 1


def test_without_a_body_or_a_key_it_cannot_be_told(
    tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(captured(tmp_path / "request"))
    headers = [
        argument
        for line in path.read_bytes().partition(b"\r\n\r\n")[0].decode().splitlines()[1:]
        for argument in ("--header", line)
    ]
    assert main(["verify", *headers, "--webhook-keys", str(keys)]) == 1
    assert "covers the body, which is not there" in capsys.readouterr().out
    empty = tmp_path / "none"
    empty.write_text("\n")
    assert main(["verify", str(path), "--webhook-keys", str(empty)]) == 1
    assert "no key to check it with" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["verify", str(path)])
    assert caught.value.code == 2
    assert "--webhook-keys" in capsys.readouterr().err


def test_a_file_that_holds_no_keys_is_told_without_being_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys"
    path.write_text("whsec_c2VjcmV0\n")
    assert main(["verify", captured(tmp_path / "request"), "--webhook-keys", str(path)]) == 1
    err = capsys.readouterr().err
    assert "24 to 64 bytes" in err
    assert "c2VjcmV0" not in err


@pytest.mark.parametrize("timestamp", ["", "x", "9" * 12, "9" * 13, "9" * 5000, "-1", "\u0661"])
def test_no_header_makes_it_fail(timestamp: str) -> None:
    headers = {"webhook-id": "m", "webhook-timestamp": timestamp, "webhook-signature": "v1,AAAA"}
    assert not explain_webhook([SHARED], headers, b"", now=0.0, tolerance_seconds=300)[-1].ok
