"""What a task's container is not given, and whose containers are let alone."""

from pathlib import Path

from tests.harness.runner_process import RunnerProcess, container_of
from tests.system.recording import RecordingOrchestrator

DROPPED = 1 << 27 | 1 << 13 | 1 << 29  # MKNOD, NET_RAW, AUDIT_WRITE: linux/capability.h


def test_container_may_do_no_more_than_it_needs_and_its_prompt_is_in_no_command_line(
    each_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    each_runner.set_options(prompt_as="file")
    prompt = "an acquisition [rights][wait-for go][fail 1]"
    task_id = orchestrator.create_task(prompt)["id"]
    each_runner.start()
    each_runner.wait_for_start_of(task_id)
    assert "acquisition" not in command_lines()
    assert (each_runner.task_folder(task_id) / "prompt.txt").read_text() == prompt
    each_runner.let_go("go")
    lines = orchestrator.end_of(task_id)["error_message"].splitlines()
    rights = dict(line.split(":\t") for line in lines if ":\t" in line)
    assert int(rights["CapEff"], 16) & DROPPED == 0
    assert (rights["NoNewPrivs"], rights["pids.max"]) == ("1", "4096")


def test_container_of_a_stranger_with_the_name_of_a_tasks_is_neither_read_nor_touched(
    each_runner: RunnerProcess, orchestrator: RecordingOrchestrator, image: str
) -> None:
    task_id = orchestrator.create_task("do it")["id"]
    engine, name = each_runner.engine, container_of(task_id)
    program = ("-c", "import time; print('password', flush=True); time.sleep(600)")
    options = ("--detach", "--network=host", "--entrypoint=python3", f"--name={name}")
    stranger = engine.run("run", *options, image, *program).strip()
    try:
        each_runner.start()
        message = orchestrator.end_of(task_id)["error_message"]
        each_runner.wait_until_closed(task_id)
        assert message.startswith(f"unstartable: cannot start the container: the name {name} be")
        state = engine.inspect(name)
        assert (state["Id"], state["State"]["Running"]) == (stranger, True)
        assert "password" not in message + each_runner.whole_log
    finally:
        each_runner.remove({stranger})


def command_lines() -> str:
    texts = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            texts.append(path.read_text(errors="replace"))
        except OSError:
            continue
    return "\n".join(texts)
