"""Another process at the same database: `python -m tests.stores.neighbour URL` does what its standard input says.

subscribe URL TOPIC    answers with the id
version                answers with the version
remember KEY           answers with True or False
"""

from __future__ import annotations

import asyncio
import sys

from httppubsubclient.protocol.messages import SubscribeRequest
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.stores import Store, open_store
from tests.stores.conftest import NOW, SECOND


async def main(url: str) -> None:
    async with open_store(url) as store:
        print("open", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(await _do(store, *line.split()), flush=True)


async def _do(store: Store, verb: str, *words: str) -> object:
    if verb == "subscribe":
        request = SubscribeRequest(words[0], Pattern.exact(words[1].encode()), 60)
        return (await store.subscribe(request, now=NOW))[0].id
    if verb == "remember":
        return await store.remember_once(words[0], until=NOW + SECOND, now=NOW)
    return await store.version()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
