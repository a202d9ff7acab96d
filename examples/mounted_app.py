"""An existing FastAPI application that subscribes: two lines mount the receiver, the rest is the application's own.

    uvicorn --app-dir examples mounted_app:app --port 3002

PUBSUB_SECRETS names subscriber-secrets.json, PUBSUB_HOST how the broadcaster reaches this process.
"""

import os

from fastapi import FastAPI

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.config import HttpPubSubConfig, get_auth_config_from_file
from httppubsubclient.subscriptions import Message

send_auth, receive_auth = get_auth_config_from_file(os.environ.get("PUBSUB_SECRETS", "subscriber-secrets.json"))
client = HttpPubSubClient(
    HttpPubSubConfig(
        host=os.environ.get("PUBSUB_HOST", "http://127.0.0.1:3002") + "/pubsub",
        send_auth=send_auth,
        receive_auth=receive_auth,
    )
)

cache: dict[str, str] = {}

app = FastAPI()
app.include_router(client.router, prefix="/pubsub")  # also starts and stops the client with the application


@client.on("cache/*")
def forget(message: Message) -> None:
    """Whoever changes an entry publishes `cache/<name>`; every process forgets it."""
    cache.pop(message.topic.decode().removeprefix("cache/"), None)


@app.get("/entries/{name}")
async def entry(name: str) -> dict[str, str | bool]:
    """Show an entry, and whether it was in the cache."""
    cached = name in cache
    return {"value": cache.setdefault(name, f"computed for {name}"), "cached": cached}
