"""`python -m runner doctor`: check everything that a task needs; each problem says what to do."""

from __future__ import annotations

import errno
import json
import os
import platform
import pwd
import re
import secrets
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

import anyio.to_thread

from runner import __version__
from runner.api.address import proxy_to, without_password
from runner.api.client import TASK_KEY, OrchestratorClient
from runner.api.http import root_cause
from runner.engine.architecture import check_architecture
from runner.engine.base import LABEL_RUNNER, ROOTFUL, Engine, EngineFacts
from runner.engine.cli import CliEngine, find_engine
from runner.engine.probe import METADATA_ADDRESS, Rights, describe, probe_rights
from runner.engine.script import NoShell
from runner.env_file import engine_format, read_env_file
from runner.errors import (
    EXIT_CONFIGURATION,
    EXIT_OK,
    EXIT_REGISTRATION_REFUSED,
    EXIT_TRY_AGAIN,
    EXIT_USAGE,
    ConfigurationError,
    EngineError,
    HomeUnusable,
    ImageMissing,
    JournalError,
    LoginRefused,
    NoContainerRuntime,
    Refused,
    Unavailable,
    WireError,
)
from runner.handles import check_free, free_disk, readable_size
from runner.identity import IdentityFile
from runner.journal.journal import JOURNAL_NAME, Journal
from runner.log import printable
from runner.model import OutboxEntry, PullPolicy, Registration, Task
from runner.node import find_conflict, is_same_node, node_description, runtime_to_use
from runner.release import other_python
from runner.settings import Settings
from runner.state_dir import known_runner_id
from runner.systemd import LINGER, UNIT, UNIT_FOLDERS, service_user
from runner.tasks.image import fetch_image_once
from runner.tasks.start import common_spec
from runner.timing import file_stamp
from runner.workspace.download import CONTAINER_HOME, TASKS_IN_CONTAINER, folder_in_container
from runner.workspace.folders import TaskFolders
from runner.workspace.home import Tidying, check_home, make_task_folder, may_write

_TOLERATED_SKEW_S = 60.0
_PROBE_FILE = ".victoria-doctor"
_REGISTRY = re.compile(r"[^/]*[.:][^/]*/|localhost/")
_NOT_ALLOWED = frozenset({401, 403})
_NOT_READY = frozenset({429, 500, 502, 503, 504})
_UNKNOWN_CA = frozenset({18, 19, 20, 21})
_OTHER_NAME = frozenset({62, 64})
"""Of openssl/x509_vfy.h: self-signed, or signed by a CA that is not known; another name."""
_NOT_BLOCKING = frozenset({"identity file"})
"""Checks of what an operator must act on although tasks run."""
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

    @property
    def is_blocking(self) -> bool:
        """Whether no task can run here until it passes."""
        return not self.ok and self.what not in _NOT_BLOCKING


