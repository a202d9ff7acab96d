"""The client's commands where they need no broadcaster, or only one that counts: usage, standard input and output,
sign and verify. The rest is in tests/e2e."""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from httppubsubclient import cli_listen
from httppubsubclient.cli import main
from httppubsubclient.protocol.credentials import Credentials, Key, sign_delivery, sign_request
from httppubsubclient.protocol.messages import Notification, delivery_headers
from httppubsubclient.protocol.signatures import content_digest

DEADLINE_SECONDS = 30
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


class Taking:
    """A broadcaster that takes whatever is published, as far as a publisher can tell."""

    def __init__(self, failed: int) -> None:
        self.bodies: list[bytes] = []
        counts = {"message_id": "msg_1", "matched": failed, "notified": 0, "pending": 0, "failed": failed}
        outer = self

        class Route(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                answer = json.dumps(counts).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Route)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextlib.contextmanager
def taking(*, failed: int = 0) -> Iterator[Taking]:
    broadcaster = Taking(failed)
    thread = threading.Thread(target=broadcaster.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield broadcaster
    finally:
        broadcaster.server.shutdown()
        thread.join()
        broadcaster.server.server_close()


@contextlib.contextmanager
def command(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process; killed at the end if it is still there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HTTPPUBSUB_")}
    child = subprocess.Popen(
        [sys.executable, "-m", "httppubsubclient", *arguments],
        env=environment,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


class Terminal(NamedTuple):
    """Both sides, as descriptors."""

    ours: int
    its: int


@contextlib.contextmanager
def in_a_terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    """The command with a terminal of its own for everything."""
    ours, its = pty.openpty()
    try:
        with command(
            *arguments,
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        ) as child:
            yield child, Terminal(ours, its)
    finally:
        os.close(ours)
        os.close(its)


def type_and_wait_until_read(terminal: Terminal, text: bytes) -> None:
    os.write(terminal.ours, text)
    read_until(terminal, text.replace(b"\n", b"\r\n"))  # its echo: now the terminal has it
    deadline = time.monotonic() + DEADLINE_SECONDS
    while struct.unpack("i", fcntl.ioctl(terminal.its, termios.FIONREAD, b"\0" * 4)) != (0,):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_until(terminal: Terminal, text: bytes) -> None:
    shown = b""
    while text not in shown:
        shown += os.read(terminal.ours, 4096)


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
        ["verify"],
    ],
)
def test_wrong_usage_is_exit_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["lisen"], "there is no command 'lisen'; did you mean 'listen'?"),
        (["serve"], "there is no command 'serve'"),
        (["listen", "a", "--jsn"], "there is no '--jsn' here; did you mean '--json'?"),
        (["notify", "a"], "say what to publish: --data TEXT, --file FILE, or - for standard input"),
        (["notify", "a", "hello"], "'hello' is neither topic nor option; the message is given as --data TEXT"),
        (["notify", "a", "-", "--data", "x"], "say once what to publish"),
        (["notify", "a", "--data", "x", "--json", "-"], "say once what to publish"),
        (["listen", "a", "--count", "0"], "a whole number from 1; got '0'"),
        (["listen", "a", "--bind", "0.0.0.0:3012"], "--host http://ADDRESS:3012"),
        (["listen", "a", "--bind", "[::]:0"], "--host http://ADDRESS:PORT"),
        (["listen", "a", "--bind", ":3012"], "--host http://ADDRESS:3012"),
        (["listen", "a", "--durable", "w"], "--durable needs a port of its own"),
        (["listen", "a", "--ordered"], "--ordered goes with --durable NAME"),
        (["listen", "a", "--ack", "processed"], "--ack goes with --durable NAME"),
        (["listen", "--forget"], "--forget goes with --durable NAME"),
        (["listen", "a", "--remember", "seen"], "--remember goes with --durable NAME"),
        (["listen", "a", "--bind", "127.0.0.1:3012", "--ack", "never"], "invalid choice: 'never'"),
        (["listen", "--own-secret", "generate-v1a", "a"], "--own-secret has no value"),
        (["listen", "a", "--own-secret", "--own-secret-v1a"], "not allowed with argument --own-secret"),
        (["notify", "a", "--data", "x", "--deliver-at", "soon"], "seconds from now, or a moment like"),
        (["notify", "a", "--data", "x", "--expires", "2026-11-21T02:11:00"], "with its offset"),
    ],
)
def test_wrong_usage_says_what_was_meant(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "globs", "secret"),
    [
        (["orders/*"], ["orders/*"], None),
        (["--own-secret", "orders/*"], ["orders/*"], "generate"),
        (["orders/*", "--own-secret"], ["orders/*"], "generate"),
        (["--own-secret-v1a", "orders/*", "foo"], ["orders/*", "foo"], "generate-v1a"),
    ],
)
def test_a_pattern_is_a_pattern_wherever_it_stands(
    arguments: list[str], globs: list[str], secret: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[argparse.Namespace] = []

    def listen_on(options: argparse.Namespace) -> Coroutine[Any, Any, int]:
        taken.append(options)
        return asyncio.sleep(0, 0)

    monkeypatch.setattr(cli_listen, "_listen_on", listen_on)
    assert main(["listen", *arguments]) == 0
    assert [(options.globs, options.own_secret) for options in taken] == [(globs, secret)]


def test_the_help_shows_how_a_message_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["notify", "--help"])
    text = capsys.readouterr().out
    assert "usage: httppubsubclient notify TOPIC (--data TEXT | --file FILE | -) [options]" in text
    assert "Exit status 0" in text


