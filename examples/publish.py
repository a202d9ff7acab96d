"""Publish one message from Python.

python examples/publish.py subscriber-secrets.json http://127.0.0.1:3003 foo/bar hello
"""

import asyncio
import sys

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.config import HttpPubSubConfig, get_auth_config_from_file


async def main(secrets: str, broadcaster: str, topic: str, text: str) -> None:
    """Publish `text` and print how many subscribers confirmed it."""
    send_auth, receive_auth = get_auth_config_from_file(secrets)
    # Without `host` nobody calls us back: this only publishes.
    config = HttpPubSubConfig(send_auth=send_auth, receive_auth=receive_auth, broadcasters=[broadcaster])
    async with HttpPubSubClient(config) as client:
        result = await client.notify(topic=topic.encode(), data=text.encode())
    print(f"notified {result.notified} of {result.matched} subscribers")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
