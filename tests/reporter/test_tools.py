"""What an agent can do with the reporter, seen from the orchestrator."""

from typing import Any

import pytest

from runner.model import TaskStatus
from runner.workspace.handover import FinalStatus
from tests.fakes.crush import Crush, text
from tests.reporter.conftest import Agent, Held, connected

pytestmark = pytest.mark.anyio


async def test_six_tools_are_listed_with_their_parameters(agent: Agent) -> None:
    tools = (await agent.client.list_tools()).tools
    schemas = {tool.name: tool.input_schema for tool in tools}
    listed = {name: (list(s["properties"]), s.get("required", [])) for name, s in schemas.items()}
    assert listed == {
        "report_status": (["status", "message", "progress"], ["status"]),
        "report_started": (["message"], []),
        "report_complete": (["message", "submit_logs"], []),
        "report_error": (["error_message", "submit_logs"], ["error_message"]),
        "submit_crush_logs": (["session_id"], []),
        "get_job_info": ([], []),
    }
    assert all(tool.description for tool in tools)
    parameters = {name: each for s in schemas.values() for name, each in s["properties"].items()}
    assert all(parameter["description"] for parameter in parameters.values())
    assert parameters["status"]["enum"] == ["running", "analyzing", "success", "error"]
    assert parameters["submit_logs"]["default"] is True


async def test_success_submits_the_log_first_and_the_next_reporter_continues_from_there(
    held: Held, agent: Agent, crush: Crush
) -> None:
    crush.say("s1", text("There are 12."))
    answer = await agent.call("report_complete", message="12 sales")
    assert (answer["sent"], answer["logs"]["session_id"]) == (True, "s1")
    assert (held.task["status"], held.task["result"]) == ("success", "12 sales")
    assert held.task["crush_session_id"] == "s1"
    contents = [message["content"] for message in held.log["messages"]]
    assert contents == ["Count the sales", "There are 12."]
    assert held.state.final == FinalStatus(TaskStatus.SUCCESS, "12 sales", "s1", is_sent=True)
    async with connected(held.variables) as next_agent:
        info = await next_agent.call("get_job_info")
    assert (info["logs_submitted"], info["final_status"]) == (True, "success")


@pytest.mark.usefixtures("crush")
async def test_end_without_logs_submits_none(held: Held, agent: Agent) -> None:
    assert "logs" not in await agent.call("report_complete", submit_logs=False)
    assert held.state.log_digest is None
    assert held.orchestrator.admin.get(f"/logs/{held.task_id}").status_code == 404


@pytest.mark.usefixtures("crush")
@pytest.mark.parametrize("arguments", [{}, {"session_id": "s1"}, {"session_id": None}])
async def test_log_is_submitted_alone(held: Held, agent: Agent, arguments: dict[str, Any]) -> None:
    answer = await agent.call("submit_crush_logs", **arguments)
    assert (answer["sent"], answer["session_id"], answer["message_count"]) == (True, "s1", 1)
    assert held.log["id"] == "s1"
    assert held.task["status"] != "success"
    assert held.state.final is None


async def test_agent_of_a_cancelled_task_is_asked_to_stop(held: Held, agent: Agent) -> None:
    held.orchestrator.cancel(held.task_id)
    answer = await agent.call("report_status", status="running")
    assert answer["task_status"] == "cancelled"
    assert "stop working" in answer["note"]


async def test_agent_is_asked_to_call_again_if_there_are_two_sessions(
    agent: Agent, crush: Crush
) -> None:
    crush.begin("s2", prompt="Draw the map")
    refused = await agent.call("submit_crush_logs")
    assert refused["sent"] is False
    assert "2 sessions could be this task's" in refused["error"]
    # As Crush does with every answer.
    crush.say("s1", [{"type": "tool_result", "data": {"content": refused["error"]}}])
    answer = await agent.call("submit_crush_logs")
    assert (answer["sent"], answer["session_id"]) == (True, "s1")


async def test_secrets_are_redacted_in_messages_and_in_the_log(held: Held, crush: Crush) -> None:
    printed = f"NODE_API_KEY={held.api_key}\nAPI_PASSWORD='hunter2-hunter2'\nLANG=a-language"
    crush.say("s1", [{"type": "tool_result", "data": {"name": "bash", "content": printed}}])
    operators = {"API_PASSWORD": "hunter2-hunter2", "LANG": "a-language"}
    secrets = {"VICTORIA_SECRETS": "API_PASSWORD NOT_SET"}
    async with connected({**held.variables, **operators, **secrets}) as agent:
        message = f"It is {held.api_key}, and hunter2-hunter2."
        await agent.call("report_complete", message=message)
    assert held.task["result"] == "It is ***, and ***."
    shown = "[tool result: bash]\nNODE_API_KEY=***\nAPI_PASSWORD='***'\nLANG=a-language"
    assert held.log["messages"][-1]["content"] == shown
