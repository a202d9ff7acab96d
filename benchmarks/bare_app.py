"""The least that uvicorn can be asked to do: read a body, answer with JSON as long as the answer to a notify."""

from __future__ import annotations

import json

import uvicorn
from starlette.types import Receive, Scope, Send

from httppubsubclient.protocol.messages import NotifyResult

RESULT = NotifyResult(message_id="msg_0123456789012345678901", matched=1, notified=1, pending=0, failed=0)
ANSWER = json.dumps(RESULT.to_json()).encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


if __name__ == "__main__":
    config = uvicorn.Config(app, port=0, log_level="warning", access_log=False, lifespan="off", server_header=False)
    sock = config.bind_socket()
    print(f"listening on http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[sock])
