"""Rates, and how guessing is slowed by them."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from orchestrator.errors import TooMany
from orchestrator.security import Throttle, charge
from tests.orchestrator.serving import RunningOrchestrator, refusal, serve

NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize("per_minute", [1, 3, 7, 1000])
def test_minutes_calls_may_come_at_once_and_no_more(per_minute: int) -> None:
    paid_until = None
    for _ in range(per_minute):
        paid_until, wait = charge(paid_until, NOW, per_minute)
        assert wait is None
    again, wait = charge(paid_until, NOW, per_minute)
    assert again == paid_until
    assert wait is not None
    assert charge(paid_until, NOW + wait, per_minute)[1] is None


def test_rate_comes_back_as_time_passes() -> None:
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


def test_only_so_many_addresses_are_kept() -> None:
    throttle = Throttle(2)
    for number in range(10_100):
        throttle.note_failure(f"address-{number}", NOW)
    assert throttle.address_count() == 10_000


def test_guessing_is_429_even_if_it_guesses_right(tmp_path: Path) -> None:
    with serve(tmp_path, failures_per_minute=2) as orchestrator:
        node = orchestrator.register()
        for number in range(2):
            guess = orchestrator.client(f"guess-{number}")
            assert refusal(guess.get("/nodes"))[0] == 401
        response = orchestrator.client(orchestrator.admin_key).get("/nodes")
        assert refusal(response)[0] == 429
        assert int(response.headers["Retry-After"]) >= 1
        assert _register(orchestrator) == 429
        # Nodes go on, whoever guesses behind the same address.
        assert node.poll() is None
        assert node.beat()["status"] == "idle"


def test_guesser_cannot_choose_his_address(tmp_path: Path) -> None:
    with serve(tmp_path, failures_per_minute=2) as orchestrator:
        codes = [_guess(orchestrator, f"203.0.113.{number}") for number in range(4)]
    assert codes == [401, 401, 429, 429]


def test_proxy_that_is_trusted_tells_who_guesses(tmp_path: Path) -> None:
    with serve(tmp_path, failures_per_minute=1, trusted_proxies="127.0.0.1") as orchestrator:
        codes = [_guess(orchestrator, address) for address in ("192.0.2.1", "192.0.2.1", "::1")]
    assert codes == [401, 429, 401]


def test_guessing_the_registration_token_is_slowed_too(tmp_path: Path) -> None:
    with serve(tmp_path, failures_per_minute=2) as orchestrator:
        codes = [_register(orchestrator, "guess") for _ in range(3)]
    assert codes == [401, 401, 429]


def test_right_keys_are_never_slowed(tmp_path: Path) -> None:
    with serve(tmp_path, failures_per_minute=1) as orchestrator:
        for _ in range(5):
            orchestrator.register()
            orchestrator.nodes()
        assert len(orchestrator.nodes()) == 5


def _guess(orchestrator: RunningOrchestrator, address: str) -> int:
    headers = {"X-Forwarded-For": address}
    return orchestrator.client("guess").get("/nodes", headers=headers).status_code


def _register(orchestrator: RunningOrchestrator, token: str | None = None) -> int:
    return (
        orchestrator.client()
        .post(
            "/register",
            json={"hostname": "h", "os_type": "linux"},
            headers={"X-Registration-Token": token or orchestrator.registration_token or ""},
        )
        .status_code
    )
