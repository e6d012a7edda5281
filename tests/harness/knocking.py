"""Clients that do nothing but connect, to be there when a listener closes."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLIENTS = 2


@contextmanager
def knocking(port: int) -> Iterator[None]:
    """Have clients connect to a port of loopback and hang up, all the time, until it refuses."""
    over = threading.Event()

    def knock() -> None:
        while not over.is_set():
            with socket.socket() as client:
                try:
                    client.connect(("127.0.0.1", port))
                except OSError:
                    return

    clients = [threading.Thread(target=knock) for _ in range(_CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        over.set()
        for client in clients:
            client.join()
