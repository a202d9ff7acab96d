"""What a good engineer would write by hand in an afternoon: FastAPI, a dict, and one POST per subscriber at once.

    python benchmarks/by_hand.py httpx|aiohttp PORT...

Every port of the arguments is a subscriber of the topic `t`. Nothing is signed, retried, persisted or matched.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, Request

Post = Callable[[str, bytes], Awaitable[int]]
library, *urls = sys.argv[1:]
subscriptions = {"t": urls}
post: Post


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    global post
    if library == "httpx":
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=1000), timeout=60) as client:

            async def with_httpx(url: str, data: bytes) -> int:
                return (await client.post(url, content=data)).status_code

            post = with_httpx
            yield
    else:
        import aiohttp

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1000)) as session:

            async def with_aiohttp(url: str, data: bytes) -> int:
                async with session.post(url, data=data) as answer:
                    return answer.status

            post = with_aiohttp
            yield


app = FastAPI(lifespan=lifespan)


@app.post("/v1/notify")
async def notify(topic: str, request: Request) -> dict[str, int]:
    data = await request.body()
    statuses = await asyncio.gather(*(post(url, data) for url in subscriptions.get(topic, [])))
    notified = sum(200 <= status < 300 for status in statuses)
    return {"notified": notified, "failed": len(statuses) - notified}


if __name__ == "__main__":
    config = uvicorn.Config(app, port=0, log_level="warning", access_log=False)
    sock = config.bind_socket()
    print(f"listening on http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[sock])
