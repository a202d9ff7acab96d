"""`httppubsubclient sign` and `verify`: make, and explain, the proof in a request."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from httppubsubclient.protocol.credentials import sign_request
from httppubsubclient.protocol.errors import InvalidRequest, InvalidUrl
from httppubsubclient.protocol.explanations import Step, explain_delivery, explain_request, explain_webhook
from httppubsubclient.protocol.signatures import content_digest, parse_content_digest
from httppubsubclient.protocol.standard_webhooks import PrivateKey, PublicKey, SharedSecret, parse_key

__all__ = ["add_sign", "add_verify"]

_VERIFY_HELP = """\
Explain, step by step, whether the proof in a captured request holds. The request is a file as it crossed the wire
(request line, headers, an empty line, the body), or it is put together from --method, --url, --header and --body.
The direction is recognised by the Pubsub-Subscription header of a delivery, and the delivery to a subscription with a
secret of its own by its Webhook-Signature. Exit status 0: it holds, 1: it does not.
"""
_VERIFY_EXAMPLES = """\
A capture looks like this; its last line has a newline at its end only if the body has one:

  POST /v1/notify?topic=foo/bar HTTP/1.1
  Content-Type: text/plain
  Content-Digest: sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:
  Signature-Input: sig1=("@method" "@path" "@query" "content-digest");created=...;nonce="...";keyid="...";alg="..."
  Signature: sig1=:...:

  hello

The same from pieces, where headers.txt has one header a line, as `sign` prints them:

  httppubsubclient verify --url 'http://127.0.0.1:3003/v1/notify?topic=foo/bar' --header @headers.txt --body hello.txt
"""
_REQUEST_LINE = re.compile(r"([A-Z]+) (\S+) HTTP/1\.[01]", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Captured:
    """A request as it was caught; header names in lower case, body None when it was not caught."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes | None


def add_sign(commands: Any, common: argparse.ArgumentParser) -> None:
    """The sub-command `sign`."""
    sign = commands.add_parser(
        "sign",
        parents=[common],
        help="print the headers that prove a request to a broadcaster, for curl -H @FILE",
        description="Print the headers that a request needs, one a line. A signature is good once, for 5 minutes.",
    )
    sign.set_defaults(command=_sign, parser=sign)
    sign.add_argument("url", metavar="URL", help="the whole URL of the request, with its query")
    sign.add_argument("--method", default="POST", help="(default: %(default)s)")
    sign.add_argument("--idempotency-key", metavar="KEY", help="is covered by the signature, and printed, too")
    body = sign.add_mutually_exclusive_group()
    body.add_argument("--data", metavar="TEXT", help="the body")
    body.add_argument("--file", type=Path, metavar="FILE", help="the body; - reads standard input")


def add_verify(commands: Any, common: argparse.ArgumentParser) -> None:
    """The sub-command `verify`."""
    verify = commands.add_parser(
        "verify",
        parents=[common],
        help="explain why a captured request's signature does or does not hold",
        description=_VERIFY_HELP,
        epilog=_VERIFY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verify.set_defaults(command=_verify, parser=verify)
    verify.add_argument("request", nargs="?", metavar="FILE", help="the captured request; - reads standard input")
    verify.add_argument("--method", default="POST", help="(default: %(default)s)")
    verify.add_argument("--url", help="with its query; for a delivery it does not matter")
    verify.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="may be repeated; @FILE reads a file with one header a line",
    )
    verify.add_argument("--body", type=Path, metavar="FILE", help="the body; without it, it is not compared")
    verify.add_argument(
        "--at",
        type=float,
        metavar="UNIX-SECONDS",
        help="judge as of this moment, say when it was caught (default: now)",
    )
    verify.add_argument(
        "--webhook-keys",
        type=Path,
        metavar="FILE",
        help="the keys of the subscription, whsec_..., whsk_... or whpk_..., one a line; - reads standard input",
    )
    verify.add_argument("--tolerance-seconds", type=int, default=300, metavar="N", help="(default: %(default)s)")


def _sign(options: argparse.Namespace) -> int:
    from httppubsubclient.bearer import read_token_file
    from httppubsubclient.config import get_auth_config_from_file

    send_auth, _ = get_auth_config_from_file(options.secrets)
    path, query = _target(options.url)
    headers: dict[str, str] = {}
    if options.data is not None:
        headers["content-digest"] = content_digest(hashlib.sha256(os.fsencode(options.data)).digest())
    elif options.file is not None:
        headers["content-digest"] = content_digest(_file_sha256(options.file))
    if options.idempotency_key is not None:
        headers["idempotency-key"] = options.idempotency_key
    if options.token_file is not None:
        headers["authorization"] = f"Bearer {read_token_file(options.token_file)}"
    else:
        headers |= sign_request(
            send_auth,
            method=options.method,
            path=path,
            query=query,
            headers=headers,
            now=int(time.time()),
            nonce=os.urandom(16).hex(),
        )
    for name, value in headers.items():
        print(f"{name}: {value}")
    return 0


