"""`python -m runner doctor`: check everything that a task needs; each problem says what to do."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

from runner import __version__
from runner.api.address import proxy_to, without_password
from runner.api.client import TASK_KEY, OrchestratorClient
from runner.engine.architecture import check_architecture
from runner.engine.base import LABEL_RUNNER, ROOTFUL, ContainerSpec, Engine
from runner.engine.cli import find_engine
from runner.engine.probe import METADATA_ADDRESS, NoShell, describe, probe_rights
from runner.env_file import engine_format, read_env_file
from runner.errors import (
    EXIT_CONFIGURATION,
    EXIT_OK,
    EXIT_TRY_AGAIN,
    ConfigurationError,
    EngineError,
    HomeUnusable,
    ImageMissing,
    JournalError,
    NoContainerRuntime,
    WireError,
)
from runner.handles import check_free, free_disk
from runner.identity import IdentityFile
from runner.journal.journal import JOURNAL_NAME, Journal
from runner.log import printable
from runner.model import OutboxEntry, PullPolicy, Registration, Task
from runner.node import find_conflict, is_same_node, node_description, runtime_to_use
from runner.settings import Settings
from runner.state_dir import known_runner_id
from runner.workspace.download import CONTAINER_HOME
from runner.workspace.home import Tidying, check_home

_TOLERATED_SKEW_S = 60.0
_PROBE_FILE = ".victoria-doctor"
_UNLIMITED_PROCESSES = (
    "a task can start any number of processes: systemd does not delegate the cgroup controller "
    "pids to this user; add Delegate=pids to user@.service, then log in again"
)


@dataclass(frozen=True)
class Check:
    """The result of one check, with a sentence about it."""

    what: str
    sentence: str
    exit_code: int = EXIT_OK
    """Doctor's exit code if this is the first check that failed; EXIT_OK if it passed."""
    is_warning: bool = False
    """Whether it passed, but the operator should know."""

    @property
    def ok(self) -> bool:
        """Whether the check passed."""
        return self.exit_code == EXIT_OK


async def examine(
    settings: Settings, echo: Callable[[str], None], *, as_json: bool, runs: bool = False
) -> int:
    """Run all checks and print their results; return the exit code: 0 if tasks can run here.

    With `runs`, a container is started too.
    """
    journal = await _read_journal(settings)
    checks = [
        journal.check,
        *[check async for check in _check_engine(settings, runs=runs)],
        *_check_env_file(settings),
        _check_home(settings),
        _check_folder("--state-dir", settings.state_dir, settings.min_free_disk),
        *[check async for check in _check_orchestrator(settings)],
        _registration(journal.registration, settings),
        _check_identity_file(settings),
        _check_task_keys(journal.registration, settings),
        _check_outbox(journal.entries),
    ]
    if as_json:
        echo(json.dumps(_as_json(checks, journal), indent=2))
    else:
        for check in checks:
            mark = "FAIL" if not check.ok else "warn" if check.is_warning else "ok  "
            echo(printable(f"{mark} {check.what}: {check.sentence}"))
        for task in journal.tasks:
            echo(f"     task {task.task_id}: {task.state.value}")
    return next((check.exit_code for check in checks if not check.ok), EXIT_OK)


