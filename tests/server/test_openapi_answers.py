"""Whatever is asked, the answer is one that the OpenAPI document names, and none is a fault of ours.

schemathesis makes requests out of the document, good ones and bad ones; half of the good ones are led to what exists,
since nobody guesses an id. It is imported when the first of these tests runs: that takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from httppubsubclient.protocol.credentials import Credentials, Key, Secrets
from httppubsubclient.protocol.permissions import Permissions, Quotas
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from tests.hardening.support import storage_key
from tests.server.conftest import NO_AUTH, ScriptedOutbound

TOKEN: Final = "a-token-for-the-schema-0123456789abcdef"
LITTLE: Final = "a-token-of-somebody-who-may-do-little-0123"
CALLBACK: Final = "http://127.0.0.1:2000/hook"

# schemathesis draws with the `random` module where hypothesis would like to.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


def examples(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


class Schema:
    """The OpenAPI document of a broadcaster that was never opened, and what schemathesis makes of it."""

    def __init__(self) -> None:
        import schemathesis
        from schemathesis.checks import not_a_server_error
        from schemathesis.generation import GenerationMode
        from schemathesis.specs.openapi import checks

        app = FastAPI()
        app.include_router(Broadcaster(ServerConfig(), secrets=NO_AUTH).router)
        found: Any = schemathesis.openapi.from_dict(app.openapi()).get_all_operations()
        self.operations: dict[str, Any] = {operation.label: operation for operation in (each.ok() for each in found)}
        self.modes: dict[str, Any] = {"good": GenerationMode.POSITIVE, "bad": GenerationMode.NEGATIVE}
        self._checks: list[Any] = [
            not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_headers_conformance,
            checks.response_schema_conformance,
        ]

    def check(self, case: Any, answer: httpx.Response) -> None:
        """Raises when the answer is not one that the document names."""
        case.validate_response(answer, checks=self._checks)


@dataclass
class Site:
    """An open broadcaster in a thread, asked from here."""

    portal: BlockingPortal
    client: httpx.AsyncClient
    known: dict[str, str]
    """Path parameters of what exists."""

    def ask(self, case: Any, **headers: str) -> httpx.Response:
        """Send a case. What no HTTP client can send is none."""
        import requests

        arguments = case.as_transport_kwargs(base_url="http://broadcaster")
        prepared: Any = None
        with suppress(requests.RequestException, UnicodeError, ValueError):
            prepared = requests.Request(**arguments).prepare()
        assume(prepared is not None and len(prepared.url) < 60_000)
        own = ("authorization", "content-length", "transfer-encoding")
        kept = {name: value for name, value in prepared.headers.items() if name.lower() not in own}
        body = prepared.body.encode() if isinstance(prepared.body, str) else prepared.body or b""
        built = self.client.build_request(prepared.method, prepared.url, headers=kept | headers, content=body)
        return self.portal.call(self.client.send, built)


@pytest.fixture(scope="module")
def schema() -> Schema:
    return Schema()


@pytest.fixture(scope="module")
def open_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Secrets], Site]]:
    with start_blocking_portal() as portal:
        entered: list[Any] = []

        def opened(secrets: Secrets) -> Site:
            database = Path(tmp_path_factory.mktemp("site"), "pubsub.sqlite3")
            config = ServerConfig(
                db=f"sqlite:///{database}",
                storage_key_file=storage_key(database.parent),
                shutdown_timeout_seconds=0.1,
                notify_timeout_seconds=0.1,
            )
            broadcaster = Broadcaster(config, secrets=secrets, outbound=ScriptedOutbound())
            client = client_of(broadcaster)
            for manager in (broadcaster, client):
                wrapped: Any = portal.wrap_async_context_manager(manager)
                wrapped.__enter__()
                entered.append(wrapped)
            return Site(portal, client, portal.call(fill, client))

        yield opened
        for wrapped in reversed(entered):
            wrapped.__exit__(None, None, None)


def client_of(broadcaster: Broadcaster) -> httpx.AsyncClient:
    app = FastAPI()
    app.include_router(broadcaster.router)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://broadcaster")


async def fill(client: httpx.AsyncClient) -> dict[str, str]:
    """A durable subscription with a message, and a replay."""
    proof = {"authorization": f"Bearer {TOKEN}"}
    wanted = {"url": CALLBACK, "topic": "t", "delivery": "durable"}
    subscription = (await client.post("/v1/subscriptions", json=wanted, headers=proof)).json()["id"]
    message = (await client.post("/v1/notify?topic=t", content=b"x", headers=proof)).json()["message_id"]
    replayed = await client.post("/v1/deliveries/replay", json={"message_id": message}, headers=proof)
    return {"subscription_id": subscription, "message_id": message, "number": str(replayed.json()["replay"])}


def led(case: Any, known: dict[str, str]) -> None:
    """Make a case be about what exists."""
    for name in case.path_parameters or ():
        case.path_parameters[name] = known[name]
    for name, value in (("url", CALLBACK), ("topic", "t")):
        if case.query and name in case.query:
            case.query[name] = value
    if isinstance(case.body, dict) and "url" in case.body:
        case.body["url"] = CALLBACK


@pytest.mark.parametrize("mode", ["good", "bad"])
def test_every_answer_is_documented(schema: Schema, open_site: Callable[[Secrets], Site], mode: str) -> None:
    site = open_site(NO_AUTH)
    for label, operation in schema.operations.items():

        @examples(20 if mode == "good" else 8)
        @given(operation.as_strategy(generation_mode=schema.modes[mode]), st.booleans())
        def check(case: Any, is_led: bool) -> None:
            note(label)  # noqa: B023
            if is_led and mode == "good":
                led(case, site.known)
            schema.check(case, site.ask(case))

        # A path with any text for a parameter, say: nothing can be wrong with it.
        with suppress(*([Unsatisfiable] if mode == "bad" else [])):
            check()


@pytest.mark.parametrize("token", [None, "wrong", LITTLE, TOKEN])
def test_with_a_token_or_without_every_answer_is_documented(
    schema: Schema, open_site: Callable[[Secrets], Site], token: str | None
) -> None:
    quotas = Quotas(subscriptions=1, messages_per_second=0.001, bytes_per_second=0.001)
    little = Permissions(publish=("a*",), subscribe=("a*",), quotas=quotas)
    keys = (Key("k", TOKEN.encode()), Key("little", LITTLE.encode(), permissions=little))
    site = open_site(Secrets(Credentials("token", keys), Credentials.none(), ()))
    proof = {} if token is None else {"authorization": f"Bearer {token}"}
    for label, operation in schema.operations.items():

        @examples(8 if token == LITTLE else 2)
        @given(operation.as_strategy(generation_mode=schema.modes["good"]), st.booleans())
        def check(case: Any, is_led: bool) -> None:
            if is_led:
                led(case, site.known)
            answer = site.ask(case, **proof)
            schema.check(case, answer)
            if token not in (TOKEN, LITTLE) and "health" not in label:  # noqa: B023
                assert answer.status_code == 401

        check()