def _file_sha256(path: Path) -> bytes:
    # The descriptor of standard input stays open: it is not ours.
    with open(sys.stdin.fileno(), "rb", closefd=False) if str(path) == "-" else path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _verify(options: argparse.Namespace) -> int:
    from httppubsubclient.config import get_auth_config_from_file

    captured = _captured(options)
    now = time.time() if options.at is None else options.at
    if "webhook-signature" in captured.headers:
        return _verify_webhook(options, captured, now)
    to_broadcasters, to_subscribers = get_auth_config_from_file(options.secrets)
    sha256 = None if captured.body is None else hashlib.sha256(captured.body).digest()
    steps: list[Step]
    if "pubsub-subscription" in captured.headers:
        print("a delivery, from a broadcaster to a subscriber")
        steps = explain_delivery(
            to_subscribers,
            method=captured.method,
            headers=captured.headers,
            now=now,
            tolerance_seconds=options.tolerance_seconds,
            sha256=sha256,
        )
    else:
        print(f"a request to a broadcaster: {captured.method} {captured.path}")
        steps = explain_request(
            to_broadcasters,
            method=captured.method,
            path=captured.path,
            query=captured.query,
            headers=captured.headers,
            has_body=bool(captured.body) or captured.headers.get("content-length", "0") != "0",
            now=now,
            tolerance_seconds=options.tolerance_seconds,
            sha256=sha256,
        )
    if (about_body := _about_body(captured)) is not None:
        steps.insert(-1, about_body)
    return _told(steps)


def _verify_webhook(options: argparse.Namespace, captured: _Captured, now: float) -> int:
    if options.webhook_keys is None:
        options.parser.error("a webhook is verified with the keys of its subscription: --webhook-keys FILE")
    print("a delivery to a subscription with a secret of its own")
    return _told(
        explain_webhook(
            _webhook_keys(options.webhook_keys),
            captured.headers,
            captured.body,
            now=now,
            tolerance_seconds=options.tolerance_seconds,
        )
    )


def _webhook_keys(path: Path) -> list[SharedSecret | PublicKey]:
    text = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8")
    keys = [parse_key(line.strip()) for line in text.splitlines() if line.strip()]
    return [key.public() if isinstance(key, PrivateKey) else key for key in keys]


def _told(steps: list[Step]) -> int:
    # The last step is the verdict: of several signatures, one that holds is enough.
    for step in steps:
        print(f"{'ok  ' if step.ok else 'FAIL'} {step.name}: {step.detail}")
    return 0 if steps[-1].ok else 1


def _about_body(captured: _Captured) -> Step | None:
    """What may have happened to a body that is not the one of Content-Digest: mostly, an editor added a newline."""
    body, header = captured.body, captured.headers.get("content-digest", "")
    if body is None or header == "" or _is_named(body, header):
        return None
    length = captured.headers.get("content-length", str(len(body)))
    text = f"{len(body)} bytes were captured" + ("" if length == str(len(body)) else f", Content-Length says {length}")
    for newline, name in ((b"\r\n", "CR LF"), (b"\n", "newline")):
        if body.endswith(newline) and _is_named(body.removesuffix(newline), header):
            return Step(
                "body", False, f"{text}; it is the one that was signed but for the {name} at its end: remove it"
            )
    if _is_named(body + b"\n", header):
        return Step("body", False, f"{text}; it is the one that was signed but for a newline at its end: add it")
    return Step("body", False, text)


def _is_named(body: bytes, header: str) -> bool:
    with contextlib.suppress(InvalidRequest):
        return parse_content_digest(header) == hashlib.sha256(body).digest()
    return False


def _captured(options: argparse.Namespace) -> _Captured:
    if (options.request is None) == (options.url is None and not options.header):
        options.parser.error("say what was captured: FILE, or --url, --header and --body")
    if options.request is not None:
        raw = sys.stdin.buffer.read() if options.request == "-" else Path(options.request).read_bytes()
        return _parse_captured(raw)
    path, query = _target(options.url or "http://unknown/")
    body = None if options.body is None else options.body.read_bytes()
    lines: list[str] = []
    for header in options.header:
        lines += Path(header[1:]).read_text("latin-1").splitlines() if header.startswith("@") else [header]
    return _Captured(options.method, path, query, _parse_headers(lines), body)


def _parse_captured(raw: bytes) -> _Captured:
    """A request as it crossed the wire; bare newlines are taken, too, because editors make them."""
    head, separator, body = raw.partition(b"\r\n\r\n")
    if not separator:
        head, separator, body = raw.partition(b"\n\n")
    first, *lines = head.decode("latin-1").splitlines() or [""]
    match = _REQUEST_LINE.fullmatch(first.strip())
    if match is None:
        raise InvalidRequest(
            f"the first line is not that of a request, like 'POST /v1/receive HTTP/1.1': {first[:100]!r}"
        )
    headers = _parse_headers(lines)
    if "chunked" in headers.get("transfer-encoding", "").lower():
        raise InvalidRequest("the body was sent in chunks: capture it decoded, or use --header and --body")
    path, query = _target(match[2])
    return _Captured(match[1], path, query, headers, body if separator else None)


def _parse_headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition(":")
        if not separator:
            raise InvalidRequest(f"not a header, 'Name: value': {line[:100]!r}")
        name, value = name.strip().lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _target(url: str) -> tuple[str, str]:
    """Path and query as they stand in the request line."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidUrl(f"not a URL: {error}") from None
    return parts.path or "/", parts.query