async def _check_engine(settings: Settings, *, runs: bool) -> AsyncIterator[Check]:
    try:
        engine = find_engine(await runtime_to_use(settings))
        facts = await engine.facts()
    except (NoContainerRuntime, EngineError) as error:
        yield Check("engine", str(error), error.exit_code)
        return
    mode = "rootless" if facts.is_rootless else "as root"
    yield Check("engine", f"{engine.kind} {facts.version} answers, {mode}")
    yield await _check_image(settings, engine)
    if facts.storage is not None and _is_folder(facts.storage):
        yield _check_free("engine's storage", facts.storage, settings.min_free_disk)
    if not facts.is_rootless:
        yield Check("root", ROOTFUL % engine.kind, is_warning=True)
    if not facts.can_limit_processes:
        yield Check("processes", _UNLIMITED_PROCESSES, is_warning=True)
    if runs:
        async for check in _check_container(settings, engine):
            yield check
    if engine.kind != "podman" or not facts.is_rootless:
        return
    if not facts.has_user_ids:
        yield Check(
            "user ids",
            "this user has no user ids to give to containers; run `sudo usermod "
            "--add-subuids 100000-165535 --add-subgids 100000-165535 USER` with numbers that are "
            "free in /etc/subuid and /etc/subgid, then `podman system migrate` as this user",
            EXIT_CONFIGURATION,
        )
    if facts.cgroup_manager == "systemd":
        yield Check("cgroups", "containers outlive the service")
    else:
        yield Check(
            "cgroups",
            "podman does not use systemd's cgroups, so that containers end with the service; run "
            "`loginctl enable-linger` for this user and set XDG_RUNTIME_DIR and "
            "DBUS_SESSION_BUS_ADDRESS",
            EXIT_CONFIGURATION,
        )


async def _check_container(settings: Settings, engine: Engine) -> AsyncIterator[Check]:
    """Start a container with the arguments of a task's, and check what it has."""
    home = settings.victoria_home
    runner_id = None
    with suppress(OSError):
        runner_id = known_runner_id(settings.state_dir)
    spec = ContainerSpec(
        name="",
        image=settings.container_image,
        arguments=(),
        # What a killed doctor leaves is an orphan, which the runner removes.
        labels={} if runner_id is None else {LABEL_RUNNER: runner_id},
        volumes={home.resolve(): CONTAINER_HOME} if _is_folder(home) else {},
        limits=settings.limits,
        hardening=settings.hardening,
        run_args=settings.run_args,
    )
    try:
        variables = read_env_file(settings.env_file).variables
        await engine.fetch_image(settings.container_image, settings.pull)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(engine_format(variables))
            file.flush()
            spec = replace(spec, env_files=(Path(file.name),))
            rights = await probe_rights(engine, spec, CONTAINER_HOME, _PROBE_FILE)
    except NoShell as error:
        sentence = f"{error}: what a container really has cannot be seen"
        yield Check("container", sentence, is_warning=True)
        return
    except (ConfigurationError, EngineError) as error:
        yield Check("container", str(error), error.exit_code)
        return
    finally:
        with suppress(OSError):
            (home / _PROBE_FILE).unlink()
    yield Check("container", f"one of {settings.container_image} was started, and removed")
    for what, sentence in describe(rights).items():
        yield Check(f"container's {what}", sentence)
    if spec.volumes and not rights.is_home_writable:
        advice = (
            f"cannot write in {CONTAINER_HOME}: give the folder to the user that the container "
            "runs as; with --hardening strict you can add --run-arg=--cap-add=DAC_OVERRIDE instead"
        )
        yield Check("container's home", advice, EXIT_CONFIGURATION)
    yield _check_metadata(reached=rights.reaches_metadata)


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - Path's own raises where we may not look


def _check_metadata(*, reached: bool | None) -> Check:
    what = "cloud metadata"
    if reached is None:
        tools = "the image has neither bash nor python3 nor curl"
        return Check(what, f"not tried: {tools}", is_warning=True)
    if not reached:
        return Check(what, f"{METADATA_ADDRESS} does not answer to a container")
    sentence = (
        f"{METADATA_ADDRESS} answers to a container: on a cloud host a task can read its user "
        "data and the credentials of its role; block it as docs/install.md describes"
    )
    return Check(what, sentence, is_warning=True)


async def _check_image(settings: Settings, engine: Engine) -> Check:
    """Check whether the image is on this host; a check does not pull it."""
    image = settings.container_image
    try:
        await engine.fetch_image(image, PullPolicy.NEVER)
        await check_architecture(engine, image)
    except ImageMissing as error:
        if settings.pull is PullPolicy.NEVER:
            return Check("image", str(error), error.exit_code)
        return Check("image", f"{image} is not here yet and will be fetched at the start")
    except EngineError as error:
        return Check("image", str(error), error.exit_code)
    return Check("image", f"{image} is here")


