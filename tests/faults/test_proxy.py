"""The proxy itself leaves nothing behind."""

from __future__ import annotations

import gc
from urllib.parse import urlsplit

from tests.harness.knocking import knocking
from tests.harness.proxy import FaultProxy

NOWHERE = "http://127.0.0.1:1"
TIMES = 10


def test_who_connects_while_it_closes_is_closed_too() -> None:
    for _ in range(TIMES):
        with FaultProxy(NOWHERE) as proxy:
            port = urlsplit(proxy.url).port
            assert port is not None
            with knocking(port):
                proxy.stop()
    gc.collect()  # what was forgotten warns now, and a warning is an error