@pytest.mark.parametrize("name", ["HTTPPUBSUB_CLIENT_SECRET", "HTTPPUBSUB_CLIENT_SECRETS_FILE"])
def test_an_unknown_variable_is_refused_with_the_nearest(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "x")
    assert main(["notify", "t", "--data", "x"]) == 1
    assert f"no variable '{name}'; did you mean 'HTTPPUBSUB_CLIENT_SECRETS'?" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["notify", "t", "--data", "x", "--secrets", "/no/such"], "copy subscriber-secrets.json from where"),
        (["notify", "t", "--data", "x", "--timeout", "0.1"], "--broadcaster URL, or the secrets file, says where"),
        (["notify", "t", "--data", "x", "--broadcaster", "127.0.0.1:1"], "a broadcaster's URL begins with http://"),
        (["notify", "t", "--file", "/no/such"], "there is no file '/no/such'"),
        (["listen", "a", "--save", "SECRETS"], "is there already, and is not a folder"),
    ],
)
def test_what_went_wrong_is_told_in_the_words_of_the_command_line(
    arguments: list[str], told: str, secrets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = [secrets if argument == "SECRETS" else argument for argument in arguments]
    assert main([command, "--secrets", secrets, *rest]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert "Errno" not in error


def test_a_warning_of_the_library_is_one_line_with_the_name_of_the_program(secrets: str) -> None:
    Path(secrets).chmod(0o644)
    with command("sign", "--secrets", secrets, "http://127.0.0.1:1/") as child:
        _, err = child.communicate(timeout=DEADLINE_SECONDS)
    assert child.returncode == 0
    assert re.fullmatch(rb"httppubsubclient: the secrets file .* chmod 600 it\n", err)


# -- standard input and output ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (arguments, kind)
        for arguments in (["--json", "-"], ["--file", "/dev/stdin"])
        for kind in ("pipe", "file", "socket", "nothing")
        if not (kind == "socket" and "/dev/stdin" in arguments)  # a socket cannot be opened by its name
    ],
)
def test_a_message_comes_from_standard_input_whatever_that_is(
    secrets: str, tmp_path: Path, arguments: list[str], kind: str
) -> None:
    body = b"" if kind == "nothing" else os.urandom(300_000)
    (tmp_path / "body").write_bytes(body)
    ours, its = socket.socketpair()
    stdin: Any = {
        "pipe": subprocess.PIPE,
        "file": (tmp_path / "body").open("rb"),
        "socket": its,
        "nothing": subprocess.DEVNULL,
    }
    with (
        ours,
        its,
        stdin["file"],
        taking() as broadcaster,
        command(
            "notify", "t", "--secrets", secrets, "--broadcaster", broadcaster.url, *arguments, stdin=stdin[kind]
        ) as child,
    ):
        if kind == "socket":
            ours.sendall(body)
            ours.shutdown(socket.SHUT_WR)
        _, err = child.communicate(body if kind == "pipe" else None, timeout=DEADLINE_SECONDS)
    assert (child.returncode, err) == (0, b"")
    assert broadcaster.bodies == [body]


def test_a_failed_delivery_is_exit_status_1(secrets: str) -> None:
    with taking(failed=1) as broadcaster:
        arguments = ["--secrets", secrets, "--broadcaster", broadcaster.url, "--data", "x"]
        assert main(["notify", "t", *arguments]) == 1


