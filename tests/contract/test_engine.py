"""The contract of a container engine: one suite for the fake one, podman and docker."""

import tarfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anyio
import pytest

from runner.engine.architecture import can_run
from runner.engine.base import OutputPosition, Phase
from runner.errors import EngineError, ImageMissing, ImageUnchecked, NameInUse, NoSuchContainer
from runner.model import UNLIMITED, Limits, PullPolicy
from tests.contract.conftest import Subject
from tests.harness.until import DEADLINE_S

pytestmark = pytest.mark.anyio

NOWHERE = "127.0.0.1:1/victoria-none:1"
HOME = "/workspace/Victoria"
COARSE_S = 0.1  # how far the clock by which files are dated may be behind
LIMITED = Limits(memory="64m")  # podman 4 starts such a container in two steps, see CliEngine


async def test_engine_reports_its_version(subject: Subject) -> None:
    facts = await subject.engine.facts()
    assert facts.version[0].isdigit()
    assert facts.cgroup_manager in {"systemd", "cgroupfs"}
    assert not facts.is_remote
    assert facts.storage is None or facts.storage.is_dir()
    image = await subject.engine.inspect_image(subject.image)
    assert can_run(image.architecture, facts.architecture)


@pytest.mark.parametrize(
    ("prompt", "exit_code", "limits"),
    [("nothing to do", 0, UNLIMITED), ("[fail 3]", 3, UNLIMITED), ("[fail 3]", 3, LIMITED)],
    ids=["success", "failure", "with a memory limit"],
)
async def test_container_that_has_ended_has_exited_with_the_code_of_its_program(
    subject: Subject, tmp_path: Path, prompt: str, exit_code: int, limits: Limits
) -> None:
    cid_file = tmp_path / "cid"
    volumes = {tmp_path: HOME}
    container_id = await subject.start(prompt, volumes=volumes, cid_file=cid_file, limits=limits)
    await subject.engine.wait(subject.name)
    container = await subject.look()
    assert (container.phase, container.exit_code) == (Phase.EXITED, exit_code)
    assert (container.name, container.out_of_memory) == (subject.name, False)
    assert (cid_file.read_text(), len(container_id)) == (container_id, 64)
    starts = (tmp_path / "tasks" / "unnamed" / "starts.log").read_text()
    assert starts.count("\n") == 1


