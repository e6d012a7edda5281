"""Every end has its reason, a sentence and the last lines, and no secret in them."""

from typing import Any

import pytest

from runner.errors import EngineError, EngineSilent
from runner.model import Limits
from tests.harness.host import Host, container_of
from tests.harness.orchestrator import POLL, TOKEN
from tests.harness.until import until
from tests.loops.steps import Log, finish_another

pytestmark = pytest.mark.anyio

LINES = [f"line {number}" for number in range(30)]
PRINT_LINES = "".join(f"[print-line {line}]" for line in LINES)
LAST_LINES = "\n".join(LINES[10:])
OUT_OF_MEMORY = "out_of_memory: the kernel killed it because it was out of memory after 0 s"
NO_START = "unstartable: cannot start the container: "


@pytest.mark.parametrize(
    ("end", "facts"),
    [
        ("", {"reason": "completed", "exit_code": 0}),
        (
            "[print-line a-secret][fail 3]",
            {"reason": "failed", "exit_code": 3, "outcome": "failed: exit code 3 after 125 s"},
        ),
    ],
    ids=["completed", "failed"],
)
async def test_log_has_the_duration_of_a_task_and_what_ended_it(
    host: Host, log: Log, end: str, facts: dict[str, object]
) -> None:
    async with host.running_task(f"[wait-for go]{end}"):
        await host.clock.advance(125)
        host.let_go()
        await host.wait_for_end()
    (event,) = [record for record in log.records if record.message == "task has ended"]
    assert vars(event)["fields"] == {"task_id": "t-1", "duration_s": 125, **facts}
    assert "a-secret" not in log.text


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("[print-line well]", {}, "completed: exit code 0 after 0 s\nwell"),
        (f"{PRINT_LINES}[fail 42]", {}, f"failed: exit code 42 after 0 s\n{LAST_LINES}"),
        ("--help", {}, "completed: exit code 0 after 0 s\ntask: --help"),
        ("---\ntitle: x\n---", {}, "completed: exit code 0 after 0 s\ntask: ---\ntitle: x\n---"),
        ("[fail 137]", {}, "failed: exit code 137 after 0 s"),
        ("[eat-memory 9]", {"limits": Limits(memory="8m")}, OUT_OF_MEMORY),
        ("do it", {"run_args": ("--no-flag",)}, f"{NO_START}unknown flag: --no-flag"),
        ("do it", {"run_args": ("--entrypoint", "/")}, f"{NO_START}no such file or directory"),
    ],
    ids=[
        *("completed", "failed", "like an option", "front matter"),
        *("killed", "out of memory", "refused", "start that fails"),
    ],
)
async def test_end_has_its_reason_and_the_last_lines(
    host: Host, prompt: str, options: dict[str, Any], message: str
) -> None:
    host.orchestrator.offer("t-1", prompt)
    async with host.runner(**options):
        await host.pass_time_until_closed("t-1", step_s=2.0)
        end = await host.wait_for_end()
    assert end["status"] == ("success" if message.startswith("completed") else "error")
    assert end["message"] == message
    assert await host.engine.inspect(container_of("t-1")) is None


@pytest.mark.parametrize("by_s", [0, 3600, -3600], ids=["same clock", "forward", "back"])
async def test_timed_out_by_the_time_that_passed_on_any_clock(host: Host, by_s: float) -> None:
    async with host.running_task("[hang]", {"timeout_seconds": 600}):
        await host.clock.advance(300)
        host.clock.set_wall(by_s)
        await host.clock.advance(299)
        assert host.state_of("t-1") == "running"
        await host.clock.advance(2)
        end = await host.wait_for_end()
    assert end["message"].startswith("timed_out: stopped after ")
    assert end["message"].endswith(" s, its time limit of 600 s was up")


async def test_task_whose_container_ended_in_order_to_be_removed_is_lost(host: Host) -> None:
    async with host.running_task("[hang]"):
        await host.engine.stop(container_of("t-1"))
        await until(lambda: host.engine.called["last_output"] == 1)
        host.engine.remove_behind(container_of("t-1"))
        await host.pass_time_until_closed("t-1", step_s=2.0)
        assert (await host.wait_for_end())["message"].startswith("lost: container is gone")


