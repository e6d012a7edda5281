"""What only real engines can be asked: their processes, their environment, their silence."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from runner.engine import processes
from runner.engine.base import LABEL_ORCHESTRATOR, ContainerSpec, OutputPosition, Phase
from runner.engine.cli import CliEngine, find_engine
from runner.engine.probe import probe_rights
from runner.engine.progress import PullProgress
from runner.engine.script import NoShell
from runner.errors import EngineError, EngineSilent, ImageMissing, NoContainerRuntime
from runner.model import Hardening, PullPolicy
from runner.timing import HostClock, Timings
from tests.contract.conftest import Subject, is_alive, own_children
from tests.engines import Engine as Command
from tests.harness.loop import HARNESS, running_loop
from tests.harness.registry import serving_image
from tests.harness.until import DEADLINE_S, until

pytestmark = pytest.mark.anyio

CALL_S = 100.0
EMPTY_TAR = bytes(10240)
KEY, TOKEN = "node-key-0123456789", "registration-token-0123456789"
# Ignores TERM and hangs, with a child that does the same; its arguments name a file for their ids.
STUBBORN = """\
#!/bin/sh
trap '' TERM
sleep 600 &
echo $$ $! > "$HOME/ids.part" && mv "$HOME/ids.part" "$HOME/ids"
wait
sleep 600
"""
PODMANS_SOCKET = """\
#!/bin/sh
echo '{"ServerVersion": "4.3.1", "CgroupDriver": "systemd", "SecurityOptions": [],
 "Plugins": {"Log": ["k8s-file", "none", "passthrough", "journald"]}}'
"""
SLOW = """\
#!/bin/sh
case $1 in info) echo '{"version": {"Version": "5.0.0"}, "host":
 {"security": {"rootless": false}, "cgroupManager": "systemd"}}' ;;
run) echo $$ > "$HOME/ids"; while [ ! -e "$HOME/go" ]; do sleep 0.02; done; echo c0ffee ;; esac
"""
FULL = """\
#!/bin/sh
echo "Error: write /tmp/x: no space left on device" >&2
exit 125
"""
NAMES_ITS_PROXY = """\
#!/bin/sh
echo "Error: invalid proxy address \\"$HTTPS_PROXY\\"" >&2
exit 1
"""
LOSES_ITS_IMAGE = """\
#!/bin/sh
[ -e "$HOME/gone" ] || exec echo c0ffee amd64
echo "Error: i: image not known" >&2
exit 125
"""
PRINTS_BINARY = """\
#!/bin/sh
printf 'Error: caf\\351\\n' >&2
exit 1
"""
NO_TERMINAL = """\
#!/bin/sh
[ -t 0 ] || [ -t 1 ] || [ -t 2 ] || echo "Error: no terminal, input $(wc -c)" >&2
exit 1
"""
RECORDER = """\
#!/bin/sh
{ printf '%s\\n' "$@"; env; } >> "$HOME/book"
case $1 in info) echo '{"version": {"Version": "5.0.0"}, "host":
 {"security": {"rootless": false}, "cgroupManager": "systemd"}}' ;; run) echo c0ffee ;; esac
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Path]:
    """Yield where a script may stand in for podman; kill the processes that it has noted."""
    path = tmp_path / "podman"
    yield path
    for pid in filter(is_alive, script_ids(path)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def script_ids(script: Path) -> list[int]:
    file = script.with_name("ids")
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def engine_of(script: Path, text: str | None, **variables: str) -> CliEngine:
    """Write the script, if there is one, and return an engine that calls it."""
    if text is not None:
        script.write_text(text)
        script.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "HOME": str(script.parent), **variables}
    return CliEngine("podman", str(script), environment, Timings(engine_timeout_s=CALL_S))


@pytest.mark.parametrize("anyio_backend", [HARNESS], ids=["harness"])
async def test_call_without_an_answer_is_ended_with_all_its_processes(script: Path) -> None:
    async def pass_time() -> None:
        await until(lambda: len(script_ids(script)) == 2)
        while True:  # the script may be there before its deadline is
            running_loop().put_forward(CALL_S)
            await anyio.sleep(0.05)

    async with anyio.create_task_group() as group:
        group.start_soon(pass_time)
        with pytest.raises(EngineSilent, match=r"no answer within 100 s"):
            await engine_of(script, STUBBORN).facts()
        group.cancel_scope.cancel()
    await until(lambda: not any(map(is_alive, script_ids(script))))


