"""How the output of an engine is read, and how its arguments are written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.engine.architecture import can_run
from runner.engine.arguments import run_arguments
from runner.engine.base import ContainerSpec, Phase
from runner.engine.call import CommandResult
from runner.engine.hardening import hardening_arguments
from runner.engine.inspect import read_container
from runner.engine.output import last_lines, read_log_end
from runner.engine.progress import PullProgress
from runner.errors import (
    EngineError,
    EngineSilent,
    ImageMissing,
    NameInUse,
    NoSuchContainer,
    NoSuchFile,
)
from runner.model import Hardening, Limits

NEVER = "0001-01-01T00:00:00Z"
AT_NINE = "2026-01-31T09:00:00Z"
LATER = "2026-01-31T09:00:01Z"
AWAY = "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?"
DOCKER_USAGE = "unknown flag: --x\n\nUsage:  docker run\n\nRun 'docker run --help' for more"
WARNING = 'time="2026-01-31T09:00:00Z" level=warning msg="an error is near"'
TAKEN = 'the container name "x" is already in use by y'
NO_FILE = (
    "Could not find the file /x in container y",
    '"/x" could not be found on container y: no such file or directory',
)
SPEC = ContainerSpec(name="n", image="i", arguments=())


def inspected(**state: object) -> dict[str, Any]:
    return {"Id": "f" * 64, "Name": "/victoria-1", "Config": {"Labels": None}, "State": state}


@pytest.mark.parametrize(
    ("state", "has_processes", "phase"),
    [
        ({"Status": "created", "StartedAt": NEVER, "FinishedAt": NEVER}, False, Phase.CREATED),
        # podman was killed before it recorded the start: while it runs, and afterwards.
        ({"Status": "initialized", "StartedAt": NEVER, "Pid": 7}, True, Phase.RUNNING),
        ({"Status": "created", "StartedAt": NEVER, "Pid": 7}, False, Phase.VANISHED),
        ({"Status": "running", "Running": True, "StartedAt": AT_NINE}, True, Phase.RUNNING),
        ({"Status": "stopping", "StartedAt": AT_NINE}, True, Phase.RUNNING),
        ({"Status": "paused", "StartedAt": AT_NINE}, True, Phase.RUNNING),
        ({"Status": "running", "Running": True, "StartedAt": AT_NINE}, False, Phase.VANISHED),
        ({"Status": "exited", "StartedAt": AT_NINE, "FinishedAt": NEVER}, False, Phase.VANISHED),
        ({"Status": "exited", "StartedAt": AT_NINE, "FinishedAt": LATER}, False, Phase.EXITED),
        # The clock was set back meanwhile.
        ({"StartedAt": AT_NINE, "FinishedAt": "2026-01-31T08:00:05Z"}, False, Phase.EXITED),
    ],
)
def test_phase_follows_from_the_report_and_the_processes(
    state: dict[str, object], *, has_processes: bool, phase: Phase
) -> None:
    assert read_container(inspected(**state), has_processes=has_processes).phase is phase


@pytest.mark.parametrize("text", ["09:00:00.123456789Z", "10:00:00.123456789+01:00"])
def test_moments_are_read_in_any_zone(text: str) -> None:
    container = read_container(inspected(StartedAt=f"2026-01-31T{text}"), has_processes=False)
    assert container.started_at == pytest.approx(1769850000.123, abs=0.001)


@pytest.mark.parametrize(
    ("errors", "error_type", "error_text"),
    [
        (DOCKER_USAGE, EngineError, "unknown flag: --x"),
        ("Error: unknown flag: --x\nSee 'podman run --help'", EngineError, "unknown flag: --x"),
        (f"{WARNING}\nError: it broke", EngineError, "it broke"),
        ("docker: Error response from daemon: it broke", EngineError, "it broke"),
        (AWAY, EngineSilent, AWAY),
        ("Error: no such container x", NoSuchContainer, "no such container x"),
        (f"Error response from daemon: {NO_FILE[0]}", NoSuchFile, NO_FILE[0]),
        (f"Error: {NO_FILE[1]}", NoSuchFile, NO_FILE[1]),
        ("Error: x: image not known", ImageMissing, "x: image not known"),
        (f"Error: {TAKEN}", NameInUse, TAKEN),
        ("Error: address 0.0.0.0:80 is already in use", EngineError, None),
        ("", EngineError, "exit code 125"),
    ],
)
def test_error_of_an_engine_is_one_line_and_has_one_type(
    errors: str, error_type: type[EngineError], error_text: str | None
) -> None:
    result = CommandResult(125, "", errors)
    assert result.error_type is error_type
    assert error_text in {result.error_text, None}


PODMAN_SHOWS = """\
Trying to pull registry/x:1...
Copying blob e1697c2ac4dd [=>------] 512.0KiB / 2.0MiB
Copying blob 2a23041e86e0 [====>---] 0.5MiB / 1.0MiB
"""
PODMAN_SHOWS_NEXT = """\
\x1b[2A\x1b[JCopying blob e1697c2ac4dd [==>-----] 1.0MiB / 2.0MiB | 9.0 KiB/s
Copying blob 2a23041e86e0 done  \nError: it broke
"""
DOCKER_SHOWS = """\
1: Pulling from x
\x1b[1A\x1b[2K\re1697c2ac4dd: Pulling fs layer \r\x1b[1B\
\x1b[1A\x1b[2K\re1697c2ac4dd: Downloading [=>   ]  524.3kB/2.097MB\r\x1b[1B\
\x1b[2A\x1b[2K\r2a23041e86e0: Downloading [==>  ]  524.3kB/1.049MB\r\x1b[2B"""
DOCKER_SHOWS_NEXT = """\
\x1b[1A\x1b[2K\re1697c2ac4dd: Downloading [==>  ]  1.049MB/2.097MB\r\x1b[1B\
\x1b[2A\x1b[2K\r2a23041e86e0: Extracting [>    ]  32.8kB/1.049MB\r\x1b[2BError: it broke
"""


@pytest.mark.parametrize(
    ("first", "then"),
    [(PODMAN_SHOWS, PODMAN_SHOWS_NEXT), (DOCKER_SHOWS, DOCKER_SHOWS_NEXT)],
    ids=["podman", "docker"],
)
def test_how_much_of_an_image_is_downloaded_is_read_from_the_terminal(
    first: str, then: str
) -> None:
    progress = PullProgress()
    assert progress.summary == "nothing yet"
    for text, expected in ((first, "1.0 of 3.0 MiB"), (then, "2.0 of 3.0 MiB")):
        changes = progress.changes
        for index in range(0, len(text), 7):
            progress.feed(text[index : index + 7])
        assert progress.summary == expected
        assert progress.changes > changes
        changes = progress.changes
        progress.feed(text)
        progress.feed(text)
    assert CommandResult(125, "", progress.text).error_text == "it broke"


@pytest.mark.parametrize(
    ("error", "is_login"),
    [
        ("reading manifest 1 in registry/x: unauthorized: authentication required", True),
        ("requested access to the resource is denied", True),
        ("pull access denied for x, repository does not exist", True),
        ("error getting credentials - err: exit status 1, out: ``", True),
        ("Requesting bearer token: invalid status code from registry 403 (Forbidden)", True),
        ("mkdir /var/tmp/x: permission denied", False),
        ("pinging container registry registry: too many requests to registry", False),
        ("dial tcp 10.0.0.1:443: connect: connection refused", False),
    ],
)
def test_login_that_a_registry_does_not_take_is_recognised(error: str, *, is_login: bool) -> None:
    assert CommandResult(125, "", f"Error: {error}").refuses_login == is_login


HOST_NAME = "host.containers.internal:host-gateway"


@pytest.mark.parametrize(
    ("kind", "run_args", "is_set"),
    [
        ("docker", (), True),
        ("docker", ("--network", "victoria-net", "--add-host=db:10.0.0.1"), True),
        ("docker", ("--network", "host"), False),
        ("docker", ("--network=container:x",), False),
        ("docker", ("--net", "container:x"), False),
        ("docker", ("--network=name=host,alias=x",), False),
        ("docker", ("--add-host=host.containers.internal:10.0.0.1",), False),
        ("podman", (), False),
    ],
)
def test_docker_gets_the_name_of_the_host_unless_the_network_forbids_it_or_it_is_set(
    kind: str, run_args: tuple[str, ...], *, is_set: bool
) -> None:
    arguments = run_arguments(kind, replace(SPEC, run_args=run_args))
    assert (HOST_NAME in arguments) == is_set


def test_image_of_another_architecture_can_be_run_where_the_kernel_has_an_emulator_for_it(
    tmp_path: Path,
) -> None:
    def runs(image: str, host: str) -> bool:
        return can_run(image, host, tmp_path)

    assert runs("amd64", "x86_64")
    assert runs("arm64", "aarch64")
    assert runs("386", "amd64")
    assert runs("an-unknown-one", "amd64")
    assert not runs("arm64", "amd64")
    magic = "7f454c460201010000000000000000000200b700"
    entry = tmp_path / "qemu-aarch64"
    entry.write_text(f"enabled\ninterpreter /usr/bin/q\nflags: F\noffset 0\nmagic {magic}\n")
    assert runs("arm64", "x86_64")
    assert not runs("riscv64", "x86_64")
    entry.write_text(entry.read_text().replace("enabled", "disabled"))
    assert not runs("arm64", "x86_64")


def test_log_of_podman_is_read_from_its_end_and_parts_of_lines_are_joined(tmp_path: Path) -> None:
    log, moment = tmp_path / "ctr.log", "2026-01-31T09:00:00.1+01:00"
    halves = [("stdout", "P", "one "), ("stderr", "P", "The answer"), ("stdout", "F", "line")]
    halves += [("stdout", "F", ""), ("stderr", "P", " is 42")]
    log.write_text("".join(f"{moment} {stream} {tag} {text}\n" for stream, tag, text in halves))
    output = read_log_end(log)
    assert output == "one line\n\nThe answer is 42"
    assert last_lines(output, 1) == "The answer is 42"
    with log.open("w") as file:
        file.writelines(f"{moment} stdout P {'x' * 8000}\n" for _ in range(200))
        file.write(f"{moment} stdout F {'y' * 100}\n")
    assert 1_000_000 < len(read_log_end(log)) < 1 << 20
    assert read_log_end(log).endswith("xy" + "y" * 99 + "\n")


def test_volume_is_labelled_for_selinux_unless_the_one_that_it_lies_in_is() -> None:
    home, own = Path("/h"), Path("/h/tasks/t-1")
    volumes, read_only = {home: "/in", own: "/in/tasks/t-1"}, {own / "files": "/in/tasks/t-1/files"}
    spec = replace(SPEC, volumes=volumes, read_only=read_only, covered=("/in/tasks",))
    apart = replace(spec, volumes={own: "/in/tasks/t-1", own.parent / ".homes/t-1": "/in"})
    for one, expected in (
        (spec, {"/h:/in:rw,z", "/h/tasks/t-1:/in/tasks/t-1:rw"}),
        (apart, {"/h/tasks/.homes/t-1:/in:rw,z", "/h/tasks/t-1:/in/tasks/t-1:rw,z"}),
    ):
        arguments = run_arguments("podman", one)
        assert expected | {"/h/tasks/t-1/files:/in/tasks/t-1/files:ro"} <= set(arguments)
        assert "/in/tasks:ro,size=64k,mode=755,notmpcopyup" in arguments
    assert "/in/tasks:ro,size=64k,mode=755" in run_arguments("docker", spec)


def test_gpus_are_requested_in_each_engines_way() -> None:
    two = replace(SPEC, limits=Limits(gpus="0,1"))
    assert '"device=0,1"' in run_arguments("docker", two)
    assert {"nvidia.com/gpu=0", "nvidia.com/gpu=1"} <= set(run_arguments("podman", two))


DEFAULTS = [
    "--security-opt=no-new-privileges",
    "--pids-limit=4096",
    *(f"--cap-drop={name}" for name in ("MKNOD", "NET_RAW", "AUDIT_WRITE")),
]
STRICT = [*DEFAULTS[:2], "--cap-drop=ALL", "--read-only", "--tmpfs=/tmp", "--tmpfs=/run"]


@pytest.mark.parametrize(
    ("hardening", "run_args", "expected"),
    [
        (Hardening.DEFAULT, (), DEFAULTS),
        (Hardening.STRICT, (), STRICT),
        (Hardening.ENGINE, (), []),
        (Hardening.DEFAULT, ("--security-opt=no-new-privileges:false",), DEFAULTS[1:]),
        (Hardening.DEFAULT, ("--security-opt", "seccomp=x"), DEFAULTS),
        (Hardening.DEFAULT, ("--pids-limit", "99"), [DEFAULTS[0], *DEFAULTS[2:]]),
        (Hardening.DEFAULT, ("--cap-add=cap_net_raw",), [*DEFAULTS[:3], DEFAULTS[4]]),
        (Hardening.DEFAULT, ("--cap-add", "MKNOD,SYS_ADMIN"), [*DEFAULTS[:2], *DEFAULTS[3:]]),
        (Hardening.DEFAULT, ("--privileged",), DEFAULTS[:2]),
        (Hardening.STRICT, ("--cap-add=NET_RAW",), STRICT),
        (Hardening.STRICT, ("--cap-add=ALL",), [*STRICT[:2], *STRICT[3:]]),
        (Hardening.STRICT, ("--read-only=false",), [*STRICT[:3], *STRICT[4:]]),
        (Hardening.STRICT, ("--tmpfs=/tmp:exec", "--volume=/srv:/run:ro"), STRICT[:4]),
    ],
)
def test_container_is_hardened_unless_the_operator_sets_the_same(
    hardening: Hardening, run_args: tuple[str, ...], expected: list[str]
) -> None:
    assert hardening_arguments(hardening, run_args) == expected
    spec = replace(SPEC, hardening=hardening, run_args=run_args)
    for kind in ("podman", "docker"):
        assert run_arguments(kind, spec)[-len(expected) - len(run_args) - 1 : -1] == [
            *expected,
            *run_args,
        ]


def test_processes_are_not_limited_where_systemd_does_not_let_rootless_podman_do_so() -> None:
    arguments = run_arguments("podman", SPEC, can_limit_processes=False)
    assert "--security-opt=no-new-privileges" in arguments
    assert not [argument for argument in arguments if "--pids-limit" in argument]


def test_nothing_of_an_assignment_can_become_an_option() -> None:
    spec = replace(SPEC, arguments=("--task", "--privileged"))
    assert run_arguments("podman", spec)[-3:] == ["i", "--task", "--privileged"]