@pytest.mark.parametrize("call", ["fetch_image", "run"])
async def test_unstartable_after_an_hour_with_a_silent_engine(host: Host, call: str) -> None:
    sentence = "cannot do podman: no answer"
    host.orchestrator.holds = True
    async with host.runner(heartbeat_interval_s=300.0):
        await host.wait_for_calls(POLL)
        host.engine.break_(call, EngineSilent(sentence))
        host.orchestrator.offer()
        await until(lambda: host.engine.called[call] >= 1)
        await host.clock.advance(3603)
        end = await host.wait_for_end()
    assert end["message"] == f"unstartable: {sentence}"
    assert host.starts_of("t-1") == 0


async def test_env_file_that_becomes_unusable_before_a_start_is_named(host: Host) -> None:
    env_file = host.folder / "env"
    env_file.write_text("A=1\n")
    host.orchestrator.holds = True
    async with host.runner(env_file=env_file):
        await host.wait_for_calls(POLL)
        host.engine.shut("fetch_image")
        for task_id in ("t-1", "t-2"):
            host.orchestrator.offer(task_id)
        await until(lambda: host.engine.waiting["fetch_image"] == 1)
        env_file.write_text("no pair\n")
        host.engine.open("fetch_image")
        end = await host.wait_for_end()
        assert end["message"].startswith("unstartable: cannot prepare the container's variables: ")
        assert "line 1 is not NAME=VALUE" in end["message"]
        env_file.write_text("A=1\n")
        await host.pass_time_until_closed("t-2")
        assert (await host.wait_for_end("t-2"))["status"] == "success"


