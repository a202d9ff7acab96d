"""publisher.py for lonelypss: its body, its hmac, and each answer must count every subscriber.

python benchmarks/publish_lonelypss.py URL CONNECTIONS SECONDS SECRETS SUBSCRIBERS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lonelypss_wire import notified, notify, secret_of
from publisher import BODY, Load, run

from httppubsubclient.protocol.credentials import Credentials


class LonelypssLoad(Load):
    """Publishes to the topic `t`."""

    def __init__(self, url: str, secret: bytes, seconds: float, subscribers: int) -> None:
        super().__init__(url, Credentials.none(), seconds)
        self.secret, self.subscribers = secret, subscribers
        self.prefix = os.urandom(8)

    def request(self) -> bytes:
        """See Load."""
        self.nonces += 1
        signed, body = notify(self.secret, b"t", self.prefix + b"%x" % self.nonces, BODY)
        head = f"POST {self.path} HTTP/1.1\r\nhost: {self.host}\r\ncontent-length: {len(body)}\r\nauthorization: "
        return head.encode("ascii") + signed + b"\r\n\r\n" + body

    def check(self, answer: bytes) -> None:
        """See Load."""
        if notified(answer) != self.subscribers:
            raise SystemExit(f"{notified(answer)} of {self.subscribers} confirmed; this run says nothing")


def main() -> None:
    url, connections, seconds, secrets, subscribers = sys.argv[1:]
    secret = secret_of(Path(secrets), "to-broadcaster")
    run(LonelypssLoad(url, secret, float(seconds), int(subscribers)), int(connections))


if __name__ == "__main__":
    main()
