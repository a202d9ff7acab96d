"""A subscriber that is run as a process and dies on command.

    python -m tests.e2e.durable_worker SECRETS BROADCASTER PORT REMEMBER_FILE [die]

Prints each message and acknowledges it. With `die` it acknowledges the first one and kills itself in the same step, so
that the acknowledgement is remembered and never answered to the broadcaster.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.config import HttpPubSubConfig, get_auth_config_from_file


async def work(secrets: str, broadcaster: str, port: int, remember_file: str, *, dies: bool) -> None:
    send_auth, receive_auth = get_auth_config_from_file(secrets)
    config = HttpPubSubConfig(
        bind={"type": "uvicorn", "address": "127.0.0.1", "port": port},
        host=f"http://127.0.0.1:{port}",
        send_auth=send_auth,
        receive_auth=receive_auth,
        broadcasters=[broadcaster],
        remember_file=remember_file,
    )
    async with (
        HttpPubSubClient(config) as client,
        client.subscribe_exact(
            b"t", durable="worker", ordered=True, retry_schedule_seconds=[0, *[0.2] * 60], ack="explicit"
        ) as subscription,
    ):
        print("subscribed", flush=True)
        async for message in subscription:
            print(message.text(), flush=True)
            message.ack()
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], dies="die" in sys.argv[5:]))
