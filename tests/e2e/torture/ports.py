"""Ports that stay the same while the processes on them die and come back."""

from __future__ import annotations

import socket

__all__ = ["ReservedPort"]


class ReservedPort:
    """A port of 127.0.0.1 that nobody else is given. Whoever asks for it with SO_REUSEADDR may listen on it; while
    nobody does, connections are refused."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        # Bound with this option and never listening, it stands in nobody's way who has the option, too (socket(7)).
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.number}"

    def close(self) -> None:
        self._socket.close()
