"""The broadcaster: keeps subscriptions and POSTs every message to the callback URLs that match.

Start with `httppubsubserver.broadcaster.Broadcaster`; `httppubsubserver.app.create_app` makes a complete
application of it. `FastTransport` carries requests of `httpx.AsyncClient` over the connections that deliveries use.
This package imports nothing by itself, so that the commands start fast.
"""

from typing import TYPE_CHECKING, Any

from httppubsubclient import __version__

if TYPE_CHECKING:
    from httppubsubserver.delivery.httpx_transport import FastTransport

__all__ = ["FastTransport", "__version__"]


def __getattr__(name: str) -> Any:
    if name != "FastTransport":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from httppubsubserver.delivery.httpx_transport import FastTransport

    return FastTransport
