"""What a task prints comes to the orchestrator once, in order, redacted, and holds nothing up."""

from dataclasses import replace

import pytest

from runner.engine.base import GAP_MARK
from runner.errors import EngineError
from runner.loops.output import MISSING
from runner.tasks.output import UNREADABLE
from runner.timing import DEFAULT_TIMINGS
from tests.harness.host import Host, container_of
from tests.harness.orchestrator import BEAT, REGISTER, SILENCE, STATUS
from tests.harness.server import Answer, http, json_response, stalled
from tests.harness.until import until
from tests.loops.steps import Log

pytestmark = pytest.mark.anyio
PATH = "/tasks/t-1/output"
NAME = container_of("t-1")
SECRET = "hunter2-hunter2"  # noqa: S105 - opens nothing


@pytest.fixture(autouse=True)
def extension(host: Host) -> None:
    host.orchestrator.extensions = ["output"]


async def printed(host: Host, text: str) -> None:
    """Have the task print something, and wait until that has been sent."""
    seen = host.orchestrator.count(PATH)
    host.engine.print(NAME, text.encode())
    await host.clock.advance(5.1)
    await host.wait_for_calls(PATH, seen + 1)
    await host.clock.settle()


def output(host: Host) -> str:
    return host.orchestrator.outputs["t-1"].decode()


async def test_output_comes_while_the_task_runs_and_the_rest_before_the_final_status(
    host: Host,
) -> None:
    async with host.running_task("[print-line one][wait-for go][stderr two]"):
        await host.clock.advance(5.1)
        await host.wait_for_calls(PATH)
        await host.clock.settle()
        assert output(host) == "one\n"
        await host.clock.advance(30)
        assert host.orchestrator.count(PATH) == 1, "there was nothing new"
        host.let_go()
        await host.wait_for_end()
    assert host.orchestrator.chunks() == [
        {"offset": 0, "text": "one\n"},
        {"offset": 4, "text": "two\n", "done": True},
    ]
    paths = [call.request.target for call in host.orchestrator.calls]
    last_status = len(paths) - 1 - paths[::-1].index(STATUS)
    assert PATH not in paths[last_status:]


async def test_nothing_is_sent_to_an_orchestrator_that_does_not_name_the_extension(
    host: Host,
) -> None:
    host.orchestrator.extensions = []
    async with host.running_task("[print-line one][wait-for go]"):
        await host.clock.advance(60)
        host.let_go()
        await host.wait_for_end()
    assert host.orchestrator.count(PATH) == 0


async def test_orchestrator_sets_the_interval(host: Host) -> None:
    host.orchestrator.output_interval_s = 30
    async with host.running_task():
        await printed(host, "one")
        await host.clock.advance(5)
        host.engine.print(NAME, b"two")
        await host.clock.advance(20)
        assert host.orchestrator.count(PATH) == 1
        await host.clock.advance(10)
        await host.wait_for_calls(PATH, 2)


async def test_secret_is_redacted_across_the_border_of_chunks(host: Host) -> None:
    env_file = host.folder / "env"
    env_file.write_text(f"API_PASSWORD={SECRET}\n")
    async with host.running_task(env_file=env_file):
        await printed(host, "it is " + SECRET[:7])
        assert output(host) == "it is "
        await printed(host, "\x1b[1m" + SECRET[7:] + " you see \N{SNOWMAN}"[:-1])
        host.engine.print(NAME, "\N{SNOWMAN}".encode()[:2])
        await host.clock.advance(10)
        host.engine.print(NAME, "\N{SNOWMAN}".encode()[2:])
        host.let_go()
        await host.wait_for_end()
    assert output(host) == "it is ***\x1b[1m you see \N{SNOWMAN}"


async def test_next_runner_goes_on_where_the_last_one_was(host: Host) -> None:
    async with host.running_task():
        await printed(host, "one ")
    host.engine.print(NAME, b"two ")
    async with host.runner():
        await host.clock.settle()
        await printed(host, "three")
        host.let_go()
        await host.wait_for_end()
    assert output(host) == "one two three"
    assert host.orchestrator.whole_outputs == ["t-1"]


