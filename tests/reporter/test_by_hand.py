"""The reporter's process: a session typed by hand as JSON-RPC, and what it does without a task."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from runner.errors import ConfigurationError
from runner.model import TaskStatus
from runner.reporter.job import job_in, missing_in
from runner.workspace.handover import FinalStatus
from tests.harness.until import until
from tests.reporter.conftest import COMMAND, ROOT, Agent, Held, Json

DEADLINE_S = 90
UNREACHABLE = "http://127.0.0.1:1"
COMPLETE = (
    '{"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {"name": "report_complete",'
    ' "arguments": {"message": "12", "submit_logs": false}}}'
)
"""A request whose response nobody reads."""


class Typist:
    """Types requests as lines and reads the responses, without the SDK."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        assert process.stdout
        self._stdin, self._stdout = process.stdin, process.stdout
        self._number = 0

    def type(self, line: str) -> None:
        self._stdin.write(line.encode() + b"\n")
        self._stdin.flush()

    def request(self, method: str, **params: object) -> Json:
        """Send a request; return its result."""
        self._number += 1
        request = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        self.type(json.dumps(request))
        response: Json = json.loads(self._stdout.readline())
        assert response["id"] == self._number
        result: Json = response["result"]
        return result

    def hello(self) -> Json:
        """Begin a session; return how the server introduces itself."""
        client = {"name": "by hand", "version": "1"}
        result = self.request(
            "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo=client
        )
        self.type('{"jsonrpc": "2.0", "method": "notifications/initialized"}')
        return result

    def call(self, tool: str, *, is_error: bool = False, **arguments: object) -> Json:
        """Call a tool; return its answer, which is in the result twice."""
        result = self.request("tools/call", name=tool, arguments=arguments)
        assert result["isError"] is is_error
        answer: Json = result["structuredContent"]
        assert json.loads(result["content"][0]["text"]) == answer
        return answer


