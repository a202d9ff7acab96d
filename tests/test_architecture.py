"""The arrows of docs/architecture.md: the core is pure, imports point down, one matcher, one error table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLIENT, SERVER = ROOT / "httppubsubclient", ROOT / "httppubsubserver"
PROTOCOL = CLIENT / "protocol"

PURE = {
    "__future__", "base64", "binascii", "bisect", "collections", "contextlib", "dataclasses", "datetime", "email",
    "enum", "functools", "hashlib", "hmac", "ipaddress", "itertools", "json", "math", "re", "string", "struct", "sys",
    "types", "typing", "unicodedata", "urllib", "cryptography", "httppubsubclient",
}  # fmt: skip

# Lower rooms first: a module may import those of its own row and above in this table, never of a row below.
SERVER_ROWS = [
    {"config", "escaping", "randomness", "turns"},
    {"vault"},
    {
        "migrations",
        "stores",
        "stores.batches",
        "stores.identity",
        "stores.sqlite_file",
        "stores.sqlite_version",
        "stores.durable",
        "stores.sqlite_changes",
        "stores.sqlite_accept",
        "stores.sqlite_claims",
        "stores.sqlite_settle",
        "stores.sqlite_subscriptions",
        "stores.sqlite_deliveries",
        "stores.sqlite_successors",
        "stores.sqlite_upkeep",
        "stores.sqlite_retention",
        "stores.sqlite_durable",
        "stores.sqlite",
    },
    {"jwt_keys", "jwt_tokens"},
    {"subscription_secrets"},
    {"audit", "directory", "auth", "idempotency", "delivery"},
    {"quotas", "subscribe_checks"},
    {"delivery.answers", "delivery.tls_sessions", "delivery.httpx_requests"},
    {"delivery.resolving", "delivery.tcp"},
    {"delivery.proxy"},
    {"delivery.egress"},
    {"delivery.connection", "delivery.connections", "delivery.dialing", "delivery.sending"},
    {"delivery.whole_answers"},
    {"delivery.outbound", "delivery.httpx_transport"},
    {"callback_ports"},
    {"callback_policy"},
    {"delivery.webhook_bodies", "delivery.webhook_heads"},
    {"delivery.webhooks"},
    {"delivery.fanout"},
    {"delivery.lanes"},
    {"delivery.dispatcher"},
    {"delivery.shares", "delivery.work", "delivery.stored_bodies", "delivery.durable_heads"},
    {"delivery.endpoints", "delivery.outcomes"},
    {"delivery.turns"},
    {"delivery.attempts"},
    {"delivery.executor"},
    {"acceptance", "background", "operations", "upkeep", "question_limits"},
    {"verification"},
    {"consent"},
    {"publishing", "subscribing"},
    {"broadcaster", "delivery_json"},
    {"http_delivery_schemas", "http_requests", "http_schemas"},
    {"http_deliveries", "http_notify", "whole_sets"},
    {"http_api"},
    {"app"},
    {"certificates", "private_files"},
    {"provision_tls"},
    {"rotation"},
    {"provision", "serving"},
    {"cli_deliveries"},
    {"cli"},
    {"__main__"},
]
CLIENT_ROWS = [
    {"bearer", "bodies", "replay_file", "request_heads", "tls", "waiting"},
    {"admission"},
    {"config", "buffer", "remembered", "webhooks", "message"},
    {"call_failures", "durable_options", "incoming", "receiver_document", "taken"},
    {"outgoing", "broadcasters", "listener", "inbox"},
    {"durable_inbox", "registrations", "publishing"},
    {"durable_calls", "continuity"},
    {"durable_name"},
    {"durable_registrations"},
    {"subscriptions"},
    {"receiver", "callbacks", "consenting"},
    {"client"},
    {"cli_connection"},
    {"cli_listen", "cli_notify", "cli_signatures"},
    {"cli"},
    {"__main__"},
]
SHARED = (
    "httppubsubclient",
    *(f"httppubsubclient.{room}" for room in ("admission", "bodies", "replay_file", "request_heads", "tls", "waiting")),
)
"""What the server may take from the client besides `protocol`."""
UPWARD = {("broadcaster", "http_api")}
"""`Broadcaster.router`, inside the property."""


def modules(package: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        yield name, path


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at whatever depth, except for types only."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            found.add(node.module)
    return found


@pytest.mark.parametrize(("name", "path"), list(modules(PROTOCOL)))
def test_the_core_is_pure(name: str, path: Path) -> None:
    for module in imports(path):
        top = module.split(".")[0]
        assert top in PURE, f"protocol/{name} imports {module}"
        if top == "httppubsubclient":
            assert module.startswith("httppubsubclient.protocol"), f"protocol/{name} imports {module}"


@pytest.mark.parametrize(("name", "path"), list(modules(PROTOCOL)))
def test_the_core_reads_no_clock_and_no_randomness(name: str, path: Path) -> None:
    source = path.read_text()
    for forbidden in ("datetime.now(", "utcnow(", "time.time(", "async def", "open(", "os.urandom"):
        assert forbidden not in source, f"protocol/{name} has {forbidden}"


@pytest.mark.parametrize(("name", "path"), list(modules(SERVER)))
def test_the_server_takes_only_the_core_and_bodies_from_the_client(name: str, path: Path) -> None:
    for module in imports(path):
        if module.split(".")[0] == "httppubsubclient":
            allowed = module in SHARED or module.startswith("httppubsubclient.protocol")
            assert allowed, f"{name} imports {module}"


@pytest.mark.parametrize(("name", "path"), [*modules(CLIENT)])
def test_the_client_takes_nothing_from_the_server(name: str, path: Path) -> None:
    assert not any(module.startswith("httppubsubserver") for module in imports(path)), name


@pytest.mark.parametrize(("package", "rows"), [(SERVER, SERVER_ROWS), (CLIENT, CLIENT_ROWS)])
def test_imports_point_down(package: Path, rows: list[set[str]]) -> None:
    row_of = {name: number for number, row in enumerate(rows) for name in row}
    for name, path in modules(package):
        if name in ("", "__init__") or name.startswith("protocol"):
            continue
        assert name in row_of, f"{package.name}/{name} has no place in the table of this test"
        for module in imports(path):
            target = module.removeprefix(f"{package.name}.")
            if target == module or target.startswith("protocol") or (name, target) in UPWARD:
                continue
            assert row_of[target] <= row_of[name], f"{name} imports {target}, which lies above it"


def test_there_is_one_matcher() -> None:
    for package in (CLIENT, SERVER):
        for name, path in modules(package):
            assert not {"fnmatch", "glob", "wcmatch"} & imports(path), name
            assert " GLOB " not in path.read_text(), name
            assert " LIKE " not in path.read_text(), name


def test_there_is_one_error_table() -> None:
    """A status that belongs to an error is written in protocol/errors.py and nowhere else in an answer."""
    for package in (CLIENT, SERVER):
        for name, path in modules(package):
            assert "HTTPException(" not in path.read_text(), name


def test_nothing_refers_to_the_machine_it_was_made_on() -> None:
    for path in ROOT.rglob("*"):
        relative = path.relative_to(ROOT)
        if (relative.parts[0].startswith(".") and relative.parts[0] != ".ci") or not path.is_file():
            continue
        if path.suffix in (".py", ".md", ".toml", ".sql", ".json", "") and "__pycache__" not in relative.parts:
            text = path.read_text(errors="replace")
            assert f"{ROOT}/" not in text, relative