async def test_chunk_without_a_response_is_repeated_to_the_byte_also_by_the_next_runner(
    host: Host,
) -> None:
    host.orchestrator.then(PATH, stalled(b""))
    async with host.running_task():
        host.engine.print(NAME, b"one ")
        await host.clock.advance(5.1)
        await host.wait_for_calls(PATH)
    host.engine.print(NAME, b"two")
    host.let_go()
    async with host.runner():
        await host.wait_for_end()
    first, repeated, last = host.orchestrator.chunks()
    assert first == repeated == {"offset": 0, "text": "one "}
    assert last == {"offset": 4, "text": "two", "done": True}


async def test_what_was_removed_while_no_runner_lived_is_one_marked_gap(host: Host) -> None:
    async with host.running_task():
        await printed(host, "one")
    host.engine.print(NAME, b"lost")
    host.engine.rotate(NAME)
    host.engine.print(NAME, b"two")
    host.let_go()
    async with host.runner():
        await host.wait_for_end()
    assert output(host) == "one" + GAP_MARK.decode() + "two"


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (b"one tw", "one two three"),
        (b"one two", "one two three"),
        (b"on", f"on{MISSING}two three"),
    ],
    ids=["a part of the chunk", "all of it", "less than was delivered"],
)
async def test_orchestrator_that_holds_another_length_is_sent_what_it_lacks(
    host: Host, held: bytes, expected: str
) -> None:
    async with host.running_task():
        await printed(host, "one ")
        host.orchestrator.outputs["t-1"] = held
        host.engine.print(NAME, b"two")
        await host.clock.advance(10)
        host.engine.print(NAME, b" three")
        await host.clock.advance(20)
        host.let_go()
        await host.pass_time_until_closed("t-1")
    assert output(host) == expected


@pytest.mark.parametrize("length", [-(10**30), -1, 10**30, 2**53])
async def test_length_that_no_output_has_is_not_believed(host: Host, length: int) -> None:
    host.orchestrator.always(PATH, json_response({"detail": "no", "length": length}, 409))
    async with host.running_task():
        host.engine.print(NAME, b"one")
        await host.clock.advance(30)
        host.let_go()
        assert (await host.wait_for_end())["status"] == "success"
        await host.pass_time_until_closed("t-1")
    assert host.orchestrator.count(PATH) == 1


async def test_orchestrator_that_names_ever_other_lengths_is_sent_no_more(
    host: Host, log: Log
) -> None:
    lengths = [json_response({"detail": "no", "length": length}, 409) for length in (0, 2)]
    async with host.running_task():
        await printed(host, "one ")
        host.orchestrator.then(PATH, *lengths * 20)
        host.engine.print(NAME, b"two")
        await host.clock.advance(10)
        host.let_go()
        await host.pass_time_until_closed("t-1", 60)
    assert (await host.wait_for_end())["status"] == "success"
    assert host.orchestrator.count(PATH) < 10
    assert "no more of a task's output is sent: HTTP 409" in log.text


async def test_outage_holds_up_neither_the_task_nor_its_end_and_loses_nothing(host: Host) -> None:
    lines = "".join(f"line {number}\n" for number in range(150_000))
    async with host.running_task("[wait-for go][print-line last]"):
        await printed(host, "first\n")
        host.orchestrator.is_down = True
        host.engine.print(NAME, b"second\n")
        await host.clock.advance(20)
        host.engine.print(NAME, lines.encode())
        await host.clock.advance(120)
        host.let_go()
        await until(lambda: NAME not in host.engine.names)
        host.orchestrator.is_down = False
        await host.pass_time_until_closed("t-1", 60)
    assert output(host) == f"first\nsecond\n{lines}last\n"
    assert host.orchestrator.ends("t-1")