def started(variables: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        COMMAND,
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@contextmanager
def typing(variables: dict[str, str], *, is_heard: bool = True) -> Iterator[Typist]:
    """Start a reporter; it must exit with 0 at the end of its input, all responses `is_heard`."""
    with started(variables) as process:
        try:
            yield Typist(process)
            output, errors = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
        assert (process.returncode, errors) == (0, b"")
        assert not (is_heard and output)


@pytest.mark.usefixtures("crush")
def test_session_typed_by_hand_calls_every_tool_and_the_first_end_stands(held: Held) -> None:
    # Messages that look like JSON are text all the same.
    calls: dict[str, dict[str, Any]] = {
        "get_job_info": {},
        "report_started": {"message": "null"},
        "report_status": {"status": "analyzing", "message": '{"sales": 12}', "progress": 50.5},
        "submit_crush_logs": {},
        "report_error": {"error_message": "12"},
        "report_complete": {"message": "yes after all", "submit_logs": False},
    }
    with typing(held.variables) as typist:
        assert typist.hello()["serverInfo"]["name"] == "victoria-status-reporter"
        assert {tool["name"] for tool in typist.request("tools/list")["tools"]} == set(calls)
        answers = {name: typist.call(name, **arguments) for name, arguments in calls.items()}
    assert held.api_key not in str(answers)
    info = answers.pop("get_job_info")
    assert (info["job_id"], info["orchestrator_url"]) == (held.task_id, held.orchestrator.url)
    assert (info["has_api_key"], info["final_status"]) == (True, None)
    assert info["artifacts_dir"] == held.variables["TASK_ARTIFACTS_DIR"]
    assert all(answer["sent"] for answer in answers.values())
    history = held.task["history"]
    steps = [(step["status"], step.get("message"), step.get("progress")) for step in history]
    assert ("running", "null", None) in steps
    assert ("analyzing", '{"sales": 12}', 50.5) in steps
    assert answers["report_error"]["logs"]["sent"] is True
    assert answers["report_complete"]["task_status"] == held.task["status"] == "error"
    assert "changed nothing" in answers["report_complete"]["note"]
    assert held.task["error_message"] == "12"
    assert held.state.final is not None
    assert held.log["id"] == "s1"


def test_report_is_sent_though_the_agent_goes_away_at_once(held: Held) -> None:
    with typing(held.variables, is_heard=False) as typist:
        typist.hello()
        typist.type(COMPLETE)
    assert (held.task["status"], held.task["result"]) == ("success", "12")


@pytest.mark.anyio
async def test_end_that_a_killed_reporter_has_kept_is_the_tasks_end(
    held: Held, agent: Agent
) -> None:
    with started({**held.variables, "ORCHESTRATOR_URL": UNREACHABLE}) as killed:
        typist = Typist(killed)
        typist.hello()
        typist.type(COMPLETE)
        await until(lambda: held.state.final is not None)
        killed.kill()
    await agent.call("report_complete", message="13", submit_logs=False)
    assert (held.task["status"], held.task["result"]) == ("success", "12")
    assert held.state.final == FinalStatus(TaskStatus.SUCCESS, "12", None, is_sent=True)


STATUSES = "status must be one of running, analyzing, success, error, and is "
WRONG = "error_message must be text that says what went wrong, and is "


@pytest.mark.parametrize(
    ("tool", "arguments", "sentence"),
    [
        ("report_status", {"status": "done"}, STATUSES + "'done'"),
        ("report_status", {"status": ["running"]}, STATUSES + "['running']"),
        ("report_status", {}, STATUSES + "missing"),
        ("report_status", {"status": "running", "progress": -1}, "progress must be a number from"),
        ("report_status", {"status": "running", "progress": 101}, "and is 101"),
        ("report_status", {"status": "running", "progress": "half"}, "and is 'half'"),
        ("report_status", {"status": "running", "progress": True}, "and is True"),
        ("report_status", {"status": "running", "progress": 10**400}, "progress must be"),
        ("report_status", {"status": "running", "message": 7}, "message must be text, and is 7"),
        ("report_status", {"status": "running", "text": "x"}, "takes status, message, progress, a"),
        ("report_complete", {"submit_logs": "no"}, "submit_logs must be true or false, and is 'n"),
        ("report_error", {"error_message": " \n"}, WRONG),
        ("submit_crush_logs", {"session_id": 9}, "session_id must be text, and is 9"),
        ("get_job_info", {"x": 1}, "get_job_info takes no arguments, and not 'x'"),
        ("report_victory", {}, "there is no tool 'report_victory'; the tools are report_status"),
    ],
)
def test_wrong_argument_is_answered_in_one_sentence_and_marked_as_an_error(
    typist: Typist, tool: str, arguments: dict[str, Any], sentence: str
) -> None:
    answer = typist.call(tool, is_error=True, **arguments)
    assert answer == {"sent": False, "error": answer["error"]}
    assert sentence in answer["error"]
    assert "\n" not in answer["error"]


@pytest.fixture(scope="module")
def nobody(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables of a task whose orchestrator must not get a request."""
    home = str(tmp_path_factory.mktemp("home"))
    task = {"JOB_ID": "t-1", "TASK_ID": "", "NODE_API_KEY": "a-key", "VICTORIA_HOME": home}
    return {"ORCHESTRATOR_URL": UNREACHABLE, **task}


@pytest.fixture(scope="module")
def typist(nobody: dict[str, str]) -> Iterator[Typist]:
    with typing(nobody) as typist:
        typist.hello()
        yield typist


@pytest.mark.parametrize("line", ["no JSON", '{"jsonrpc": "2.0"}', "[]", '{"id": 1}'])
def test_line_that_is_not_a_request_does_no_harm(typist: Typist, line: str) -> None:
    typist.type(line)
    assert typist.request("ping") == {}


@pytest.mark.parametrize(
    ("changed", "exit_code", "sentence"),
    [
        ({"ORCHESTRATOR_URL": ""}, 0, "ORCHESTRATOR_URL is not set: there is nobody to report to"),
        ({"NODE_API_KEY": "a\nb"}, 78, "cannot use NODE_API_KEY"),
    ],
    ids=["no URL", "key"],
)
def test_variable_that_cannot_be_used_is_reported_in_one_line(
    nobody: dict[str, str], changed: dict[str, str], exit_code: int, sentence: str
) -> None:
    done = run({**nobody, **changed})
    assert (done.returncode, done.stdout) == (exit_code, "")
    assert done.stderr.startswith(f"victoria-status-reporter: {sentence}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"), [("JOB_ID", "../../etc"), ("ORCHESTRATOR_URL", "ftp://x")]
)
def test_variable_of_a_wrong_form_cannot_be_used(
    nobody: dict[str, str], name: str, value: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^cannot use {name} '{value}'"):
        job_in({**nobody, name: value})
    assert missing_in({**nobody, name: ""}) == name


def test_environment_without_the_sdk_is_reported_in_one_line(nobody: dict[str, str]) -> None:
    module = "runpy.run_module('runner.status_reporter', run_name='__main__')"
    program = f"import runpy, sys; sys.modules['mcp'] = None; {module}"
    done = run(nobody, sys.executable, "-c", program)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "victoria-status-reporter: cannot start without the package mcp: "
        "install 'victoria-runner[reporter]' in this environment\n"
    )


def run(variables: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """Run a reporter that must end by itself."""
    return subprocess.run(
        command or COMMAND,
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
