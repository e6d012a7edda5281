"""The orchestrator's responses are lost, cut or late: nothing is doubled and nothing is lost."""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.crush import Crush
from tests.faults.certificates import make_certificates
from tests.faults.rig import Rig
from tests.harness.proxy import Fault, FaultProxy, Kind
from tests.harness.runner_process import DEADLINE_S
from tests.orchestrator.serving import wait_for

CLAIM: dict[str, Any] = {"request_has": b'"running"'}
FINAL: dict[str, Any] = {"request_has": b'"success"'}
ASSIGNED: dict[str, Any] = {"answer_has": b"task_id"}


def finish_a_task(rig: Rig) -> None:
    """Run a task with a file to its end, by which every planned fault has been met."""
    name = rig.orchestrator.upload("note.txt", b"note" * 1000)["filename"]
    task_id = rig.orchestrator.create_task("[print-line done]", files=[name])["id"]
    rig.runner.start()
    rig.check_ended_once(task_id)
    assert (rig.runner.task_folder(task_id) / "files" / "note.txt").read_bytes() == b"note" * 1000
    wait_for(lambda: not rig.proxy.unused, DEADLINE_S)


@pytest.mark.parametrize("kind", [Kind.DROP_ANSWER, Kind.HALF_BODY])
@pytest.mark.parametrize(
    ("method", "path", "when"),
    [
        ("POST", "/register", {}),
        ("GET", "/tasks/pending", ASSIGNED),
        ("POST", "/nodes/heartbeat", {}),
        ("GET", "/files/*", {}),
        ("POST", "/status", CLAIM),
        ("POST", "/status", FINAL),
    ],
    ids=["register", "pending", "heartbeat", "file", "claim", "final-status"],
)
def test_response_that_is_lost_or_cut_doubles_nothing_and_loses_nothing(
    kind: Kind, method: str, path: str, when: dict[str, Any], rig: Rig
) -> None:
    rig.proxy.plan(method, path, Fault(kind, **when))
    finish_a_task(rig)
    assert rig.proxy.counts[kind.value] == 1
    # A registration cannot be asked about: the node whose key was lost stays behind, without work.
    assert len(rig.orchestrator.nodes()) == (2 if path == "/register" else 1)


def test_session_whose_response_is_lost_is_stored_once(rig: Rig) -> None:
    prompt = "Count the sales [wait-for go]"
    task_id = rig.begin(prompt)
    crush = Crush(rig.runner.home / ".crush" / "crush.db", now=int(time.time()))
    crush.begin("s-1", prompt=prompt)
    crush.close()
    rig.proxy.plan("POST", "/logs", *2 * [Fault(Kind.DROP_ANSWER)])
    rig.runner.let_go("go")
    rig.check_ended_once(task_id)
    assert rig.orchestrator.log_of(task_id)["id"] == "s-1"
    assert len(rig.proxy.requests("POST", "/logs")) == 3


def test_cancellation_whose_response_is_lost_comes_with_the_next_heartbeat(rig: Rig) -> None:
    task_id = rig.begin("[hang]")
    lost = Fault(Kind.DROP_ANSWER, answer_has=task_id.encode())
    rig.proxy.plan("POST", "/nodes/heartbeat", lost, lost)
    rig.orchestrator.cancel(task_id)
    rig.runner.wait_until_closed(task_id)
    assert rig.proxy.counts["drop-answer"] == 2
    (report,) = rig.orchestrator.reports_of(task_id, "error")
    assert report["message"].startswith("cancelled: stopped after")


@pytest.mark.long
def test_connections_held_open_for_ever_are_given_up_at_the_deadline(rig: Rig) -> None:
    request, response = Fault(Kind.HOLD_REQUEST), Fault(Kind.HOLD_ANSWER)
    claims = [Fault(kind, **CLAIM) for kind in (Kind.HOLD_REQUEST, Kind.HOLD_ANSWER)]
    rig.runner.set_timings(call_timeout_s=3.0, stall_timeout_s=3.0, long_poll_s=1)
    rig.proxy.plan("POST", "/register", request)
    rig.proxy.plan("GET", "/tasks/pending", Fault(Kind.HOLD_ANSWER, **ASSIGNED))
    rig.proxy.plan("POST", "/nodes/heartbeat", response, request)
    rig.proxy.plan("GET", "/files/*", request, response)
    rig.proxy.plan("POST", "/status", *claims, Fault(Kind.HOLD_ANSWER, **FINAL))
    finish_a_task(rig)
    assert "cannot register: no response within 3 s" in rig.runner.log
    assert "Error polling for tasks: no response within 4 s" in rig.runner.log
    assert "cannot deliver a report, retrying in 0 s: no response within 3 s" in rig.runner.log


def test_end_is_reported_when_an_orchestrator_takes_connections_again(rig: Rig) -> None:
    rig.runner.set_options(max_tasks=2)  # it polls beside the task
    rig.proxy.refuse()
    task_id = rig.start("[wait-for go]")
    rig.runner.wait_for_log("cannot register: Connection refused")
    rig.proxy.accept()
    rig.runner.wait_for_start_of(task_id)
    rig.proxy.refuse()
    rig.runner.wait_for_log("Error polling for tasks: Connection refused")
    rig.runner.let_go("go")
    rig.runner.wait_for_log("cannot deliver a report")
    rig.proxy.accept()
    rig.check_ended_once(task_id)
    assert len(rig.orchestrator.nodes()) == 1


def test_server_with_a_bad_certificate_is_sent_nothing_until_it_has_a_good_one(
    rig: Rig, tmp_path: Path
) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    bad = "its TLS certificate is not trusted: "
    with FaultProxy(rig.orchestrator.url, certificates.untrusted) as server:
        rig.runner.set_options(orchestrator_url=server.url, ca_file=certificates.ca_file)
        task_id = rig.start("[wait-for go]")
        rig.runner.wait_for_log(f"cannot register: {bad}self-signed certificate")
        assert server.exchanges == []

        server.present(certificates.trusted)
        rig.runner.wait_for_start_of(task_id)
        server.present(certificates.expired)
        seen = len(server.exchanges)
        rig.runner.let_go("go")
        rig.runner.wait_for_log("cannot deliver a report")
        rig.runner.wait_for_log(f"{bad}certificate has expired")
        assert len(server.exchanges) == seen

        server.present(certificates.trusted)
        rig.check_ended_once(task_id)
        rig.runner.kill()