def _check_env_file(settings: Settings) -> Iterator[Check]:
    path = settings.env_file
    if path is None:
        return
    try:
        env_file = read_env_file(path)
    except ConfigurationError as error:
        yield Check("--env-file", str(error), error.exit_code)
        return
    yield Check("--env-file", f"{path} sets {len(env_file.variables)} variables")
    for sentence in env_file.warnings:
        yield Check("--env-file", f"{path}: {sentence}", is_warning=True)


def _check_home(settings: Settings) -> Check:
    home = settings.victoria_home
    check = _check_folder("--victoria-home", home, settings.min_free_disk)
    if check.ok and home.exists():
        try:
            check_home(home, settings.home, Tidying(stamp=None), thorough=True)
        except HomeUnusable as error:
            return Check(check.what, str(error), EXIT_TRY_AGAIN)
    return check


def _check_folder(option: str, folder: Path, min_free: int) -> Check:
    # A folder that does not exist yet is made in the closest parent that does.
    existing = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not (_is_folder(existing) and os.access(existing, os.W_OK | os.X_OK, effective_ids=True)):
        sentence = f"cannot write in {existing}: run as its owner, or choose another folder"
        return Check(option, sentence, EXIT_CONFIGURATION)
    if existing != folder:
        return Check(option, f"{folder} will be made at the start")
    return _check_free(option, folder, min_free)


def _check_free(what: str, folder: Path, min_free: int) -> Check:
    try:
        check_free(folder, min_free)
        free = free_disk(folder)
    except OSError as error:
        sentence = f"cannot use {folder}: {error.strerror}"
        if error.errno == errno.ENOSPC:
            advice = "free some space there or lower --min-free-disk"
            sentence = f"{folder} has {error.strerror}; {advice}"
        return Check(what, sentence, EXIT_TRY_AGAIN)
    sentence = f"{folder} has {free >> 20} MiB free, {min_free >> 20} MiB must stay free"
    return Check(what, sentence)


async def _check_orchestrator(settings: Settings) -> AsyncIterator[Check]:
    url = settings.orchestrator_url
    if not url:
        yield Check("orchestrator", "not asked: no --orchestrator-url")
        return
    try:
        async with OrchestratorClient(url, settings.ca_file) as orchestrator:
            sent_at = time.time()
            health = await orchestrator.health()
    except ConfigurationError as error:
        yield Check("orchestrator", str(error), error.exit_code)
        return
    except WireError as error:
        yield Check("orchestrator", _no_answer(url, error), error.exit_code)
        return
    yield Check("orchestrator", f"{url} answers, version {health.get('version', 'unknown')}")
    skew_s = _skew_s(health, sent_at)
    if skew_s is None:
        return
    sentence = f"this host's clock is {skew_s:+.0f} s off the orchestrator's"
    if abs(skew_s) <= _TOLERATED_SKEW_S:
        yield Check("clock", sentence)
    else:
        yield Check("clock", f"{sentence}; set it by NTP", EXIT_CONFIGURATION)


def _no_answer(url: str, error: WireError) -> str:
    proxy = proxy_to(url)
    through = f" through the proxy {without_password(proxy)}" if proxy else ""
    no_proxy = f"the proxy, or name {urlsplit(url).hostname} in NO_PROXY; check " if proxy else ""
    return (
        f"{url} does not answer{through}: {error}; check {no_proxy}the address, that it runs, "
        "and that outbound connections are allowed"
    )