async def test_known_secrets_are_redacted_in_the_last_lines(
    host: Host, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    # podman passes the runner's own proxy on to containers; an engine may have another for them.
    monkeypatch.setenv("FTP_PROXY", "http://svc:Sup3rSecret!@proxy")
    env_file = host.folder / "env"
    env_file.write_text(
        'API_PASSWORD=hunter2-hunter2\nQUOTED="quoted-secret" # so\nHTTP_PROXY=svc:0ther-Secret@p\n'
    )
    shown = f"[env API_PASSWORD][env NODE_API_KEY][print-line {TOKEN}][print-line quoted-secret]"
    proxies = "[print-line Sup3rSecret!][print-line 0ther-Secret]"
    end = await host.finish_task(f"{shown}{proxies}[fail 1]", env_file=env_file)
    variables = ["API_PASSWORD=***", "NODE_API_KEY=***"]
    assert end["message"].split("\n")[1:] == [*variables, *(["***"] * 4)]
    for secret in (
        "hunter2-hunter2",
        "node-key-1",
        TOKEN,
        "quoted-secret",
        "Sup3rSecret!",
        "0ther-Secret",
    ):
        assert secret not in log.text


async def test_output_that_cannot_be_read_does_not_lose_the_end(host: Host) -> None:
    host.engine.fail("last_output", EngineError("cannot do podman logs: no"))
    end = await host.finish_task("[fail 5]")
    assert end["message"].startswith("failed: exit code 5 after 0 s\n(its output cannot be read")


async def test_container_has_its_variables_by_a_file_that_is_gone_when_it_runs(host: Host) -> None:
    env_file = host.folder / "env"
    env_file.write_text("JOB_ID='an intruder'\n")
    prompt = "[env JOB_ID][env ORCHESTRATOR_URL][env TASK_FILES_DIR]"
    url = f"{host.orchestrator.url}/below"
    end = await host.finish_task(prompt, {"orchestrator_url": url}, env_file=env_file)
    variables = f"JOB_ID=t-1\nORCHESTRATOR_URL={url}\nTASK_FILES_DIR is not set"
    assert end["message"].partition("\n")[2] == variables
    assert "VICTORIA_SECRETS" not in host.engine.variables[container_of("t-1")]
    assert not list((host.state_dir / "run").iterdir())


async def test_container_is_given_no_address_of_another_origin_than_the_runners_own(
    host: Host, log: Log
) -> None:
    for task_id in ("t-1", "t-2"):
        host.orchestrator.offer(task_id, "[fail 1]", orchestrator_url="http://10.0.0.1:9")
    async with host.runner():
        await host.wait_for_end("t-1")
        await host.pass_time_until_closed("t-2")
    for task_id in ("t-1", "t-2"):
        variables = host.engine.variables[container_of(task_id)]
        assert variables["ORCHESTRATOR_URL"] == host.orchestrator.url
    assert log.text.count("an assignment names an orchestrator_url that is less safe") == 1


# An engine that fails


async def test_end_waits_for_a_silent_engine_through_a_restart(host: Host) -> None:
    async with host.running_task("[wait-for go][fail 6]"):
        await host.clock.settle()
        host.engine.silent = True
        host.let_go()
        await host.clock.advance(900)
        assert host.orchestrator.beats()[-1] == "error"
    async with host.runner():
        await host.clock.advance(900)
        assert host.orchestrator.beats()[-1] == "error"
        assert not host.orchestrator.ends("t-1")
        host.engine.silent = False
        await host.pass_time_until_closed("t-1")
        assert (await host.wait_for_end())["message"].startswith("failed: exit code 6")
        await until(lambda: host.orchestrator.beats()[-1] != "error")


async def test_silence_that_passes_costs_nothing(host: Host) -> None:
    host.engine.fail("run", EngineSilent("no answer"))
    host.orchestrator.offer()
    async with host.runner():
        await host.pass_time_until_closed("t-1")
        assert (await host.wait_for_end())["status"] == "success"
    assert host.starts_of("t-1") == 1


async def test_end_is_reported_although_the_engine_does_not_answer_the_removal(host: Host) -> None:
    host.engine.break_("remove", EngineSilent("no answer"))
    host.orchestrator.offer()
    async with host.runner():
        await until(lambda: len(host.orchestrator.ends("t-1")) == 1)
        await host.clock.advance(60)
        assert host.state_of("t-1") == "ended"
        host.engine.mend()
        await host.pass_time_until_closed("t-1")
    assert await host.engine.inspect(container_of("t-1")) is None


async def test_stop_is_retried_and_then_the_container_removed(host: Host, log: Log) -> None:
    host.engine.break_("stop", EngineError("cannot do podman stop: no"))
    async with host.running_task("[hang]", {"timeout_seconds": 10}):
        await host.clock.advance(20)
        assert (await host.wait_for_end())["message"].startswith("timed_out: ")
    assert host.engine.called["stop"] == 3
    assert "container does not stop; removing it" in log.text


# A defect of the runner


@pytest.mark.parametrize(
    ("step", "prompt"),
    [
        *((step, "do it") for step in ("fetch_image", "run", "inspect", "last_output")),
        ("wait", "[hang]"),
    ],
)
async def test_defect_in_a_step_is_logged_retried_and_ends_the_task_and_not_the_runner(
    host: Host, log: Log, step: str, prompt: str
) -> None:
    async with host.runner():
        await host.wait_for_calls(POLL)
        await host.clock.settle()
        host.engine.break_(step, RuntimeError("nobody thought of this"))
        host.orchestrator.offer("t-1", prompt)
        await host.clock.advance(74)
        end = await host.wait_for_end()
        host.engine.mend()
        await finish_another(host)

    event = "a defect of the runner interrupts a task"
    defects = [record for record in log.records if record.message == event]
    assert [bool(record.exc_info) for record in defects] == [True] * 3
    assert end["message"].startswith("unstartable: a defect of the runner, see its log: ")
    assert host.starts_of("t-1") <= 1
    assert await host.engine.inspect(container_of("t-1")) is None


async def test_container_is_removed_at_the_next_start_after_a_defect(host: Host, log: Log) -> None:
    host.engine.break_("remove", RuntimeError("nobody thought of this"))
    host.orchestrator.offer()
    async with host.runner():
        event = "a defect keeps a task open until the next start"
        await host.pass_time_until(lambda: event in log.text)
        assert host.state_of("t-1") == "ended"
        host.orchestrator.offer("t-2")
        await host.clock.advance(34)
        await host.wait_for_state("t-2", "ended")
        await until(lambda: not host.rows("SELECT * FROM outbox"))
    host.engine.mend()
    async with host.runner():
        assert (await host.wait_for_end())["status"] == "success"
        await host.wait_for_end("t-2")
    assert await host.engine.inspect(container_of("t-1")) is None


async def test_slot_stays_taken_while_a_defect_is_waited_out(host: Host) -> None:
    host.engine.fail("inspect", RuntimeError("once"))
    host.engine.shut("inspect")
    async with host.running_task():
        host.orchestrator.offer("t-2")
        await host.clock.advance(31)
        await until(lambda: host.engine.waiting["inspect"] == 1)
        host.engine.open("inspect")
        await host.clock.advance(60)
        assert host.orchestrator.queue, "no second task beside the first"
        host.let_go()
        for task_id in ("t-1", "t-2"):
            assert (await host.wait_for_end(task_id))["status"] == "success"