@pytest.mark.parametrize(
    "refusal",
    [json_response({"detail": "not wanted"}, 403), json_response({"detail": "too much"}, 413)],
    ids=["forbidden", "too long"],
)
async def test_refused_output_is_given_up_and_the_task_goes_on(
    host: Host, refusal: object, log: Log
) -> None:
    host.orchestrator.always(PATH, refusal)  # type: ignore[arg-type]
    async with host.running_task():
        await printed(host, "one")
        host.engine.print(NAME, b"two")
        await host.clock.advance(30)
        host.let_go()
        assert (await host.wait_for_end())["status"] == "success"
    assert host.orchestrator.count(PATH) == 1
    assert "no more of a task's output is sent: HTTP 4" in log.text
    assert host.rows("SELECT * FROM outbox") == []


@pytest.mark.parametrize(
    "refusal",
    [json_response({"detail": "too much"}, 413), http(413, b"no", {"Content-Type": "text/html"})],
    ids=["orchestrator", "proxy"],
)
async def test_chunk_that_is_too_long_is_sent_in_halves(host: Host, refusal: Answer) -> None:
    host.orchestrator.longest_chunk, host.orchestrator.too_long = 5_000, refusal
    snow = "\N{SNOWMAN}" * 5_000 + "end\n"
    async with host.running_task():
        await printed(host, "first\n")
        host.engine.print(NAME, snow.encode())
        host.let_go()
        await host.wait_for_end()
    assert output(host) == f"first\n{snow}"
    assert host.orchestrator.whole_outputs == ["t-1"]


async def test_output_at_the_end_is_not_lost_while_the_node_is_not_registered(host: Host) -> None:
    async with host.running_task():
        await printed(host, "one ")
        host.orchestrator.always(REGISTER, SILENCE)
        host.orchestrator.keys.clear()
        await host.clock.advance(60)
        host.engine.print(NAME, b"two")
        host.let_go()
        await until(lambda: NAME not in host.engine.names)
        host.orchestrator.always(REGISTER, None)
        await host.pass_time_until_closed("t-1")
    assert output(host) == "one two"


async def test_status_overtakes_output_that_cannot_be_stored_which_is_given_up_in_the_end(
    host: Host, log: Log
) -> None:
    host.orchestrator.always(PATH, http(507))
    async with host.running_task("[wait-for go][print-line one]"):
        host.let_go()
        await host.pass_time_until(lambda: bool(host.orchestrator.ends("t-1")))
        await host.pass_time_until_closed("t-1", 60)
    assert "no more of a task's output is sent: after 16 attempts" in log.text


async def test_output_of_a_container_that_is_gone_ends_with_a_mark(host: Host) -> None:
    async with host.running_task():
        await printed(host, "one")
    host.engine.remove_behind(NAME)
    async with host.runner():
        await host.wait_for_end()
    assert output(host) == f"one{UNREADABLE}"


async def test_output_is_read_though_the_time_for_the_log_of_the_agent_is_over(host: Host) -> None:
    timings = replace(DEFAULT_TIMINGS, final_log_timeout_s=0.0)
    async with host.running_task("[print-line one][wait-for go]"):
        pass
    host.let_go()
    async with host.runner(timings=timings):
        await host.wait_for_end()
    assert output(host) == "one\n"


async def test_heartbeats_name_a_task_whose_output_takes_long_to_be_read(host: Host) -> None:
    host.engine.shut("read_output")
    async with host.running_task():
        host.let_go()
        await host.wait_for_state("t-1", "ended")
        await host.clock.advance(31)
        assert host.orchestrator.called(BEAT)[-1].body["current_task_id"] == "t-1"
        host.engine.open("read_output")
        await host.pass_time_until_closed("t-1")
        await host.clock.advance(31)
    assert "current_task_id" not in host.orchestrator.called(BEAT)[-1].body


async def test_log_that_cannot_be_read_ends_the_output_with_a_mark(host: Host) -> None:
    host.engine.break_("read_output", EngineError("no answer"))
    async with host.running_task("[wait-for go][print-line one]"):
        await host.clock.advance(20)
        host.let_go()
        assert (await host.wait_for_end())["status"] == "success"
    assert output(host) == "\n[… the rest of the output cannot be read …]\n"