async def test_file_is_copied_out_of_a_container_that_has_ended_up_to_a_size(
    subject: Subject, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    await subject.finish("[write out/a.txt some text]", volumes={tmp_path / "home": HOME})
    with (tmp_path / "home" / "out" / "large").open("wb") as file:
        file.truncate(3 << 20)
    (tmp_path / "home" / "out" / "link").symlink_to(tmp_path / "home" / "out" / "a.txt")

    async def copy(name: str) -> bool:
        archive = tmp_path / f"{name}.tar"
        return await subject.engine.copy_out(subject.name, f"{HOME}/out/{name}", archive, 1 << 20)

    assert await copy("a.txt")
    with tarfile.open(tmp_path / "a.txt.tar") as tar:
        (member,) = tar.getmembers()
        content = tar.extractfile(member)
        assert content is not None
        assert content.read() == b"some text"
    assert not await copy("none")
    with pytest.raises(EngineError, match="large out of the container: it has more than 1 MiB"):
        await copy("large")
    if await copy("link"):
        with tarfile.open(tmp_path / "link.tar") as tar:
            assert tar.getmembers()[0].issym()


async def test_moments_of_start_and_end_are_known(subject: Subject, tmp_path: Path) -> None:
    before_start = time.time()
    await subject.start("[wait-for go]", volumes={tmp_path: HOME})
    after_start = time.time()
    await anyio.sleep(3 * COARSE_S)  # so that the end cannot pass for the start
    before_end = time.time()
    (tmp_path / "go").touch()
    await subject.engine.wait(subject.name)
    container = await subject.look()
    assert container.started_at is not None
    assert container.finished_at is not None
    assert before_start - COARSE_S < container.started_at < after_start + COARSE_S
    assert before_end - COARSE_S < container.finished_at < time.time() + COARSE_S


@pytest.mark.parametrize("limits", [UNLIMITED, LIMITED], ids=["unlimited", "with a memory limit"])
async def test_running_container_is_reported_and_keeps_its_name_to_itself(
    subject: Subject, limits: Limits
) -> None:
    labels = {"victoria.test": "a b=c"}
    container_id = await subject.start("[hang]", labels=labels, limits=limits)
    with pytest.raises(NameInUse):
        await subject.start("nothing to do", limits=limits)
    container = await subject.look()
    assert (container.container_id, container.phase) == (container_id, Phase.RUNNING)
    assert container.finished_at is None
    assert container.labels["victoria.test"] == "a b=c"


async def test_wait_lasts_while_the_container_runs_and_is_certain_of_the_exit_then_and_later(
    subject: Subject, tmp_path: Path
) -> None:
    await subject.start("[wait-for go]", volumes={tmp_path: HOME})
    async with subject.waiting() as results:
        await anyio.sleep(0.5)
        assert not results
        (tmp_path / "go").touch()
    assert results == [True]
    assert (await subject.look()).phase is Phase.EXITED
    assert await subject.engine.wait(subject.name)


async def test_wait_that_is_cancelled_leaves_the_container_running(subject: Subject) -> None:
    await subject.start("[hang]")
    with anyio.move_on_after(0.5) as scope:
        await subject.engine.wait(subject.name)
    assert scope.cancelled_caught
    assert (await subject.look()).phase is Phase.RUNNING


async def test_wait_ends_when_the_container_is_removed_behind_our_back(subject: Subject) -> None:
    await subject.start("[hang]")
    async with subject.waiting():
        await subject.engine.remove(subject.name)
    assert await subject.is_gone()


async def test_engine_that_can_ends_a_container_after_its_time(subject: Subject) -> None:
    await subject.start("[ignore-term][hang]", timeout_s=1)
    if subject.engine.kind == "docker":
        await anyio.sleep(2)
        assert (await subject.look()).phase is Phase.RUNNING
        return
    with anyio.fail_after(DEADLINE_S):
        await subject.engine.wait(subject.name)
    container = await subject.look()
    assert (container.phase, container.exit_code == 0) == (Phase.EXITED, False)


@pytest.mark.parametrize(
    ("prompt", "changes", "error", "message"),
    [
        ("x", {"image": NOWHERE}, ImageMissing, "cannot find the image"),
        ("x", {"run_args": ("--nonsense",)}, EngineError, "unknown flag: --nonsense"),
        ("x" * (3 << 20), {}, EngineError, "an argument"),
        ("before\0after", {}, EngineError, "an argument"),
    ],
    ids=["missing image", "unknown run argument", "prompt of 3 MiB", "prompt with NUL"],
)
async def test_container_that_cannot_be_made_is_an_error_and_not_there(
    subject: Subject, prompt: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        await subject.start(prompt, **changes)
    assert await subject.is_gone()


async def test_container_whose_program_is_missing_never_ran(subject: Subject) -> None:
    with pytest.raises(EngineError, match="no such file or directory"):
        await subject.start("x", run_args=("--network", "host", "--entrypoint", "/nowhere"))
    container = await subject.engine.inspect(subject.name)
    assert container is None or container.phase is Phase.CREATED
    await subject.engine.remove(subject.name)
    assert await subject.is_gone()


async def test_image_is_missing_where_it_cannot_or_must_not_be_fetched(subject: Subject) -> None:
    for policy in (PullPolicy.NEWER, PullPolicy.ALWAYS):
        with pytest.raises(ImageMissing, match="cannot fetch the image"):
            await subject.engine.fetch_image(NOWHERE, policy)
    with pytest.raises(ImageMissing):
        await subject.engine.fetch_image(NOWHERE, PullPolicy.NEVER)
    for policy in (PullPolicy.MISSING, PullPolicy.NEVER):
        await subject.engine.fetch_image(subject.image, policy)
    # podman knows that its own builds are in no registry.
    cannot_ask = subject.engine.kind == "docker"
    with pytest.raises(ImageUnchecked) if cannot_ask else nullcontext():
        await subject.engine.fetch_image(subject.image, PullPolicy.NEWER)


async def test_image_with_a_tag_or_a_container_is_not_removed(subject: Subject) -> None:
    name = f"localhost/{subject.name}:1"
    used, tagged = await subject.add_image(is_used=True), await subject.add_image(name)
    assert (await subject.look()).image_id == used
    here = await subject.engine.images()
    assert (here[used], here[tagged]) == (False, True)
    for image_id in (used, tagged, "0" * 64):
        assert not await subject.engine.remove_image(image_id)

    await subject.engine.remove(subject.name)
    assert await subject.engine.remove_image(used)
    here = await subject.engine.images()
    assert (used in here, tagged in here) == (False, True)
    subject.remove_tag(name)


@pytest.mark.parametrize(
    ("prompt", "exit_code"), [("", 143), ("[ignore-term]", 137)], ids=["heeds it", "ignores it"]
)
async def test_stop_ends_a_container_by_term_and_else_kills_it_after_the_grace(
    subject: Subject, prompt: str, exit_code: int
) -> None:
    await subject.start_ready(prompt)
    started = time.monotonic()
    with anyio.fail_after(DEADLINE_S):
        await subject.engine.stop(subject.name)
    has_waited = time.monotonic() - started > subject.stop_grace_s - 1
    container = await subject.look()
    assert (container.phase, container.exit_code) == (Phase.EXITED, exit_code)
    assert has_waited or not prompt
    assert not container.out_of_memory


async def test_container_that_has_ended_is_not_changed_by_a_stop_and_removed(
    subject: Subject,
) -> None:
    await subject.finish("[fail 5]")
    await subject.engine.stop(subject.name)
    assert (await subject.look()).exit_code == 5
    await subject.engine.remove_stopped(subject.name)
    assert await subject.is_gone()


async def test_running_container_is_removed_unless_only_stopped_ones_may_be(
    subject: Subject,
) -> None:
    await subject.start_ready("")
    with pytest.raises(EngineError):
        await subject.engine.remove_stopped(subject.name)
    assert (await subject.look()).phase is Phase.RUNNING
    await subject.engine.remove(subject.name)
    assert await subject.is_gone()


async def test_missing_container_can_be_removed_but_not_waited_for_or_read(
    subject: Subject,
) -> None:
    engine, name = subject.engine, subject.name
    for end in (engine.stop, engine.remove, engine.remove_stopped):
        await end(name)
    assert await subject.is_gone()
    for read in (engine.wait(name), engine.last_output(name, 1)):
        with pytest.raises(NoSuchContainer):
            await read


async def test_containers_are_listed_by_label_running_or_not(subject: Subject) -> None:
    mine = subject.name.rpartition("-")[2]
    a, b, c = (f"{subject.name}-{letter}" for letter in "abc")
    for name, prompt, value in ((a, "[hang]", mine), (b, "x", mine), (c, "[hang]", "else")):
        await subject.start(prompt, name=name, labels={"victoria.test": value})
    await subject.engine.wait(b)
    assert sorted(await subject.engine.labelled("victoria.test", mine)) == [a, b]


async def test_last_lines_of_both_streams_are_kept_as_many_as_are_requested(
    subject: Subject,
) -> None:
    await subject.finish("[print-line one][stderr two][sleep 0.2][print-line three]")
    output = await subject.engine.last_output(subject.name, 50)
    assert sorted(output.splitlines()) == ["one", "three", "two"]
    assert await subject.engine.last_output(subject.name, 1) == "three\n"


async def test_output_of_50_mb_is_bounded_and_its_end_is_kept(subject: Subject) -> None:
    await subject.finish("[print 50000000][print-line the-end]")
    output = await subject.engine.last_output(subject.name, 20)
    assert output.endswith("the-end\n")
    assert len(output) < 10_000
    assert len(await subject.engine.last_output(subject.name, 10_000_000)) <= 42 << 20


async def test_prompt_arrives_as_it_is(subject: Subject) -> None:
    prompt = "--help 'single' \"double\" $(id) `id` \\ ünï\nsecond line ; rm -rf /"
    await subject.finish(prompt)
    assert await subject.engine.last_output(subject.name, 50) == f"task: {prompt}\n"


async def test_variables_come_raw_from_files_that_may_go_then_and_the_later_file_wins(
    subject: Subject, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("BOTH=first\n# a comment\nRAW= \"quoted\" $HOME a #b 'c'\\\t\nEMPTY=\n")
    second.write_text("BOTH=second\n")
    prompt = "[sleep 0.5][env BOTH][env RAW][env EMPTY]"
    await subject.start(prompt, env_files=(first, second))
    for file in (first, second):
        file.unlink()
    container = await subject.look()
    raw = " \"quoted\" $HOME a #b 'c'\\\t"
    assert (container.variables["BOTH"], container.variables["RAW"]) == ("second", raw)
    assert "second" not in repr(container)
    await subject.engine.wait(subject.name)
    output = await subject.engine.last_output(subject.name, 50)
    assert output == f"BOTH=second\nRAW={raw}\nEMPTY=\n"


TRIES = """
import os
def attempt(name, call, *arguments):
    try:
        print(name, call(*arguments) or "done")
    except OSError as error:
        print(name, os.strerror(error.errno))
os.chdir("HOME/tasks")
attempt("list", lambda: sorted(os.listdir(".")))
attempt("other", os.listdir, "t-2")
attempt("new", os.mkdir, "t-3")
attempt("rename all", os.rename, "HOME/tasks", "HOME/other")
attempt("rename own", os.rename, "t-1", "t-3")
attempt("make own again", os.mkdir, "t-1")
attempt("chmod", os.chmod, ".", 0)
attempt("home", os.mkdir, "HOME/new")
attempt("own", os.mkdir, "t-1/new")
attempt("read", lambda: open("t-1/files/a").read())
attempt("write", open, "t-1/files/a", "w")
attempt("remove", os.remove, "t-1/files/a")
attempt("rename files", os.rename, "t-1/files", "t-1/other")
""".replace("HOME", HOME)
READ_ONLY, BUSY = "Read-only file system", "Device or resource busy"
OUTCOMES = {
    "list": "['t-1']",
    "other": "No such file or directory",
    "new": READ_ONLY,
    "rename all": BUSY,
    "rename own": READ_ONLY,
    "make own again": "File exists",
    "chmod": READ_ONLY,
    "home": "done",
    "own": "done",
    "read": "1,2,3",
    "write": READ_ONLY,
    "remove": READ_ONLY,
    "rename files": BUSY,
}


async def test_container_sees_its_own_folder_alone_below_a_covered_one_and_its_files_read_only(
    real: Subject, tmp_path: Path
) -> None:
    for task_id in ("t-1", "t-2"):
        (tmp_path / "tasks" / task_id / "files").mkdir(parents=True)
        (tmp_path / "tasks" / task_id / "files" / "a").write_text("1,2,3")
    own, inside = tmp_path / "tasks" / "t-1", f"{HOME}/tasks/t-1"
    await real.finish(
        "x",
        arguments=("-c", TRIES),
        run_args=("--network", "host", "--entrypoint", "python3"),
        volumes={tmp_path: HOME, own: inside},
        read_only={own / "files": f"{inside}/files"},
        covered=(f"{HOME}/tasks",),
    )
    output = await real.engine.last_output(real.name, 50)
    assert output.splitlines() == [f"{name} {outcome}" for name, outcome in OUTCOMES.items()]
    assert (tmp_path / "new").is_dir()
    assert (own / "new").is_dir()


async def test_end_for_want_of_memory_is_marked(subject: Subject) -> None:
    container = await subject.finish("[eat-memory 200]", limits=Limits(memory="32m"))
    assert (container.phase, container.exit_code) == (Phase.EXITED, 137)
    assert container.out_of_memory


async def test_output_is_read_on_from_any_place_in_the_order_in_which_it_came(
    subject: Subject, tmp_path: Path
) -> None:
    long = "x" * 40_000
    await subject.start(
        "[print-line one][sleep 0.5][stderr two][wait-for go]"
        f"[print-line {long}][sleep 0.5][stderr four]",
        volumes={tmp_path: HOME},
    )
    reader = subject.engine.output_reader(subject.name)
    position, output = OutputPosition(), b""

    async def read_until(end: bytes) -> None:
        nonlocal position, output
        with anyio.fail_after(DEADLINE_S):
            while not output.endswith(end):
                part = await reader.read(position, 1000)
                data = b"".join(piece for _, piece in part.pieces)
                used = max(min(1, len(data)), len(data) - 1)
                output += data[:used]
                if data:
                    position = part.position_of(used)
                else:
                    await anyio.sleep(0.05)

    await read_until(b"two\n")
    reader.close()
    (tmp_path / "go").touch()
    await subject.engine.wait(subject.name)
    reader = subject.engine.output_reader(subject.name)
    await read_until(b"four\n")
    assert output.decode() == f"one\ntwo\n{long}\nfour\n"
    assert not (await reader.read(position, 1000)).pieces
    reader.close()
    with pytest.raises(NoSuchContainer):
        await subject.engine.output_reader("victoria-none").read(OutputPosition(), 1000)
