"""Rates, how guessing is slowed, and what a caller without a key cannot make the server do."""

import threading
import time
import tracemalloc
from datetime import datetime, timezone
from pathlib import Path

import pytest

from orchestrator.model import NodeIdentity
from orchestrator.security import KnownNode, NodeCache, ProxyWatch, Throttle, charge
from tests.orchestrator.serving import (
    Json,
    RegisteredNode,
    RunningOrchestrator,
    refusal,
    rows,
    serve,
)

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


@pytest.mark.settings(failures_per_minute=2, admin_key="k" * 24, registration_token="t" * 24)
def test_right_long_secret_passes_whoever_guesses_beside_it(
    orchestrator: RunningOrchestrator,
) -> None:
    stranger = orchestrator.client("guess")
    codes = [stranger.get("/nodes").status_code for _ in range(100)]
    assert codes == [401, 401, *[429] * 98]
    assert orchestrator.nodes() == []
    token = orchestrator.create_token("*")["token"]
    for right in (orchestrator.registration_token, token):
        assert orchestrator.try_to_register("n", right).status_code == 200
    assert orchestrator.try_to_register("n", "guess").status_code == 429


@pytest.mark.settings(failures_per_minute=2, admin_key="k" * 23, registration_token="t" * 23)
def test_guesses_keep_right_secrets_out_that_could_be_guessed(
    orchestrator: RunningOrchestrator,
) -> None:
    node = orchestrator.register()
    codes = [orchestrator.client("guess").get("/nodes").status_code for _ in range(2)]
    assert codes == [401, 401]
    for response in (orchestrator.admin.get("/nodes"), orchestrator.try_to_register("n")):
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


def test_proxy_that_names_no_address_reaches_no_log_and_no_audit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ("\x9b31mred", "203.0.113.9 a", "fe80::1%\x9b", "a.example", "9" * 300)
    with serve(tmp_path, trusted_proxies="127.0.0.1") as orchestrator:
        for text in texts:
            forwarded = {b"X-Forwarded-For": text.encode("latin-1")}
            rows(orchestrator.admin.get("/nodes", headers=forwarded))
        orchestrator.client("guess").get("/nodes", headers=forwarded)
        entries = orchestrator.audit(action="nodes:read")
    assert [entry["client"] for entry in entries] == ["unknown"] * len(texts)
    [refused] = [one for one in caplog.records if one.message == "request refused"]
    assert refused.__dict__["fields"]["client"] == "unknown"


def test_control_characters_of_a_path_do_not_reach_the_audit(shared: RunningOrchestrator) -> None:
    shared.admin.get("/tasks/%1b%5b31m")
    details = [entry["detail"] for entry in shared.audit(action="tasks:read")]
    assert details == ["GET /tasks/\N{REPLACEMENT CHARACTER}[31m"]


FORWARDED = {"X-Forwarded-For": "192.0.2.1"}


@pytest.mark.parametrize(
    ("proxies", "headers", "count"),
    [(None, FORWARDED, 1), (None, {}, 0), ("127.0.0.1", FORWARDED, 0)],
    ids=["untrusted proxy", "no proxy", "trusted proxy"],
)
def test_proxy_that_is_not_trusted_is_noticed_once(
    tmp_path: Path,
    proxies: str | None,
    headers: Json,
    count: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serve(tmp_path, trusted_proxies=proxies) as orchestrator:
        nodes = [orchestrator.register() for _ in range(2)]
        for _ in range(2):
            orchestrator.admin.get("/nodes", headers=headers)
            for node in nodes:
                node.http.get("/tasks/pending", headers=headers)
    messages = [one for one in caplog.messages if one.startswith("all callers have one address")]
    assert len(messages) == count


def test_one_caller_or_several_addresses_are_no_sign_of_a_proxy() -> None:
    alone, several = ProxyWatch(), ProxyWatch()
    assert not any(alone.is_suspicious("a", "id", is_forwarded=True) for _ in range(9))
    addresses = ["a", "b", "b", "b", "b"]
    calls = [(address, f"id-{number}") for number, address in enumerate(addresses)]
    assert not any(several.is_suspicious(*call, is_forwarded=True) for call in calls)


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
