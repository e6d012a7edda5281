"""A client that does nothing but connect, to be there when a listener closes."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

CLIENTS = 2


@contextmanager
def knocking(port: int) -> Iterator[None]:
    """Let clients connect to a port of loopback and hang up, all the time, until it refuses."""
    over = threading.Event()

    def knock() -> None:
        while not over.is_set():
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)):
                    return

    with ThreadPoolExecutor(CLIENTS) as threads:
        for _ in range(CLIENTS):
            threads.submit(knock)
        try:
            yield
        finally:
            over.set()
