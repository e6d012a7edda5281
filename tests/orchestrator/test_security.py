"""Rates, how guessing is slowed, and what a caller without a key cannot make the server do."""

import threading
import time
import tracemalloc
from datetime import datetime, timedelta, timezone

import pytest

from orchestrator.errors import TooMany
from orchestrator.security import Throttle, charge
from tests.orchestrator.serving import RegisteredNode, RunningOrchestrator, refusal

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
# Small objects: ten megabytes as text, many times that as Python objects.
LARGE = b'{"task_id": "t", "session": {"a": [' + b"{}," * 3_400_000 + b"{}]}}"


@pytest.mark.parametrize("per_minute", [1, 3, 7, 1000])
def test_calls_of_one_minute_may_come_at_once_and_no_more(per_minute: int) -> None:
    paid_until = None
    for _ in range(per_minute):
        paid_until, wait = charge(paid_until, NOW, per_minute)
        assert wait is None
    again, wait = charge(paid_until, NOW, per_minute)
    assert again == paid_until
    assert wait is not None
    assert charge(paid_until, NOW + wait, per_minute)[1] is None


def test_rate_recovers_as_time_passes() -> None:
    paid_until, _ = charge(None, NOW, 2)
    paid_until, _ = charge(paid_until, NOW, 2)
    assert charge(paid_until, NOW + timedelta(seconds=29), 2)[1] == timedelta(seconds=1)
    paid_until, wait = charge(paid_until, NOW + timedelta(seconds=30), 2)
    assert wait is None
    assert charge(paid_until, NOW + timedelta(seconds=30), 2)[1] is not None


def test_address_that_failed_too_often_is_refused_for_a_while() -> None:
    throttle = Throttle(2)
    for _ in range(2):
        throttle.check("bad", NOW)
        throttle.note_failure("bad", NOW)
    with pytest.raises(TooMany) as caught:
        throttle.check("bad", NOW)
    throttle.check("good", NOW)
    throttle.check("bad", NOW + caught.value.retry_after)


def test_number_of_remembered_addresses_is_limited() -> None:
    throttle = Throttle(2)
    for number in range(10_100):
        throttle.note_failure(f"address-{number}", NOW)
    assert throttle.address_count() == 10_000


@pytest.mark.settings(failures_per_minute=2)
def test_caller_that_guessed_is_429_even_with_the_right_key(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    for number in range(2):
        assert _guess(orchestrator, key=f"guess-{number}") == 401
    response = orchestrator.admin.get("/nodes")
    assert refusal(response)[0] == 429
    assert int(response.headers["Retry-After"]) >= 1
    assert _register(orchestrator, str(orchestrator.registration_token)) == 429
    # Nodes behind the same address are not affected.
    assert node.poll() is None
    assert node.beat()["status"] == "idle"


@pytest.mark.settings(failures_per_minute=2)
def test_caller_cannot_choose_the_address_that_it_guesses_from(
    orchestrator: RunningOrchestrator,
) -> None:
    codes = [_guess(orchestrator, f"203.0.113.{number}") for number in range(4)]
    assert codes == [401, 401, 429, 429]


@pytest.mark.settings(failures_per_minute=1, trusted_proxies="127.0.0.1")
def test_guesses_through_a_trusted_proxy_count_for_their_own_address(
    orchestrator: RunningOrchestrator,
) -> None:
    codes = [_guess(orchestrator, address) for address in ("192.0.2.1", "192.0.2.1", "::1")]
    assert codes == [401, 429, 401]


@pytest.mark.settings(failures_per_minute=2)
@pytest.mark.parametrize("place", ["registration token", "key of a log"])
def test_guesses_elsewhere_are_slowed_too(orchestrator: RunningOrchestrator, place: str) -> None:
    if place == "registration token":
        codes = [_register(orchestrator, "guess") for _ in range(3)]
    else:
        body = {"task_id": "t", "session": {}}
        codes = [
            orchestrator.client(f"guess-{number}").post("/logs", json=body).status_code
            for number in range(3)
        ]
    assert codes == [401, 401, 429]


@pytest.mark.settings(failures_per_minute=1)
def test_right_keys_are_never_slowed(orchestrator: RunningOrchestrator) -> None:
    for number in range(1, 6):
        orchestrator.register()
        assert len(orchestrator.nodes()) == number


def test_large_body_with_a_wrong_key_is_not_parsed_and_delays_no_other_call(
    orchestrator: RunningOrchestrator, node: RegisteredNode
) -> None:
    node.beat()
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
        stranger.join()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert codes == [401]
    assert peak < 60 * 1024**2, f"{peak >> 20} MiB"


def _guess(
    orchestrator: RunningOrchestrator, address: str | None = None, key: str = "guess"
) -> int:
    headers = {} if address is None else {"X-Forwarded-For": address}
    return orchestrator.client(key).get("/nodes", headers=headers).status_code


def _register(orchestrator: RunningOrchestrator, token: str) -> int:
    body = {"hostname": "h", "os_type": "linux"}
    headers = {"X-Registration-Token": token}
    return orchestrator.client().post("/register", json=body, headers=headers).status_code