def _skew_s(health: Mapping[str, object], now: float) -> float | None:
    timestamp = health.get("timestamp")
    if not isinstance(timestamp, str):
        return None
    with suppress(ValueError):
        moment = datetime.fromisoformat(timestamp.replace("Z", "+00:00"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return now - moment.timestamp()
    return None


@dataclass(frozen=True)
class _JournalContent:
    """What the journal contains, and whether it could be read."""

    check: Check
    tasks: Sequence[Task] = ()
    entries: Sequence[OutboxEntry] = ()
    registration: Registration | None = None


async def _read_journal(settings: Settings) -> _JournalContent:
    path = settings.state_dir / JOURNAL_NAME
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return _JournalContent(Check("journal", f"none yet in {path.parent}"))
    except OSError as error:
        sentence = (
            f"cannot read {path}: {(error.strerror or str(error)).lower()}; run as the runner's "
            "user, or give your own --state-dir"
        )
        return _JournalContent(Check("journal", sentence, EXIT_CONFIGURATION))
    try:
        journal = Journal(path, read_only=True)
        try:
            tasks, entries = await journal.open_tasks(), await journal.entries()
            registration = await journal.registration(settings.orchestrator_url)
            unfinished = await journal.unfinished_tasks()
        finally:
            journal.close_file()
    except JournalError as error:
        return _JournalContent(Check("journal", str(error), error.exit_code))
    conflict = find_conflict(unfinished, settings, await runtime_to_use(settings))
    check = Check("journal", f"{len(tasks)} open tasks")
    if conflict is not None:
        check = Check("journal", conflict, EXIT_CONFIGURATION)
    return _JournalContent(check, tasks, entries, registration)


def _registration(registration: Registration | None, settings: Settings) -> Check:
    if registration is None:
        return Check("registration", "not registered yet")
    sentence = f"registered as {registration.identity.node_id}"
    if not is_same_node(registration.description, node_description(settings)):
        sentence += ", under another name, other tags or other capabilities than these"
    return Check("registration", sentence)


def _check_identity_file(settings: Settings) -> Check:
    file = IdentityFile(settings.state_dir)
    try:
        is_known = settings.orchestrator_url in file.read()
    except ConfigurationError as error:
        return Check("identity file", str(error), error.exit_code)
    if not file.is_private():
        sentence = (
            f"{file.path} has a key in it, and others may read it; run `chmod 600 {file.path}`, "
            "and have the node's key replaced"
        )
        return Check("identity file", sentence, EXIT_CONFIGURATION)
    if not is_known:
        return Check("identity file", "none yet for this orchestrator; written by the runner")
    return Check("identity file", f"{file.path} can be read by its owner only")


def _check_task_keys(registration: Registration | None, settings: Settings) -> Check:
    if registration is None:
        return Check("task keys", "known once this host is registered")
    if TASK_KEY in registration.extensions:
        return Check("task keys", "each task has a key of its own")
    sentence = "the orchestrator has no keys for tasks (extension task-key)"
    if settings.require_task_key:
        sentence += ": every task is rejected; use one that has it, or omit --require-task-key"
        return Check("task keys", sentence, EXIT_CONFIGURATION)
    return Check("task keys", f"{sentence}: containers get this node's key; use one that has it")


def _check_outbox(entries: Sequence[OutboxEntry]) -> Check:
    parked = [entry for entry in entries if entry.parked is not None]
    if not parked:
        return Check("outbox", f"{len(entries)} reports wait")
    return Check(
        "outbox",
        f"{len(parked)} reports were refused or given up, the last: {parked[-1].parked}; "
        "compare the tasks at the orchestrator",
        EXIT_TRY_AGAIN,
    )


def _as_json(checks: list[Check], journal: _JournalContent) -> object:
    return {
        "version": __version__,
        "ok": all(check.ok for check in checks),
        "node_id": journal.registration and journal.registration.identity.node_id,
        "checks": [
            {
                "what": check.what,
                "ok": check.ok,
                "warning": check.is_warning,
                "sentence": check.sentence,
            }
            for check in checks
        ],
        "tasks": [
            {
                key: value
                for key, value in asdict(task).items()
                # The prompt may be confidential, and the key is.
                if key not in {"assignment", "identity", "orchestrator_url"}
            }
            for task in journal.tasks
        ],
        "outbox": [
            {
                "task_id": entry.task_id,
                "report": entry.path,
                "attempts": entry.attempts,
                "parked": entry.parked,
            }
            for entry in journal.entries
        ],
    }
