"""A broadcaster inside an existing FastAPI application, which publishes without HTTP.

    uvicorn --app-dir examples mounted_broadcaster:app --port 3003

PUBSUB_SECRETS names broadcaster-secrets.json, PUBSUB_DB the database.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig

broadcaster = Broadcaster(
    ServerConfig(
        db=os.environ.get("PUBSUB_DB", "sqlite:///httppubsub.sqlite3"),
        secrets_file=Path(os.environ.get("PUBSUB_SECRETS", "broadcaster-secrets.json")),
    )
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """The application's own; the broadcaster's comes with its router."""
    yield


app = FastAPI(lifespan=lifespan)
app.include_router(broadcaster.router, prefix="/pubsub")


@app.post("/orders/{number}/paid")
async def paid(number: int) -> dict[str, int]:
    """Tell everybody who subscribed to `orders/*/paid`."""
    result = await broadcaster.notify(f"orders/{number}/paid".encode(), b"")
    return {"notified": result.notified}
