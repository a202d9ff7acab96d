"""The code that the library promised before it was written, as its first users know it.

The port, the addresses and the file are arguments; `asyncio` is imported, inner quotes are double (f-strings before
Python 3.12), the two notifies at the end find a file, `with_timeout` waits for half a second instead of five, and
`main` is run. All else is the surface that must not change.
"""

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.config import (
    HttpPubSubConfig,
    HttpPubSubBindUvicornConfig,
    get_auth_config_from_file
)
import asyncio
import json
import sys

PORT = int(sys.argv[1])
HOST = sys.argv[2]


def _build_config() -> HttpPubSubConfig:
    send_auth_config, receive_auth_config = get_auth_config_from_file(
        'subscriber-secrets.json'
    )
    return HttpPubSubConfig(
        bind=HttpPubSubBindUvicornConfig(
            type="uvicorn",
            address='127.0.0.1',
            port=PORT
        ),
        host=HOST,
        send_auth=send_auth_config,
        receive_auth=receive_auth_config
    )


async def main():
    async with HttpPubSubClient(_build_config()) as client:
        print('Subscribing to foo/bar (exact match) until 1 message is received...')
        async with client.subscribe_exact(b'foo/bar') as subscription:
            async for message in subscription:
                print(f'Received message on {message.topic}: {message.data.read().decode("utf-8")}')
                break

        print('Subscribing to multiple topics using glob pattern until 1 message is received...')
        async with client.subscribe_glob('foo/*') as subscription:
            async for message in subscription:
                print(f'Received message on {message.topic}: {message.data.read().decode("utf-8")}')
                break

        print('Subscribing to a variety of topics until one message is received...')
        async with client.subscribe_multi() as subscription:
            await subscription.subscribe_exact(b'foo/bar')
            await subscription.subscribe_glob('foo/*')
            async for message in subscription:
                print(f'Received message on {message.topic}: {message.data.read().decode("utf-8")}')
                break

        print(
            'Subscribing to one exact topic until a message is received, '
            'with arbitrary timeout behavior...'
        )
        timeout_task = asyncio.create_task(asyncio.sleep(5))
        async with client.subscribe_exact(b'foo/bar') as subscription:
            sub_iter = await subscription.__aiter__()
            message_task = asyncio.create_task(sub_iter.__anext__())
            await asyncio.wait({timeout_task, message_task}, return_when=asyncio.FIRST_COMPLETED)
            if not message_task.cancel():
                timeout_task.cancel()
                message = message_task.result()
                print(f'Received message on {message.topic}: {message.data.read().decode("utf-8")}')
            else:
                message_task.cancel()
                print('Timed out waiting for message')

        print('Subscribing to one exact topic with simple timeout behavior...')
        async with client.subscribe_exact(b'foo/bar') as subscription:
            async for message in subscription.with_timeout(0.5):
                if message is None:
                    print('Been 5 seconds without a message! Ending early')
                    break
                print(f'Received message on {message.topic}: {message.data.read().decode("utf-8")}')

        print('Sending a notification to foo/baz with bytes...')
        result = await client.notify(topic=b'foo/baz', data=b'Hello, world!')
        print(f'Notified {result.notified} subscribers to foo/baz')

        print('Sending a notification to foo/baz with a file...')
        with open('hello.txt', 'rb') as f:
            result = await client.notify(topic=b'foo/baz', sync_file=f)
        print(f'Notified {result.notified} subscribers to foo/baz')


asyncio.run(main())
