"""A partner's endpoint without our client: any web framework, and any library for Standard Webhooks.

    pip install fastapi uvicorn standardwebhooks
    WEBHOOK_SECRET=whsec_... uvicorn partner:app --port 8080

The broadcaster asks before it sends anything (a GET with a challenge); `WANTED` is what this endpoint agrees to.
Without WEBHOOK_SECRET it takes no messages: subscribe first, with `"secret": "generate"`, and the answer has it.
"""

from __future__ import annotations

import os
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Request, Response
from standardwebhooks import Webhook, WebhookVerificationError

WANTED = {"orders/*"}
SECRET = os.environ.get("WEBHOOK_SECRET", "")
app = FastAPI()
taken: set[str] = set()  # a database, in earnest: a message may come more than once, with the same id


@app.get("/hook")
async def agree(
    mode: Annotated[str, Query(alias="hub.mode")],
    topic: Annotated[str, Query(alias="hub.topic")],
    challenge: Annotated[str, Query(alias="hub.challenge")],
) -> Response:
    """Repeat the challenge for what was subscribed, and for nothing else."""
    if (mode == "subscribe") != (topic in WANTED):
        raise HTTPException(404)
    return Response(challenge, media_type="text/plain")


@app.post("/hook")
async def receive(request: Request) -> Response:
    """2xx: taken. Anything else is tried again, as the subscription says."""
    if not SECRET:
        raise HTTPException(503, "no secret yet")
    body = await request.body()
    try:
        Webhook(SECRET).verify(body, dict(request.headers), json_parse=False)
    except (WebhookVerificationError, ValueError):  # the library raises ValueError for what is not well-formed
        raise HTTPException(401) from None
    message_id = request.headers["webhook-id"]
    if message_id not in taken:
        taken.add(message_id)
        print(request.headers["pubsub-topic"], body, flush=True)
    return Response(status_code=204)