async def examine(
    settings: Settings,
    echo: Callable[[str], None],
    *,
    as_json: bool,
    runs: bool = False,
    fetches: bool = False,
) -> int:
    """Run all checks and print their results; return the exit code: 0 if tasks can run here.

    With `fetches`, the image is fetched; with `runs`, a container is started too.
    """
    journal = await _read_journal(settings)
    checks = [
        journal.check,
        check_user(settings),
        _check_python(),
        *[check async for check in _check_engine(settings, runs=runs, fetches=fetches)],
        *_check_env_file(settings),
        _check_home(settings),
        _check_folder("--state-dir", settings.state_dir, settings.min_free_disk),
        *[check async for check in _check_orchestrator(settings, journal.registration)],
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


def check_user(settings: Settings, unit_folders: Iterable[Path] = UNIT_FOLDERS) -> Check:
    """Check that this is the user whom the runner runs as, by its journal, else by its unit.

    Another one has other rights, and with podman another engine.
    """
    own, what = os.geteuid(), "user"
    owner, has_journal = _owner_of_state(settings.state_dir)
    if owner is not None and owner != own:
        sentence = (
            f"this is {_user_name(own)}, and {settings.state_dir} belongs to {_user_name(owner)}, "
            "whose rights and engine are not checked here; run as that user"
        )
        return Check(what, sentence, EXIT_CONFIGURATION)
    service = None if has_journal else service_user(unit_folders)
    if service is not None and service not in {_user_name(own), str(own)}:
        sentence = (
            f"this is {_user_name(own)}, and {UNIT} runs as {service}, whose rights and engine are "
            "not checked here; run `sudo /usr/local/bin/victoria-runner doctor`, which has the "
            "service's user and options, or give the --state-dir of your own runner"
        )
        return Check(what, sentence, EXIT_CONFIGURATION)
    return Check(what, _user_name(own))


def _owner_of_state(state_dir: Path) -> tuple[int | None, bool]:
    """Return the owner of the journal, else for root, who may write anywhere, of the folder.

    The second value is whether there is a journal.
    """
    with suppress(OSError):
        return (state_dir / JOURNAL_NAME).stat().st_uid, True
    with suppress(OSError):
        return (state_dir.stat().st_uid if os.geteuid() == 0 else None), False
    return None, False


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _check_python() -> Check:
    sentence = other_python()
    return Check(
        "python", sentence or f"Python {platform.python_version()}", is_warning=bool(sentence)
    )


async def _check_engine(settings: Settings, *, runs: bool, fetches: bool) -> AsyncIterator[Check]:
    try:
        engine = find_engine(await runtime_to_use(settings), inherited=settings.engine_env)
        facts = await engine.facts()
    except (NoContainerRuntime, EngineError) as error:
        yield Check("engine", str(error), error.exit_code)
        return
    mode = "rootless" if facts.is_rootless else "as root"
    yield Check("engine", f"{engine.kind} {facts.version} answers, {mode}")
    yield await (_fetch_image if fetches else _check_image)(settings, engine)
    if facts.storage is not None and _is_folder(facts.storage):
        yield _check_free("engine's storage", facts.storage, settings.min_free_disk)
    if not facts.is_rootless:
        yield Check("root", ROOTFUL % engine.kind, is_warning=True)
    async for check in _check_image_user(settings, engine, facts, runs=runs):
        yield check
    if not facts.can_limit_processes:
        yield Check("processes", _UNLIMITED_PROCESSES, is_warning=True)
    if runs:
        async for check in _check_container(settings, engine):
            yield check
    if engine.kind == "podman" and facts.is_rootless:
        for check in _check_rootless(facts):
            yield check


def _check_rootless(facts: EngineFacts) -> Iterator[Check]:
    """Check what rootless podman needs from the host."""
    if not facts.has_user_ids:
        yield Check(
            "user ids",
            "this user has no user ids to give to containers; run `sudo usermod "
            "--add-subuids 100000-165535 --add-subgids 100000-165535 USER` with numbers that are "
            "free in /etc/subuid and /etc/subgid, then `podman system migrate` as this user",
            EXIT_CONFIGURATION,
        )
    if facts.cgroup_manager == "systemd":
        yield check_linger()
    else:
        yield Check(
            "cgroups",
            "podman does not use systemd's cgroups, so that containers end with the service; run "
            "`loginctl enable-linger` for this user, and set in the unit, or here, "
            f"XDG_RUNTIME_DIR=/run/user/{os.geteuid()} and "
            f"DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{os.geteuid()}/bus",
            EXIT_CONFIGURATION,
        )


def check_linger(folder: Path = LINGER) -> Check:
    """Check that this user's systemd, under which rootless containers run, outlives the logins."""
    user = _user_name(os.geteuid())
    if os.path.lexists(folder / user):
        return Check("cgroups", "containers outlive the service")
    sentence = (
        f"containers end when {user} logs out, and with them their tasks: lingering is off; run "
        f"`sudo loginctl enable-linger {user}`"
    )
    return Check("cgroups", sentence, EXIT_CONFIGURATION)


async def _check_container(settings: Settings, engine: Engine) -> AsyncIterator[Check]:
    """Start a container as a task's would be, in a task's folder, and check what it has."""
    what, task_id = "container", f"doctor-{secrets.token_hex(8)}"
    has_home = _is_folder(settings.victoria_home)
    runner_id = None
    with suppress(OSError):
        runner_id = known_runner_id(settings.state_dir)
    try:
        variables = read_env_file(settings.env_file).variables
        if has_home:
            await anyio.to_thread.run_sync(_make_folder, settings, task_id)
        spec = replace(
            common_spec(settings, task_id, with_files=True),
            # What a killed doctor leaves is an orphan, which the runner removes.
            labels={} if runner_id is None else {LABEL_RUNNER: runner_id},
        )
        if not has_home:
            spec = replace(spec, volumes={}, read_only={}, covered=())
        await fetch_image_once(engine, settings.container_image, settings.pull)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
            file.write(engine_format(variables))
            file.flush()
            rights = await probe_rights(
                *(engine, replace(spec, env_files=(Path(file.name),)), CONTAINER_HOME, _PROBE_FILE),
                folder=folder_in_container(task_id),
                url=settings.orchestrator_url,
            )
    except NoShell as error:
        sentence = f"{error}: what a container really has cannot be seen"
        yield Check(what, sentence, is_warning=True)
        return
    except HomeUnusable as error:
        yield Check(what, str(error), EXIT_TRY_AGAIN)
        return
    except (ConfigurationError, EngineError) as error:
        yield Check(what, str(error), error.exit_code)
        return
    finally:
        _remove_folder(settings.victoria_home, task_id)
    yield Check(what, f"one of {settings.container_image} was started, and removed")
    for part, sentence in describe(rights).items():
        yield Check(f"container's {part}", sentence)
    if has_home:
        yield _check_folders(rights)
    else:
        yield Check("container's folders", "not tried: the Victoria home is made at the start")
    if rights.reaches_orchestrator is False:
        sentence = (
            f"{settings.orchestrator_url} does not answer to a container: a task cannot report "
            "from inside, unless it has a proxy; check --run-arg=--network and the firewall"
        )
        yield Check("container's orchestrator", sentence, is_warning=True)
    yield _check_metadata(reached=rights.reaches_metadata)


def _make_folder(settings: Settings, task_id: str) -> None:
    """Make a task's folder, with `files` in it, and with `--home task` its copy of the home.

    Raises:
        HomeUnusable: they cannot be made.
    """
    home, tidying = settings.victoria_home, Tidying(stamp=None)
    check_home(home, settings.home, tidying, thorough=True)
    tidying = Tidying(file_stamp(time.time()))
    make_task_folder(home, task_id, settings.home, tidying, with_files=True, is_new=True)


def _remove_folder(home: Path, task_id: str) -> None:
    with suppress(OSError):
        (home / _PROBE_FILE).unlink()
    # What is left is removed by `cleanup`.
    with suppress(OSError), closing(TaskFolders(home)) as folders:
        folders.remove(task_id)


def _check_folders(rights: Rights) -> Check:
    what = "container's folders"
    places = {
        CONTAINER_HOME: rights.is_home_writable,
        f"its folder in {TASKS_IN_CONTAINER}": rights.is_folder_writable,
    }
    closed = [place for place, is_writable in places.items() if not is_writable]
    if closed:
        sentence = (
            f"cannot write in {' and '.join(closed)}: give the Victoria home to the user that the "
            "container runs as, or add --run-arg=--user=0:0; with --hardening strict you can add "
            "--run-arg=--cap-add=DAC_OVERRIDE instead"
        )
        return Check(what, sentence, EXIT_CONFIGURATION)
    if rights.visible_tasks != 1 or rights.are_files_writable:
        sentence = (
            f"it sees {rights.visible_tasks} tasks in {TASKS_IN_CONTAINER} and "
            f"{'can' if rights.are_files_writable else 'cannot'} change its own files, though it "
            "should see its own task only, and not change its files; look for mounts in --run-arg"
        )
        return Check(what, sentence, EXIT_CONFIGURATION)
    return Check(what, "home and own folder are writable; files, and other tasks, are not")


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


async def _check_image(settings: Settings, engine: CliEngine) -> Check:
    """Check that the image is on this host, or can be fetched; a check does not pull it."""
    image = settings.container_image
    try:
        try:
            await engine.fetch_image(image, PullPolicy.NEVER)
        except ImageMissing:
            if settings.pull is PullPolicy.NEVER:
                raise
            place = "not here yet"
        else:
            mismatch = await _architecture_problem(engine, image)
            if mismatch is not None:
                return mismatch
            if settings.pull is not PullPolicy.ALWAYS:
                return Check("image", f"{image} is here")
            place = "here"
        # podman looks for a name without a registry where registries.conf says.
        has_registry = engine.kind == "docker" or _REGISTRY.match(image)
        if has_registry and await engine.can_fetch(image):
            return Check("image", f"{image} is {place}, and its registry has it")
    except EngineError as error:
        advice = "check its name, the registry's, and whether that asks for a login"
        sentence = f"{error}; {advice}" if settings.pull is not PullPolicy.NEVER else str(error)
        return Check("image", sentence, error.exit_code)
    sentence = f"{image} is {place}; whether its registry has it is known when it is fetched"
    return Check("image", sentence, is_warning=True)


async def _fetch_image(settings: Settings, engine: CliEngine) -> Check:
    """Fetch the image as for a task; a login that is refused fails, though an older one is here."""
    image = settings.container_image
    try:
        unchecked = await fetch_image_once(engine, image, settings.pull)
        if isinstance(unchecked, LoginRefused):
            raise unchecked
    except EngineError as error:
        return Check("image", str(error), error.exit_code)
    mismatch = await _architecture_problem(engine, image)
    if mismatch is not None:
        return mismatch
    if unchecked is not None:
        return Check("image", f"{unchecked}; tasks use the one on this host", is_warning=True)
    return Check("image", f"{image} is here")


async def _architecture_problem(engine: CliEngine, image: str) -> Check | None:
    try:
        await check_architecture(engine, image)
    except EngineError as error:
        return Check("image", str(error), error.exit_code)
    return None


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


async def _check_image_user(
    settings: Settings, engine: Engine, facts: EngineFacts, *, runs: bool
) -> AsyncIterator[Check]:
    """Check whose files a task leaves, and that an image's USER may write in the home."""
    home, flags = settings.victoria_home, ("-u", "--user", "--userns")
    user: str | None = None
    if not any(argument.partition("=")[0] in flags for argument in settings.run_args):
        with suppress(EngineError):  # the check of the image has the reason
            user = await engine.image_user(settings.container_image)
    if not facts.is_rootless and os.geteuid() != 0:
        owner = "what tasks leave belongs to another user"
        yield Check("files", f"{owner}: {engine.kind} reads the agent's log and removes it")
    if runs or user is None or not _is_folder(home):
        return
    can_write = may_write(home.stat(), user, is_rootless=facts.is_rootless)
    sentence = f"containers run as the image's user {user}, who"
    if can_write is None:
        sentence += f" may not be able to write in {home}: `doctor --run` tries it"
        yield Check("image user", sentence, is_warning=True)
    elif not can_write:
        sentence += f" cannot write in {home}: add --run-arg=--user=0:0, or open it to that user"
        yield Check("image user", sentence, EXIT_CONFIGURATION)


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
    if os.path.lexists(existing) and not _is_folder(existing):
        sentence = f"{existing} is not a folder; choose another, or move it away"
        return Check(option, sentence, EXIT_CONFIGURATION)
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
    sentence = f"{folder} has {readable_size(free)} free, {readable_size(min_free)} must stay free"
    return Check(what, sentence)


async def _check_orchestrator(
    settings: Settings, registration: Registration | None
) -> AsyncIterator[Check]:
    url, token = settings.orchestrator_url, settings.registration_token
    if not url:
        sentence = "no --orchestrator-url: the runner needs it"
        yield Check("orchestrator", sentence, EXIT_USAGE)
    if not token:
        sentence = "no --registration-token-file: the runner needs it"
        yield Check("registration token", sentence, EXIT_USAGE)
    if not url:
        return
    try:
        async with OrchestratorClient(url, settings.ca_file) as orchestrator:
            sent_at = time.time()
            health = await orchestrator.health()
            yield Check(
                "orchestrator", f"{url} answers, version {health.get('version', 'unknown')}"
            )
            yield _check_clock(health, sent_at)
            if token:
                yield await _check_token(orchestrator, settings, registration)
    except ConfigurationError as error:
        yield Check("orchestrator", str(error), error.exit_code)
    except WireError as error:
        yield Check("orchestrator", _describe_failure(settings, error), error.exit_code)


def _check_clock(health: Mapping[str, object], sent_at: float) -> Check:
    skew_s = _skew_s(health, sent_at)
    if skew_s is None:
        return Check("clock", "not compared: the orchestrator's response has no time")
    if abs(skew_s) < 1:
        return Check("clock", "in step with the orchestrator's")
    side = "ahead of" if skew_s > 0 else "behind"
    sentence = f"this host's clock is {abs(skew_s):.0f} s {side} the orchestrator's"
    if abs(skew_s) <= _TOLERATED_SKEW_S:
        return Check("clock", sentence)
    return Check("clock", f"{sentence}; set it by NTP", EXIT_CONFIGURATION)


async def _check_token(
    orchestrator: OrchestratorClient, settings: Settings, registration: Registration | None
) -> Check:
    """Check that the token is not refused; a host that is registered needs it only to change."""
    what = "registration token"
    is_needed = registration is None or not is_same_node(
        registration.description, node_description(settings)
    )
    later = "" if is_needed else "; it is needed when this host has to register again"
    try:
        await orchestrator.check_token(settings.registration_token)
    except (Refused, Unavailable) as error:
        sentence, advice, exit_code = "cannot be tried", "this host cannot register", EXIT_TRY_AGAIN
        if error.status in _NOT_ALLOWED:
            sentence, advice = "the orchestrator refuses it", "give the right one"
            exit_code = EXIT_REGISTRATION_REFUSED
        return Check(
            what,
            f"{sentence}: {error}{later or f'; {advice}'}",
            exit_code if is_needed else EXIT_OK,
            is_warning=not is_needed,
        )
    return Check(what, f"the orchestrator does not refuse it{later}")


def _describe_failure(settings: Settings, error: WireError) -> str:
    """Return what came of the request, and what to do; a response that came is not silence."""
    url, cause = settings.orchestrator_url, root_cause(error)
    proxy = proxy_to(url)
    through = f" through the proxy {without_password(proxy)}" if proxy else ""
    no_proxy = f"the proxy, or name {urlsplit(url).hostname} in NO_PROXY; check " if proxy else ""
    if isinstance(cause, ssl.SSLCertVerificationError):
        advice = "check the certificate, and the clock of this host"
        if cause.verify_code in _UNKNOWN_CA:
            advice = "give the CA by --ca-file"
        elif cause.verify_code in _OTHER_NAME:
            advice = "give the name in the certificate as --orchestrator-url"
        return f"{url} answers{through}, and {error}; {advice}"
    if isinstance(cause, ssl.SSLError):
        return (
            f"{url} answers{through}, but not with TLS ({error}); check the port: it may be one "
            "for plain HTTP"
        )
    if isinstance(cause, socket.gaierror):
        return f"{url} cannot be reached{through}: {error}; check {no_proxy}the name, and DNS here"
    if isinstance(error, Unavailable) and error.status in _NOT_READY:
        return (
            f"{url} answers{through} with {error}: the orchestrator, or a proxy in front of it, is "
            "not ready; check that it runs"
        )
    if isinstance(error.__cause__, (type(None), ValueError)):
        return (
            f"{url} answers{through}, but not as an orchestrator: {error}; check {no_proxy}the "
            "host, the port and the path in --orchestrator-url"
        )
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
    sentence = (
        f"parked reports: {len(parked)}, the last: {parked[-1].parked}; compare the tasks at "
        "the orchestrator, then run `victoria-runner outbox retry`, or `outbox drop`"
    )
    return Check("outbox", sentence, is_warning=True)


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
                "blocking": check.is_blocking,
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
