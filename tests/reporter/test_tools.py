"""What an agent that is a real client can do with the reporter, seen from the orchestrator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runner.model import TaskStatus
from runner.workspace.handover import FinalStatus
from tests.fakes.crush import Crush, text
from tests.reporter.held import Held, connected

if TYPE_CHECKING:
    from tests.orchestrator.serving import RunningOrchestrator

pytestmark = pytest.mark.anyio


async def test_six_tools_are_listed_with_their_parameters(held: Held) -> None:
    async with connected(held.variables) as agent:
        tools = (await agent.client.list_tools()).tools

    taken = {
        tool.name: (list(tool.input_schema["properties"]), tool.input_schema.get("required", []))
        for tool in tools
    }
    assert taken == {
        "report_status": (["status", "message", "progress"], ["status"]),
        "report_started": (["message"], []),
        "report_complete": (["message", "submit_logs"], []),
        "report_error": (["error_message", "submit_logs"], ["error_message"]),
        "submit_crush_logs": (["session_id"], []),
        "get_job_info": ([], []),
    }
    assert all(tool.description for tool in tools)


async def test_parameters_have_descriptions_and_defaults(held: Held) -> None:
    async with connected(held.variables) as agent:
        tools = (await agent.client.list_tools()).tools

    parameters = {
        name: schema for tool in tools for name, schema in tool.input_schema["properties"].items()
    }
    assert all(schema["description"] for schema in parameters.values())
    assert parameters["status"]["enum"] == ["running", "analyzing", "success", "error"]
    assert parameters["submit_logs"]["default"] is True


@pytest.mark.parametrize("message", ['{"sales": 12}', "[12, 13]", "null", "12"])
async def test_message_that_is_json_is_reported_as_it_is(held: Held, message: str) -> None:
    async with connected(held.variables) as agent:
        answer = await agent.call("report_complete", message=message, submit_logs=False)

    assert answer["sent"] is True
    assert held.task["result"] == message


async def test_null_stands_for_what_is_left_out(held: Held) -> None:
    async with connected(held.variables) as agent:
        answer = await agent.call("report_status", status="running", message=None, progress=None)

    assert answer["sent"] is True


@pytest.mark.usefixtures("crush")
async def test_start_and_progress_are_shown_by_the_orchestrator(held: Held) -> None:
    async with connected(held.variables) as agent:
        started = await agent.call("report_started", message="off we go")
        analyzing = await agent.call(
            "report_status", status="analyzing", message="half of it", progress=45
        )

    assert (started["sent"], analyzing["sent"]) == (True, True)
    steps = [(step["status"], step["message"], step["progress"]) for step in held.task["history"]]
    assert ("running", "off we go", None) in steps
    assert ("analyzing", "half of it", 45.0) in steps
    assert held.task["status"] == "analyzing"
    assert held.task["crush_session_id"] == "s1"
    assert held.trace.final is None


async def test_success_hands_in_the_log_first(held: Held, crush: Crush) -> None:
    crush.say("s1", text("There are 12."))
    async with connected(held.variables) as agent:
        answer = await agent.call("report_complete", message="12 sales")

    assert answer["sent"] is True
    assert answer["logs"]["session_id"] == "s1"
    assert (held.task["status"], held.task["result"]) == ("success", "12 sales")
    assert held.task["crush_session_id"] == "s1"
    assert [message["content"] for message in held.log["messages"]] == [
        "Count the sales",
        "There are 12.",
    ]
    assert held.trace.final == FinalStatus(TaskStatus.SUCCESS, "12 sales", "s1", is_sent=True)
    assert held.trace.log_session_id == "s1"


@pytest.mark.usefixtures("crush")
async def test_failure_is_told_with_its_message(held: Held) -> None:
    async with connected(held.variables) as agent:
        answer = await agent.call("report_error", error_message="the sales are in Klingon")

    assert (answer["sent"], answer["logs"]["sent"]) == (True, True)
    assert (held.task["status"], held.task["error_message"]) == (
        "error",
        "the sales are in Klingon",
    )


@pytest.mark.usefixtures("crush")
async def test_end_without_logs_hands_none_in(held: Held) -> None:
    async with connected(held.variables) as agent:
        answer = await agent.call("report_complete", submit_logs=False)

    assert "logs" not in answer
    assert held.trace.log_digest is None
    assert held.orchestrator.admin.get(f"/logs/{held.task_id}").status_code == 404


@pytest.mark.usefixtures("crush")
@pytest.mark.parametrize("arguments", [{}, {"session_id": "s1"}, {"session_id": None}])
async def test_log_is_handed_in_when_asked_for(
    held: Held, arguments: dict[str, str | None]
) -> None:
    async with connected(held.variables) as agent:
        answer = await agent.call("submit_crush_logs", **arguments)

    assert (answer["sent"], answer["session_id"], answer["message_count"]) == (True, "s1", 1)
    assert held.log["id"] == "s1"
    assert held.task["status"] != "success"


async def test_job_is_shown_without_its_key(held: Held) -> None:
    async with connected(held.variables) as agent:
        answer = await agent.call("get_job_info")

    assert answer["job_id"] == held.task_id
    assert answer["orchestrator_url"] == held.orchestrator.url
    assert (answer["has_api_key"], answer["final_status"]) == (True, None)
    assert held.api_key not in str(answer)


async def test_first_final_status_stands_and_the_agent_is_told(held: Held) -> None:
    async with connected(held.variables) as agent:
        await agent.call("report_error", error_message="no")
        answer = await agent.call("report_complete", message="yes after all")

    assert answer["task_status"] == "error"
    assert "changed nothing" in answer["note"]
    assert held.trace.final is not None
    assert held.trace.final.status == "error"


async def test_agent_of_a_cancelled_task_is_told_to_stop(
    held: Held, orchestrator: RunningOrchestrator
) -> None:
    orchestrator.cancel(held.task_id)
    async with connected(held.variables) as agent:
        answer = await agent.call("report_status", status="running")

    assert answer["task_status"] == "cancelled"
    assert "stop working" in answer["note"]


async def test_key_does_not_leave_in_a_message(held: Held) -> None:
    async with connected(held.variables) as agent:
        await agent.call("report_status", status="running", message=f"I found {held.api_key}!")

    assert held.task["history"][-1]["message"] == "I found ***!"


@pytest.mark.usefixtures("crush")
async def test_next_reporter_of_the_task_goes_on_from_the_trace(held: Held) -> None:
    async with connected(held.variables) as agent:
        await agent.call("report_complete")
    async with connected(held.variables) as agent:
        answer = await agent.call("get_job_info")

    assert (answer["logs_submitted"], answer["final_status"]) == (True, "success")


async def test_of_two_sessions_the_agent_is_asked_to_read_the_mark_and_call_again(
    held: Held, crush: Crush
) -> None:
    crush.begin("s2", prompt="Draw the map")
    async with connected(held.variables) as agent:
        refused = await agent.call("submit_crush_logs")
        # As Crush does with every answer.
        crush.say("s1", [{"type": "tool_result", "data": {"content": refused["error"]}}])
        answer = await agent.call("submit_crush_logs")

    assert refused["sent"] is False
    assert "2 sessions could be this task's" in refused["error"]
    assert (answer["sent"], answer["session_id"]) == (True, "s1")


async def test_secrets_do_not_leave_in_the_log(held: Held, crush: Crush) -> None:
    printed = f"NODE_API_KEY={held.api_key}\nAPI_PASSWORD='hunter2-hunter2'\nLANG=a-language"
    crush.say("s1", [{"type": "tool_result", "data": {"name": "bash", "content": printed}}])
    given = {
        "API_PASSWORD": "hunter2-hunter2",
        "LANG": "a-language",
        "VICTORIA_SECRETS": "API_PASSWORD NOT_SET",
    }
    async with connected({**held.variables, **given}) as agent:
        await agent.call("report_complete", message="It is hunter2-hunter2.")

    assert held.log["messages"][-1]["content"] == (
        "[tool result: bash]\nNODE_API_KEY=***\nAPI_PASSWORD='***'\nLANG=a-language"
    )
    assert held.task["result"] == "It is ***."
