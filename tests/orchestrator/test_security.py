"""Rates, how guessing is slowed, and what a caller without a key cannot make the server do."""

import threading
import time
import tracemalloc
from datetime import datetime, timezone
from pathlib import Path

import pytest

from orchestrator.model import NodeIdentity
from orchestrator.security import KnownNode, NodeCache, Throttle, charge
from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, refusal, serve

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
TOKEN = "the right token"  # noqa: S105 - opens nothing but a test server
# Small objects: ten megabytes as text, many times that as Python objects.
LARGE = b'{"task_id": "t", "session": {"a": [' + b"{}," * 3_400_000 + b"{}]}}"


@pytest.mark.parametrize("per_minute", [1, 7, 1000])
def test_calls_of_one_minute_may_come_at_once_and_no_more(per_minute: int) -> None:
    paid_until = None
    for _ in range(per_minute):
        paid_until, wait = charge(paid_until, NOW, per_minute)
        assert wait is None
    unchanged, wait = charge(paid_until, NOW, per_minute)
    assert unchanged == paid_until
    assert wait is not None
    assert wait.total_seconds() == pytest.approx(60 / per_minute, abs=0.001)
    paid_until, no_wait = charge(paid_until, NOW + wait, per_minute)
    assert no_wait is None
    assert charge(paid_until, NOW + wait, per_minute)[1] is not None


def test_node_whose_key_was_rotated_is_forgotten_with_all_its_keys() -> None:
    cache = NodeCache()
    # The announcement of the first use of the new key may come after that use itself.
    for key_hash in ("old", "new"):
        known = KnownNode(NodeIdentity("1", "node", {}), b"{", key_hash)
        cache.keep(key_hash, known, cache.version)
    assert (cache.find("old"), cache.find("new")) == (None, known)
    cache.forget("1")
    assert cache.find("new") is None


def test_number_of_remembered_addresses_is_limited() -> None:
    throttle = Throttle(2)
    for number in range(10_100):
        throttle.note_failure(f"address-{number}", NOW)
    assert throttle.address_count() == 10_000


@pytest.mark.settings(failures_per_minute=2)
def test_guessing_caller_is_429_even_with_the_right_key(orchestrator: RunningOrchestrator) -> None:
    node = orchestrator.register()
    codes = [orchestrator.client("guess").get("/nodes").status_code for _ in range(2)]
    assert codes == [401, 401]
    body = {"hostname": "h", "os_type": "linux"}
    token = {"X-Registration-Token": str(orchestrator.registration_token)}
    registration = orchestrator.client().post("/register", json=body, headers=token)
    for response in (orchestrator.admin.get("/nodes"), registration):
        assert refusal(response)[0] == 429
        assert int(response.headers["Retry-After"]) >= 1
    # Nodes behind the same address are not affected.
    assert node.poll() is None
    assert node.beat()["status"] == "idle"


@pytest.mark.parametrize(("proxies", "last"), [(None, 429), ("127.0.0.1", 401)])
def test_trusted_proxy_names_the_guesser(tmp_path: Path, proxies: str | None, last: int) -> None:
    with serve(tmp_path, failures_per_minute=1, trusted_proxies=proxies) as orchestrator:
        stranger = orchestrator.client("guess")
        forwarded = [{"X-Forwarded-For": address} for address in ("192.0.2.1", "192.0.2.1", "::1")]
        codes = [stranger.get("/nodes", headers=one).status_code for one in forwarded]
    assert codes == [401, 429, last]


@pytest.mark.settings(failures_per_minute=2, registration_token=TOKEN)
@pytest.mark.parametrize(
    ("path", "token", "code"),
    [("/register", "guess", 401), ("/register", TOKEN, 410), ("/logs", "", 401)],
    ids=["registration token", "key beside the token", "key of a log"],
)
def test_guesses_elsewhere_are_slowed_too(
    orchestrator: RunningOrchestrator, path: str, token: str, code: int
) -> None:
    body = {"hostname": "h", "os_type": "linux", "task_id": "t", "session": {}}
    stranger, headers = orchestrator.client("guess"), {"X-Registration-Token": token}
    codes = [stranger.post(path, json=body, headers=headers).status_code for _ in range(3)]
    assert codes == [code, code, 429]


def test_large_body_with_a_wrong_key_is_not_parsed_and_delays_no_other_call(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    codes: list[int] = []

    def post() -> None:
        headers = {"Content-Type": "application/json"}
        response = orchestrator.client("wrong").post("/logs", content=LARGE, headers=headers)
        codes.append(response.status_code)

    tracemalloc.start()  # the server is a thread of this process
    try:
        stranger = threading.Thread(target=post)
        stranger.start()
        while stranger.is_alive():
            node.beat()
            time.sleep(0.01)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert codes == [401]
    assert peak < 60 * 1024**2, f"{peak >> 20} MiB"