@pytest.mark.parametrize("anyio_backend", [HARNESS], ids=["harness"])
async def test_start_of_a_container_that_takes_minutes_is_not_killed(script: Path) -> None:
    async def pass_time() -> None:
        await until(lambda: len(script_ids(script)) == 1)
        running_loop().put_forward(500)
        await anyio.wait_all_tasks_blocked()
        script.with_name("go").touch()

    async with anyio.create_task_group() as group:
        group.start_soon(pass_time)
        spec = ContainerSpec(name="n", image="i", arguments=())
        assert await engine_of(script, SLOW).run(spec) == "c0ffee"


async def test_call_that_is_cancelled_is_ended_with_all_its_processes(script: Path) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(engine_of(script, STUBBORN).inspect, "x")
        await until(lambda: len(script_ids(script)) == 2)
        group.cancel_scope.cancel()
    await until(lambda: not any(map(is_alive, script_ids(script))))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("#!/bin/sh\nkill -9 $$\n", EngineSilent, "killed by signal 9"),
        ("#!/nowhere/sh\n", EngineSilent, "No such file or directory"),
        (None, EngineSilent, "is not there"),
        (NO_TERMINAL, EngineError, "no terminal, input 0"),
        (PRINTS_BINARY, EngineError, "caf\ufffd"),
    ],
    ids=["killed in mid-call", "cannot be run", "went away", "no terminal of ours", "no text"],
)
async def test_engine_whose_program_fails_is_an_error(
    script: Path, text: str | None, error: type[EngineError], message: str
) -> None:
    with pytest.raises(error, match=message):
        await engine_of(script, text).inspect("x")


@pytest.mark.parametrize("policy", [PullPolicy.NEVER, PullPolicy.MISSING, PullPolicy.NEWER])
async def test_failure_of_the_engine_is_not_reported_as_a_missing_image(
    script: Path, policy: PullPolicy
) -> None:
    with pytest.raises(EngineError, match="look for the image i: write /tmp/x: no space") as raised:
        await engine_of(script, FULL).fetch_image("i", policy)
    assert not isinstance(raised.value, ImageMissing)


async def test_image_that_was_removed_meanwhile_is_not_taken_for_present(script: Path) -> None:
    engine = engine_of(script, LOSES_ITS_IMAGE)
    await engine.fetch_image("i", PullPolicy.MISSING)
    script.with_name("gone").touch()
    with pytest.raises(ImageMissing):
        await engine.inspect_image("i")
    with pytest.raises(ImageMissing, match="cannot find the image i on this host"):
        await engine.fetch_image("i", PullPolicy.NEVER)


