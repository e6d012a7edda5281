"""The orchestrator's answers are lost, garbled or late: nothing is doubled and nothing is lost."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

import pytest

from tests.faults.certificates import Certificates, make_certificates
from tests.harness.proxy import Fault, FaultProxy
from tests.harness.runner_process import DEADLINE_S
from tests.orchestrator.serving import wait_for

if TYPE_CHECKING:
    from tests.faults.rig import Rig
    from tests.harness.proxy import Exchange

FINAL = b'"success"'
RUNNING = b'"running"'
ASSIGNED = b"task_id"
EVERY_CALL = [
    pytest.param("POST", "/register", {}, id="register"),
    pytest.param("GET", "/tasks/pending", {"answer_has": ASSIGNED}, id="pending"),
    pytest.param("POST", "/nodes/heartbeat", {}, id="heartbeat"),
    pytest.param("GET", "/files/*", {}, id="file"),
    pytest.param("POST", "/status", {"request_has": RUNNING}, id="claim"),
    pytest.param("POST", "/status", {"request_has": FINAL}, id="final-status"),
]


def finish_a_task(rig: Rig) -> None:
    """Have a task with a file done, once and for all, and every planned fault met by then."""
    name = rig.orchestrator.upload("note.txt", b"note" * 1000)["filename"]
    task_id = rig.orchestrator.create_task("[print-line done]", files=[name])["id"]
    rig.runner.start()
    rig.check_ended_once(task_id)
    assert (rig.runner.task_folder(task_id) / "files" / name).read_bytes() == b"note" * 1000
    wait_for(lambda: not rig.proxy.unused, DEADLINE_S)


# Lost answers


@pytest.mark.parametrize(("method", "path", "when"), EVERY_CALL)
def test_lost_answer_doubles_nothing_and_loses_nothing(
    method: str, path: str, when: dict[str, bytes], any_rig: Rig
) -> None:
    any_rig.proxy.plan(method, path, Fault.drop_answer(**when))
    finish_a_task(any_rig)
    assert any_rig.proxy.counts["drop-answer"] == 1
    # A registration cannot be asked about: the node whose key was lost stays behind, without work.
    assert len(any_rig.orchestrator.nodes()) == (2 if path == "/register" else 1)


@pytest.mark.parametrize(("method", "path", "when"), EVERY_CALL)
def test_half_of_an_answer_is_no_answer(
    method: str, path: str, when: dict[str, bytes], any_rig: Rig
) -> None:
    any_rig.proxy.plan(method, path, Fault.half_body(**when))
    finish_a_task(any_rig)
    assert any_rig.proxy.counts["half-body"] == 1


def test_session_whose_answer_is_lost_is_stored_once(any_rig: Rig) -> None:
    rig = any_rig
    task_id = rig.orchestrator.create_task("[print-line done]")["id"]
    rig.proxy.plan("POST", "/status", Fault.hold_request(request_has=FINAL))
    rig.runner.start()
    wait_for(lambda: rig.proxy.counts["hold-request"], DEADLINE_S)
    rig.runner.kill()
    rig.proxy.clear()
    put_into_outbox(rig, task_id, {"job_id": task_id, "task_id": task_id, "session": {"id": "s-1"}})
    rig.proxy.plan("POST", "/logs", Fault.drop_answer(), Fault.drop_answer())
    rig.runner.start()
    rig.check_ended_once(task_id)
    assert rig.orchestrator.log_of(task_id) == {"id": "s-1"}
    assert len(rig.proxy.requests("POST", "/logs")) == 3


def put_into_outbox(rig: Rig, task_id: str, body: dict[str, object]) -> None:
    """Have a runner that is not at work find one more letter, for /logs."""
    journal = sqlite3.connect(rig.runner.state_dir / "journal.sqlite3")
    with journal:
        journal.execute(
            "INSERT INTO outbox (task_id, path, body, created_at) VALUES (?, 'logs', ?, 0)",
            (task_id, json.dumps(body)),
        )
    journal.close()


def test_cancellation_whose_answer_is_lost_comes_with_the_next_heartbeat(any_rig: Rig) -> None:
    rig = any_rig
    task_id = rig.orchestrator.create_task("[hang]")["id"]
    rig.runner.start()
    rig.runner.wait_for_start_of(task_id)
    rig.proxy.plan(
        "POST", "/nodes/heartbeat", *2 * [Fault.drop_answer(answer_has=task_id.encode())]
    )
    rig.orchestrator.cancel(task_id)
    rig.runner.wait_until_closed(task_id)
    assert rig.proxy.counts["drop-answer"] == 2
    (report,) = rig.orchestrator.reports_of(task_id, "error")
    assert report["message"].startswith("cancelled: stopped after")


# Answers that are none


@pytest.mark.parametrize("status", [200, 502])
def test_page_for_people_in_place_of_an_answer_is_waited_out(status: int, any_rig: Rig) -> None:
    paths = ("/register", "/tasks/pending", "/nodes/heartbeat", "/status")
    for path in paths:
        any_rig.proxy.plan("*", path, Fault.html(status), Fault.html(status))
    task_id = any_rig.orchestrator.create_task("[print-line done]")["id"]
    any_rig.runner.start()
    any_rig.check_ended_once(task_id)
    sentence = {200: "its response is not JSON (Content-Type: text/html); ", 502: "HTTP 502"}
    assert f"cannot register: {sentence[status]}" in any_rig.runner.log
    assert f"Error polling for tasks: {sentence[status]}" in any_rig.runner.log
    assert f"cannot report a start, retrying in 0 s: {sentence[status]}" in any_rig.runner.log
    assert any_rig.proxy.counts["html"] >= 7


@pytest.mark.parametrize(
    ("method", "path", "when", "status"),
    [
        pytest.param("GET", "/tasks/pending", {}, 429, id="pending-429"),
        pytest.param("POST", "/status", {"request_has": RUNNING}, 503, id="claim-503"),
        pytest.param("POST", "/status", {"request_has": FINAL}, 429, id="final-status-429"),
        pytest.param("POST", "/status", {"request_has": FINAL}, 503, id="final-status-503"),
    ],
)
def test_retry_after_is_honoured(
    method: str, path: str, when: dict[str, bytes], status: int, any_rig: Rig
) -> None:
    any_rig.proxy.plan(method, path, Fault.answer(status, retry_after="2", **when))
    finish_a_task(any_rig)
    has = when.get("request_has", b"")
    asked = [found for found in any_rig.proxy.requests(method, path) if has in found.request]
    refused = next(number for number, found in enumerate(asked) if found.fault is not None)
    assert pause_after(asked, refused) >= 2


def test_registration_waits_as_it_is_told(any_rig: Rig) -> None:
    any_rig.proxy.plan("POST", "/register", Fault.answer(429, retry_after="2"))
    finish_a_task(any_rig)
    assert pause_after(any_rig.proxy.requests("POST", "/register"), 0) >= 2
    assert len(any_rig.orchestrator.nodes()) == 1


def pause_after(requests: list[Exchange], number: int) -> float:
    """Give the seconds from one request to the next."""
    return requests[number + 1].at - requests[number].at


# Connections


def test_connections_held_open_for_ever_are_given_up_at_the_deadline(any_rig: Rig) -> None:
    rig = any_rig
    rig.set_timings(call_timeout_s=3.0, stall_timeout_s=3.0, long_poll_s=1)
    rig.proxy.plan("POST", "/register", Fault.hold_request())
    rig.proxy.plan("GET", "/tasks/pending", Fault.hold_answer(answer_has=ASSIGNED))
    rig.proxy.plan("POST", "/nodes/heartbeat", Fault.hold_answer(), Fault.hold_request())
    rig.proxy.plan("GET", "/files/*", Fault.hold_request(), Fault.hold_answer())
    rig.proxy.plan("POST", "/status", Fault.hold_request(request_has=RUNNING))
    rig.proxy.plan("POST", "/status", Fault.hold_answer(request_has=RUNNING))
    rig.proxy.plan("POST", "/status", Fault.hold_answer(request_has=FINAL))
    finish_a_task(rig)
    assert "cannot register: no response within 3 s" in rig.runner.log
    assert "Error polling for tasks: no response within 4 s" in rig.runner.log
    assert "cannot deliver a report, retrying in 0 s: no response within 3 s" in rig.runner.log


def test_orchestrator_that_refuses_connections_for_a_while_is_told_the_end_then(
    any_rig: Rig,
) -> None:
    rig = any_rig
    task_id = rig.orchestrator.create_task("[wait-for go]")["id"]
    rig.proxy.refuse()
    rig.runner.start()
    rig.runner.wait_for_log("cannot register: Connection refused")
    rig.proxy.accept()
    rig.runner.wait_for_start_of(task_id)
    rig.proxy.refuse()
    rig.runner.let_go("go")
    rig.runner.wait_for_log("cannot deliver a report")
    assert "Connection refused" in rig.runner.log
    rig.proxy.accept()
    rig.check_ended_once(task_id)
    assert len(rig.orchestrator.nodes()) == 1


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Make certificates, once for all tests here."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize(
    ("shown", "sentence"),
    [
        ("untrusted", "its TLS certificate is not trusted: unable to get local issuer certificate"),
        ("expired", "its TLS certificate is not trusted: certificate has expired"),
    ],
)
def test_server_with_a_bad_certificate_is_told_nothing_until_it_has_a_good_one(
    shown: str, sentence: str, any_rig: Rig, certificates: Certificates
) -> None:
    rig = any_rig
    bad = certificates.expired if shown == "expired" else certificates.untrusted
    task_id = rig.orchestrator.create_task("[wait-for go]")["id"]
    with FaultProxy(rig.orchestrator.url, bad) as server:
        rig.set_option("--orchestrator-url", server.url)
        rig.set_option("--ca-file", str(certificates.ca_file))
        rig.runner.start()
        rig.runner.wait_for_log(f"cannot register: {sentence}")
        assert server.exchanges == []

        server.present(certificates.trusted)
        rig.runner.wait_for_start_of(task_id)
        server.present(bad)
        seen = len(server.exchanges)
        rig.runner.let_go("go")
        rig.runner.wait_for_log("cannot deliver a report")
        assert len(server.exchanges) == seen

        server.present(certificates.trusted)
        rig.check_ended_once(task_id)
        rig.runner.kill()