def test_ctrl_c_ends_a_notify_that_waits_for_a_pipe(secrets: str) -> None:
    with command("notify", "t", "-", "--secrets", secrets, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        # More than a pipe holds: written means that the command reads, and now waits for the rest.
        child.stdin.write(bytes(1_000_000))
        child.stdin.flush()
        child.send_signal(signal.SIGINT)
        # Its standard input stays open until it has ended.
        assert child.wait(DEADLINE_SECONDS) == 130
        assert child.stderr is not None
        assert child.stderr.read() == b""


def test_ctrl_c_ends_a_notify_that_waits_for_a_terminal(secrets: str) -> None:
    with in_a_terminal("notify", "t", "-", "--secrets", secrets) as (child, terminal):
        type_and_wait_until_read(terminal, b"hello\n")
        os.write(terminal.ours, b"\x03")
        assert child.wait(DEADLINE_SECONDS) == 130
        assert os.read(terminal.ours, 4096) == b"^C"


def test_one_ctrl_d_ends_the_message_that_is_typed(secrets: str) -> None:
    with (
        taking() as broadcaster,
        in_a_terminal("notify", "t", "-", "--secrets", secrets, "--broadcaster", broadcaster.url) as (child, terminal),
    ):
        os.write(terminal.ours, b"hello\n\x04")
        assert child.wait(DEADLINE_SECONDS) == 0
        read_until(terminal, b"matched 0")
        assert os.get_blocking(terminal.its), "the shell has the same open file"
    assert broadcaster.bodies == [b"hello\n"]


@pytest.mark.parametrize("arguments", [["sign", "http://127.0.0.1:1/"], ["--help"]])
def test_output_that_nobody_reads_is_no_traceback(secrets: str, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        options = [] if arguments == ["--help"] else ["--secrets", secrets]
        with command(*arguments, *options, stdout=writer) as child:
            _, err = child.communicate(timeout=DEADLINE_SECONDS)
    finally:
        os.close(writer)
    assert err == b""


# -- sign and verify --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"hello\n", "6 bytes were captured; it is the one that was signed but for the newline at its end: remove it"),
        (b"hello\r\n", "7 bytes were captured; it is the one that was signed but for the CR LF at its end: remove it"),
        (b"help", "4 bytes were captured"),
    ],
)
def test_a_body_that_differs_is_told_with_both_digests_and_its_length(
    secrets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], body: bytes, told: str
) -> None:
    captured = captured_delivery(tmp_path / "request", body=body)
    assert main(["verify", "--secrets", secrets, captured]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"FAIL body: {told}" in lines
    for content in (b"hello", body):
        assert any(content_digest(hashlib.sha256(content).digest()) in line for line in lines)
    assert lines[-1].startswith("FAIL result: ")


def test_a_body_that_lost_its_newline_is_told(secrets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body, headers = tmp_path / "body", tmp_path / "headers"
    body.write_bytes(b"hello\n")
    url = "http://127.0.0.1:3003/v1/notify?topic=t"
    assert main(["sign", "--secrets", secrets, url, "--file", str(body)]) == 0
    headers.write_text(capsys.readouterr().out)
    arguments = ["verify", "--secrets", secrets, "--url", url, "--header", f"@{headers}", "--body", str(body)]
    assert main(arguments) == 0
    body.write_bytes(b"hello")
    assert main([*arguments, "--header", "Content-Length: 6"]) == 1
    out = capsys.readouterr().out
    assert "FAIL body: 5 bytes were captured, Content-Length says 6; it is the one" in out
    assert "a newline at its end: add it" in out


@pytest.mark.parametrize(
    ("kind", "told"), [("hmac", "its nonce was not used"), ("token", "again and again"), ("none", "as everything is")]
)
def test_the_verdict_speaks_of_a_nonce_only_where_there_is_one(
    kind: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "secrets.json"
    keys = {"hmac": KEYS, "none": {"type": "none"}}
    direction = keys.get(kind, {"type": "token", "keys": [{"id": "k1", "secret": "t" * 32}]})
    document = {"version": 1, "broadcasters": [], "to_broadcasters": direction, "to_subscribers": direction}
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    credentials = Credentials(kind, () if kind == "none" else (Key("k1", b"t" * 32 if kind == "token" else SECRET),))
    nonce = "0123456789abcdef"
    signed = sign_request(credentials, method="GET", path="/", query="", headers={}, now=int(time.time()), nonce=nonce)
    headers = [argument for name, value in signed.items() for argument in ("--header", f"{name}: {value}")]
    arguments = ["--secrets", str(path), "--method", "GET", "--url", "http://127.0.0.1:3003/", *headers]
    assert main(["verify", *arguments]) == 0
    result = capsys.readouterr().out.splitlines()[-1]
    assert told in result
    assert ("nonce" in result) == (kind == "hmac")


def test_a_file_that_is_no_request_is_refused(secrets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "request"
    for content in (b"", b"hello", b"\x00\xff\r\n\r\n", b"POST / HTTP/1.1\r\nno colon\r\n\r\n"):
        path.write_bytes(content)
        assert main(["verify", "--secrets", secrets, str(path)]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_commands_start_without_a_web_framework() -> None:
    program = (
        "import sys; from httppubsubclient.cli import main\n"
        "try: main(['--version'])\nexcept SystemExit: pass\n"
        "print({'fastapi', 'uvicorn', 'httpx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
