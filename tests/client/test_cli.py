"""The client's commands where they need no broadcaster: usage, sign and verify. The rest is in tests/e2e."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import time
from pathlib import Path

import pytest

from httppubsubclient.cli import main
from httppubsubclient.protocol.credentials import Credentials, Key, sign_delivery
from httppubsubclient.protocol.messages import Notification, delivery_headers
from httppubsubclient.protocol.signatures import content_digest

SECRET = b"0123456789abcdef0123456789abcdef"
KEYS = {"keys": [{"id": "k1", "secret": base64.b64encode(SECRET).decode()}], "type": "hmac"}
TO_SUBSCRIBERS = Credentials("hmac", (Key("k1", SECRET),))


@pytest.fixture
def secrets(tmp_path: Path) -> str:
    path = tmp_path / "subscriber-secrets.json"
    document = {
        "version": 1,
        "broadcasters": ["http://127.0.0.1:1"],
        "to_broadcasters": KEYS,
        "to_subscribers": KEYS,
    }
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    return str(path)


def captured_delivery(path: Path, *, body: bytes = b"hello", changed: dict[str, str] | None = None) -> str:
    """A delivery as it crossed the wire."""
    now = int(time.time())
    sha256 = hashlib.sha256(b"hello").digest()
    notification = Notification("msg_1", b"foo/bar", "text/plain", sha256, 5)
    headers = delivery_headers(notification, "sub_1", attempt=1, timestamp=now, fragment=None)
    headers["content-digest"] = content_digest(sha256)
    headers |= sign_delivery(TO_SUBSCRIBERS, headers=headers, now=now, nonce="0123456789abcdef")
    headers |= changed or {}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    path.write_bytes(f"POST /v1/receive HTTP/1.1\r\n{head}\r\n".encode() + body)
    return str(path)


def test_a_good_delivery_is_explained_as_good(secrets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captured = captured_delivery(tmp_path / "request")
    assert main(["verify", "--secrets", secrets, captured]) == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out
    assert "k1" in out


@pytest.mark.parametrize(
    ("body", "changed", "options"),
    [
        (b"other", {}, []),
        (b"hello", {"pubsub-topic": "other"}, []),
        (b"hello", {"webhook-id": "msg_2"}, []),
        (b"hello", {"signature": "sig1=:AAAA:"}, []),
        (b"hello", {"signature-input": ""}, []),
        (b"hello", {}, ["--at", "1000000000"]),
    ],
)
def test_what_does_not_hold_is_named_and_is_exit_status_1(
    secrets: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    body: bytes,
    changed: dict[str, str],
    options: list[str],
) -> None:
    captured = captured_delivery(tmp_path / "request", body=body, changed=changed)
    assert main(["verify", "--secrets", secrets, captured, *options]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert base64.b64encode(SECRET).decode() not in out


def test_what_sign_prints_verify_takes(secrets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://127.0.0.1:3003/pubsub/v1/notify?topic=a%20b"
    body = tmp_path / "body"
    body.write_bytes(b"hello")
    assert main(["sign", "--secrets", secrets, url, "--file", str(body), "--idempotency-key", "k-1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    headers = [argument for line in lines for argument in ("--header", line)]
    arguments = ["verify", "--secrets", secrets, "--url", url, "--body", str(body), *headers]
    assert main(arguments) == 0, capsys.readouterr().out
    body.write_bytes(b"other")
    assert main(arguments) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["notify"],
        ["notify", "topic"],
        ["notify", "topic", "--data", "a", "--file", "b"],
        ["listen"],
        ["listen", "foo/*", "--bind", "nowhere"],
        ["unknown"],
    ],
)
def test_wrong_usage_is_exit_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "--secrets", "SECRETS", "/does/not/exist"],
        ["notify", "--secrets", "/does/not/exist", "t", "--data", "x"],
        ["notify", "--secrets", "SECRETS", "t", "--file", "/does/not/exist"],
        ["notify", "--secrets", "SECRETS", "--broadcaster", "ftp://x", "t", "--data", "x"],
        ["listen", "--secrets", "SECRETS", "["],
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_status_1(
    arguments: list[str], secrets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([secrets if argument == "SECRETS" else argument for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("httppubsubclient: ")
    assert len(error.splitlines()) == 1


def test_a_file_that_is_no_request_is_refused(secrets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "request"
    for content in (b"", b"hello", b"\x00\xff\r\n\r\n", b"POST / HTTP/1.1\r\nno colon\r\n\r\n"):
        path.write_bytes(content)
        assert main(["verify", "--secrets", secrets, str(path)]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_commands_start_without_a_web_framework() -> None:
    import subprocess

    program = (
        "import sys; from httppubsubclient.cli import main\n"
        "try: main(['--version'])\nexcept SystemExit: pass\n"
        "print({'fastapi', 'uvicorn', 'httpx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
