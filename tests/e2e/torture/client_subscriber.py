"""A subscriber that is an application of our client: a durable name, messages remembered in a file, acknowledged late.

    python -m tests.e2e.torture.client_subscriber --name c0 --port 3004 --secrets FILE --journals FOLDER --urls URL ...

Each message that the iterator gives is written down as taken, and acknowledged then: what is acknowledged has been
processed. What dies in between comes again, under the same id. Signatures are the client's business.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import time
from pathlib import Path
from urllib.parse import quote

from httppubsubclient.client import HttpPubSubClient, Message
from httppubsubclient.config import HttpPubSubConfig, get_auth_config_from_file
from httppubsubclient.protocol.errors import PubSubError
from tests.e2e.torture.checker import NOT_TOLD
from tests.e2e.torture.journals import Journal
from tests.e2e.torture.wire import BrokenAnswer, ask_json

__all__ = ["main"]

TAKEN = 204
PAUSE_SECONDS = 0.1


def configured(options: argparse.Namespace) -> HttpPubSubConfig:
    """The client at its port, with a file beside the journals for what it remembers."""
    send_auth, receive_auth = get_auth_config_from_file(str(options.secrets))
    return HttpPubSubConfig(
        bind={"type": "uvicorn", "address": "127.0.0.1", "port": options.port},
        host=f"http://127.0.0.1:{options.port}",
        send_auth=send_auth,
        receive_auth=receive_auth,
        broadcasters=options.urls.split(","),
        remember_file=options.secrets.parent / f"remembered-{options.name}",
    )


async def take_all(client: HttpPubSubClient, options: argparse.Namespace, journal: Journal) -> None:
    """Subscribe, and take what comes until the end."""
    subscribing = client.subscribe_glob(
        options.glob,
        durable=options.name,
        ordered=options.ordered,
        retry_schedule_seconds=json.loads(options.schedule),
        ack="explicit",
    )
    async with subscribing as subscription:
        subscription_id = await confirmed_id(client, options)
        journal.write(
            "subscribed",
            subscription=subscription_id,
            kind="glob",
            pattern=options.glob,
            subscriber=options.name,
            ordered=options.ordered,
        )
        print("subscribed", flush=True)
        async for message in subscription:
            began_at = time.monotonic_ns()
            write_down(journal, message, subscription_id, options.name, began_at)
            message.ack()


async def confirmed_id(client: HttpPubSubClient, options: argparse.Namespace) -> str:
    """Of the subscription that was entered; the broadcaster knows it."""
    token = json.loads(options.secrets.read_text())["to_broadcasters"]["keys"][-1]["secret"]
    url = quote(f"{client.callback_url}?durable={options.name}", safe="")
    while True:
        for broadcaster in options.urls.split(","):
            with contextlib.suppress(BrokenAnswer):
                status, page = await ask_json(broadcaster, "GET", f"/v1/subscriptions?url={url}", token=token)
                if status == 200:
                    [subscription] = page["subscriptions"]
                    found: str = subscription["id"]
                    return found
        await asyncio.sleep(PAUSE_SECONDS)


def write_down(journal: Journal, message: Message, subscription_id: str, name: str, began_at: int) -> None:
    """As taken, in the words of subscriber.py."""
    body = message.content
    said = json.loads(body)
    journal.write(
        "arrived",
        arrived=began_at,
        subscriber=name,
        subscription=subscription_id,
        message_id=message.message_id,
        topic=message.topic.decode(),
        sequence=message.sequence,
        previous=NOT_TOLD,
        publisher=said["publisher"],
        number=said["number"],
        digest=hashlib.sha256(body).hexdigest(),
        fault=None,
        misdeed=None,
        status=TAKEN,
    )


async def main() -> None:
    parser = argparse.ArgumentParser(prog="client_subscriber")
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--secrets", type=Path, required=True)
    parser.add_argument("--journals", type=Path, required=True)
    parser.add_argument("--urls", required=True)
    parser.add_argument("--glob", required=True)
    parser.add_argument("--schedule", required=True, metavar="JSON")
    parser.add_argument("--ordered", action="store_true")
    options = parser.parse_args()
    journal = Journal(options.journals, options.name)
    print("ready", flush=True)
    async with HttpPubSubClient(configured(options)) as client:
        while True:
            # The broadcaster may be dead at present.
            with contextlib.suppress(PubSubError):
                await take_all(client, options, journal)
            await asyncio.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    asyncio.run(main())