async def test_error_of_the_engine_is_read_where_no_file_can_be_written(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(EngineError, match="no space left on device"):
        await engine_of(script, FULL).inspect("x")


@pytest.mark.parametrize(
    "text", [RECORDER, PODMANS_SOCKET], ids=["podman-docker", "podman's socket"]
)
async def test_podman_in_the_place_of_docker_is_recognised(script: Path, text: str) -> None:
    engine_of(script, text)
    engine = CliEngine("docker", str(script), {"HOME": str(script.parent)})
    with pytest.raises(EngineError, match="use --container-runtime podman"):
        await engine.facts()


async def test_password_of_a_proxy_is_redacted_in_the_error_of_an_engine(script: Path) -> None:
    engine = engine_of(script, NAMES_ITS_PROXY, HTTPS_PROXY="http://svc:Sup3rSecret!@proxy")
    with pytest.raises(ImageMissing, match=r'proxy address "http://svc:\*\*\*@proxy"$'):
        await engine.fetch_image("registry.example/image", PullPolicy.ALWAYS)


async def test_pull_shows_how_much_is_downloaded_and_leaves_no_process_when_it_is_cancelled(
    real: Subject, tmp_path: Path
) -> None:
    with serving_image() as registry:
        # docker takes this host's address without TLS by itself.
        settings, image = tmp_path / "registries.conf", f"{registry.address}/x:1"
        settings.write_text(f'[[registry]]\nlocation = "{registry.address}"\ninsecure = true\n')
        environment = {**os.environ, "CONTAINERS_REGISTRIES_CONF": str(settings)}
        engine = find_engine(real.engine.kind, environment)
        before, progress = own_children(), PullProgress()

        async def pull(progress: PullProgress) -> None:
            await engine.fetch_image(image, PullPolicy.NEWER, progress)

        async with anyio.create_task_group() as group:
            group.start_soon(pull, PullProgress())
            await until(lambda: own_children() > before)
            group.cancel_scope.cancel()
        assert own_children() <= before
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(pull, progress)
                await until(lambda: progress.summary.endswith(" of 3.0 MiB"))
                registry.go.set()
            assert progress.summary == "3.0 of 3.0 MiB"
        finally:
            Command(real.engine.kind).run("rmi", image)


async def test_every_call_to_a_daemon_that_is_not_there_is_silence(docker: Subject) -> None:
    environment = {**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    engine = find_engine("docker", environment)
    for call in (
        engine.facts(),
        engine.fetch_image(docker.image, PullPolicy.MISSING),
        engine.run(docker.spec("x")),
        engine.inspect("x"),
        engine.wait("x"),
        engine.stop("x"),
        engine.remove("x"),
        engine.remove_stopped("x"),
        engine.labelled("a", "b"),
        engine.last_output("x", 1),
    ):
        with pytest.raises(EngineSilent):
            await call


def test_host_without_an_engine_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoContainerRuntime, match="Install podman or docker"):
        find_engine("auto", {"PATH": str(tmp_path)})


async def test_calls_that_are_cancelled_leave_no_process(real: Subject) -> None:
    before = own_children()
    await real.start("[hang]")
    for call in (
        real.engine.facts,
        lambda: real.engine.inspect(real.name),
        lambda: real.engine.wait(real.name),
        lambda: real.engine.last_output(real.name, 1),
        lambda: real.engine.labelled("a", "b"),
    ):
        for after_s in (0, 0.02, 0.3):
            with anyio.move_on_after(after_s):
                await call()
            await until(lambda: own_children() <= before)
    assert (await real.look()).phase is Phase.RUNNING


async def test_calls_leave_no_descriptor_and_no_thread(real: Subject) -> None:
    def open_descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    for _ in range(2):
        await real.engine.inspect(real.name)
    descriptors, threads = open_descriptors(), threading.active_count()
    for _ in range(10):
        await real.engine.inspect(real.name)
    await until(lambda: open_descriptors() <= descriptors)
    # Idle threads are to be used again.
    await until(lambda: threading.active_count() <= threads + 2)


async def test_container_that_was_inspected_is_waited_for_and_read_without_another_call(
    podman: Subject, tmp_path: Path
) -> None:
    assert isinstance(podman.engine, CliEngine)
    script, book = tmp_path / "podman", tmp_path / "book"
    program = shutil.which("podman")
    script.write_text(f'#!/bin/sh\necho "$1" >> {book}\nexec {program} "$@"\n')
    script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    engine = find_engine("podman", environment)
    await engine.facts()
    container_id = await engine.run(podman.spec("[print-line the end][sleep 2]"))
    container = await engine.inspect(container_id)
    assert container is not None and container.phase is Phase.RUNNING  # noqa: PT018 - for the type
    assert await engine.wait(container_id)
    assert await engine.last_output(container_id, 1) == "the end\n"
    reader = engine.output_reader(container_id)
    part = await reader.read(OutputPosition(), 1000)
    reader.close()
    assert b"".join(text for _, text in part.pieces).endswith(b"the end\n")
    assert book.read_text().split() == ["info", "run", "container"]


async def test_waiting_costs_no_time_of_the_processor(real: Subject) -> None:
    await real.start("[hang]")
    async with real.waiting():
        before = time.process_time()
        await anyio.sleep(3)
        assert time.process_time() - before < 0.2
        await real.engine.remove(real.name)


async def test_no_call_has_a_secret_in_its_arguments_or_variables_or_is_logged(
    script: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    engine_of(script, RECORDER)
    env_file = script.with_name("task.env")
    env_file.write_text(f"NODE_API_KEY={KEY}\n")
    paths = {"PATH": f"{script.parent}:/usr/bin:/bin", "HOME": str(script.parent)}
    proxy = {"HTTPS_PROXY": "http://proxy.example:3128"}
    hidden = {"VICTORIA_RUNNER_REGISTRATION_TOKEN": TOKEN, "NOTIFY_SOCKET": "/run/systemd/notify"}
    spec = ContainerSpec(name="n", image="i", arguments=("the-prompt",), env_files=(env_file,))
    helper = {"AWS_PROFILE": "runner", "AWS_SESSION_TOKEN": TOKEN}
    environment = {**paths, **proxy, **hidden, **helper}
    engine = find_engine("podman", environment, inherited=("AWS_PROFILE", "NOT_SET"))
    assert await engine.run(spec) == "c0ffee"

    calls = script.with_name("book").read_text()
    assert str(env_file) in calls
    assert {"HTTPS_PROXY=http://proxy.example:3128", "AWS_PROFILE=runner"} <= set(calls.split())
    assert not [secret for secret in (KEY, TOKEN, "NOTIFY_SOCKET") if secret in calls]
    assert "the-prompt" not in caplog.text


def conmon_and_process(subject: Subject) -> tuple[int, int]:
    """Return the ids of the process that watches the container, and of its own first one."""
    state = Command("podman").inspect(subject.name)["State"]
    return state["ConmonPid"], state["Pid"]


async def test_container_killed_together_with_its_watcher_has_vanished_and_can_be_removed(
    podman: Subject,
) -> None:
    await podman.start("[hang]")
    async with podman.waiting():
        for pid in conmon_and_process(podman):
            os.kill(pid, signal.SIGKILL)
    assert (await podman.look()).phase is Phase.VANISHED
    await podman.engine.stop(podman.name)
    await podman.engine.remove(podman.name)
    assert await podman.is_gone()


async def test_container_without_its_watcher_runs_and_then_has_vanished(podman: Subject) -> None:
    await podman.start("[hang]")
    async with podman.waiting() as results:
        conmon, process = conmon_and_process(podman)
        os.kill(conmon, signal.SIGKILL)
        await anyio.sleep(0.5)
        assert not results
        assert (await podman.look()).phase is Phase.RUNNING
        os.kill(process, signal.SIGKILL)
    assert results == [True]
    assert (await podman.look()).phase is Phase.VANISHED


async def test_container_whose_process_is_killed_has_exited(podman: Subject) -> None:
    await podman.start("[hang]")
    os.kill(conmon_and_process(podman)[1], signal.SIGKILL)
    await podman.engine.wait(podman.name)
    container = await podman.look()
    assert (container.phase, container.exit_code) == (Phase.EXITED, 137)


async def test_container_that_a_killed_removal_has_left_without_its_storage_is_recognised(
    podman: Subject, tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("graphroot", "runroot")}
    settings = "".join(f'{name} = "{folder}"\n' for name, folder in folders.items())
    (tmp_path / "storage.conf").write_text(f'[storage]\ndriver = "vfs"\n{settings}')
    environment = {**os.environ, "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf")}

    def call_podman(*arguments: str, stdin: bytes = b"") -> None:
        command = ["podman", *arguments]
        subprocess.run(command, env=environment, input=stdin, check=True, timeout=120)

    call_podman("import", "-", "localhost/empty:1", stdin=EMPTY_TAR)
    call_podman("create", "--name", podman.name, "--label", "victoria-half=1", "empty:1", "x")
    # podman 5 lists those of its own containers in a second file.
    for storage_list in tmp_path.glob("graphroot/vfs-containers/*containers.json"):  # noqa: ASYNC240 - nothing else runs
        storage_list.write_text("[]")
    engine = find_engine("podman", environment)
    assert await engine.labelled("victoria-half", "1") == [podman.name]
    left = await engine.inspect(podman.name)
    assert left is not None
    assert (left.phase, left.labels) == (Phase.HALF_REMOVED, {"victoria-half": "1"})
    assert await engine.inspect(left.container_id) == left
    await engine.remove(left.container_id)
    assert await engine.inspect(podman.name) is None
    assert await engine.labelled("victoria-half", "1") == []
    shutil.rmtree(folders["graphroot"], ignore_errors=True)


async def test_only_engine_calls_of_this_user_and_host_are_taken_for_leftover_starts(
    podman: Subject, tmp_path: Path
) -> None:
    cid_file = ("--cidfile", str(tmp_path / "x.cid"))
    code = "import signal; signal.signal(15, lambda *_: exit()); signal.pause()"
    call = ("-c", f"{code} #/podman", *cid_file)  # its third argument passes for the program
    by_python = ("--network", "host", "--entrypoint", "python3")
    await podman.start("", arguments=call, run_args=by_python)

    def start(*command: str, user: int | None = None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, user=user, stdin=subprocess.PIPE)

    ours = start(sys.executable, *call)
    others = [start(sys.executable, "-c", code, *cid_file)]
    if os.geteuid() == 0:
        others.append(start("/bin/sh", "-c", "read line #/podman", *cid_file, user=65534))
    try:
        timings = Timings(leftover_start_grace_s=0.2)
        killed = await processes.end_leftover_starts(tmp_path, set(), HostClock(), timings)
        assert killed == [ours.pid]
        assert ours.wait(DEADLINE_S) == -signal.SIGKILL
        assert [process.poll() for process in others] == [None] * len(others)
        assert (await podman.look()).phase is Phase.RUNNING
    finally:
        for process in (ours, *others):
            process.kill()
            process.communicate()


async def test_strictly_hardened_container_writes_to_its_home_and_to_little_else(
    real: Subject, tmp_path: Path
) -> None:
    labels = {LABEL_ORCHESTRATOR: str(tmp_path)}
    volumes = {tmp_path: "/workspace/Victoria"}
    spec = real.spec("", volumes=volumes, labels=labels, hardening=Hardening.STRICT)
    rights = await probe_rights(real.engine, spec, "/workspace/Victoria", "written")
    assert (rights.capabilities, rights.may_gain_privileges, rights.pids_limit) == ((), False, 4096)
    assert (rights.has_read_only_root, rights.is_home_writable) == (True, True)
    spec = replace(spec, run_args=(*spec.run_args, "--env", "PATH=/nowhere"))
    with pytest.raises(NoShell):
        await probe_rights(real.engine, spec, "/workspace/Victoria", "written")
    assert not await real.engine.labelled(LABEL_ORCHESTRATOR, str(tmp_path))


async def test_process_of_another_does_not_pass_for_the_containers() -> None:
    ids, another = [os.getpid(), 1 << 22], "0" * 64
    assert not processes.any_exists(ids, another)
    assert await processes.wait_for_all(ids, another)


async def test_zombie_does_not_pass_for_a_running_container() -> None:
    container_id = "f" * 64
    program = [sys.executable, "-c", "print(flush=True); input()", container_id]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:  # noqa: ASYNC220 - returns at once
        assert process.stdout
        process.stdout.readline()  # until its program runs, its command line is that of its parent
        assert processes.any_exists([process.pid], container_id)
        process.kill()
        with anyio.fail_after(DEADLINE_S):
            await processes.wait_for_all([process.pid], container_id)
        assert not processes.any_exists([process.pid], container_id)


async def test_one_line_of_50_mb_is_bounded_and_last_words_without_a_newline_follow_it(
    real: Subject,
) -> None:
    program = "import sys; [sys.stdout.write('x' * 1000000) for _ in range(50)]"
    container = await real.finish(
        "",
        arguments=("-c", f"{program}; print(); print('the-end', end='')"),
        run_args=("--network", "host", "--entrypoint", "python3"),
    )
    output = await real.engine.last_output(real.name, 20)
    assert (container.exit_code, output.endswith("x\nthe-end")) == (0, True)
    assert len(output) <= 1 << 20
