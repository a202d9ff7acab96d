"""A program of its own that subscribes: it listens on a port of its own and prints what comes.

python examples/own_listener.py subscriber-secrets.json 'foo/*'
"""

import asyncio
import sys

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.config import HttpPubSubConfig, get_auth_config_from_file


async def main(secrets: str, glob: str) -> None:
    """Subscribe to `glob` until the program is stopped."""
    send_auth, receive_auth = get_auth_config_from_file(secrets)
    config = HttpPubSubConfig(
        bind={"type": "uvicorn", "address": "127.0.0.1", "port": 0},
        host="http://127.0.0.1:0",  # port 0 stands for the one that was bound
        send_auth=send_auth,
        receive_auth=receive_auth,
    )
    async with HttpPubSubClient(config) as client, client.subscribe_glob(glob) as subscription:
        print("subscribed", flush=True)
        async for message in subscription:
            print(f"{message.topic!r}: {message.text()}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
