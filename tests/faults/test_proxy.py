"""The proxy itself leaves nothing behind."""

from __future__ import annotations

import gc
from urllib.parse import urlsplit

from tests.harness.knocking import knocking
from tests.harness.proxy import FaultProxy


def test_client_that_connects_while_it_closes_is_closed_too() -> None:
    for _ in range(10):
        with FaultProxy("http://127.0.0.1:1") as proxy:
            port = urlsplit(proxy.url).port
            assert port is not None
            with knocking(port):
                proxy.stop()
    gc.collect()  # what was left open warns now, and a warning is an error
