"""The broadcaster: keeps subscriptions and POSTs every message to the callback URLs that match.

Start with `httppubsubserver.broadcaster.Broadcaster`; `httppubsubserver.app.create_app` makes a complete
application of it. This package imports nothing by itself, so that the commands start fast.
"""

from httppubsubclient import __version__

__all__ = ["__version__"]
