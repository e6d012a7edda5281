"""`python -m runner doctor`: look at everything that a task needs, and say what to do about it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

from runner import __version__
from runner.api.address import proxy_to, without_password
from runner.api.client import OrchestratorClient
from runner.engine.base import Engine
from runner.engine.cli import find_engine
from runner.errors import (
    EXIT_CONFIGURATION,
    EXIT_NO_RUNTIME,
    EXIT_OK,
    EXIT_TRY_AGAIN,
    ConfigurationError,
    EngineError,
    ImageMissing,
    JournalError,
    NoContainerRuntime,
    WireError,
)
from runner.journal.journal import JOURNAL_NAME, Journal
from runner.model import OutboxEntry, PullPolicy, Task
from runner.node import find_conflict, runtime_to_use
from runner.settings import Settings
from runner.workspace.folders import free_disk

_TOLERATED_SKEW_S = 60.0


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it will do, and a sentence about it.

    `exit_code` is the one that doctor ends with when this is the first thing that will not do.
    """

    what: str
    is_good: bool
    sentence: str
    exit_code: int = EXIT_OK


async def examine(settings: Settings, tell: Callable[[str], None], *, as_json: bool) -> int:
    """Look at everything and tell it; give the exit code: 0 if tasks can run here."""
    book = await _read_journal(settings)
    tasks, entries = book.tasks, book.entries
    findings = [book.finding]
    checks = (_engine(settings), _folders(settings), _orchestrator(settings))
    for check in checks:
        findings += [finding async for finding in check]
    findings += [_registration(book.node_id), _outbox(entries)]
    failed = [finding for finding in findings if not finding.is_good]
    if as_json:
        tell(json.dumps(_as_json(findings, book), indent=2))
    else:
        for finding in findings:
            tell(f"{'ok  ' if finding.is_good else 'FAIL'} {finding.what}: {finding.sentence}")
        for task in tasks:
            tell(f"     task {task.task_id}: {task.state.value}")
    return failed[0].exit_code if failed else EXIT_OK


async def _engine(settings: Settings) -> AsyncIterator[Finding]:
    try:
        engine = find_engine(await runtime_to_use(settings))
        facts = await engine.facts()
    except NoContainerRuntime as error:
        yield Finding("engine", is_good=False, sentence=str(error), exit_code=EXIT_NO_RUNTIME)
        return
    except EngineError as error:
        yield Finding("engine", is_good=False, sentence=str(error), exit_code=EXIT_TRY_AGAIN)
        return
    how = "rootless" if facts.is_rootless else "as root"
    yield Finding("engine", is_good=True, sentence=f"{engine.kind} {facts.version} answers, {how}")
    yield await _image(settings, engine)
    if engine.kind != "podman" or not facts.is_rootless:
        return
    if not facts.has_user_ids:
        yield Finding(
            "user ids",
            is_good=False,
            sentence="this user has no user ids to give to containers; run `sudo usermod "
            "--add-subuids 100000-165535 --add-subgids 100000-165535 USER` with numbers that are "
            "free in /etc/subuid and /etc/subgid, then `podman system migrate` as this user",
            exit_code=EXIT_CONFIGURATION,
        )
    survives = facts.cgroup_manager == "systemd"
    yield Finding(
        "cgroups",
        is_good=survives,
        sentence="containers outlive the service"
        if survives
        else "podman does not use systemd's cgroups, so that containers end with the service; run "
        "`loginctl enable-linger` for this user and set XDG_RUNTIME_DIR and "
        "DBUS_SESSION_BUS_ADDRESS",
        exit_code=EXIT_CONFIGURATION,
    )


async def _image(settings: Settings, engine: Engine) -> Finding:
    """See whether the image is here; one that may be fetched is not fetched for this."""
    image = settings.container_image
    try:
        await engine.fetch_image(image, PullPolicy.NEVER)
    except ImageMissing as error:
        if settings.pull is PullPolicy.NEVER:
            return Finding("image", is_good=False, sentence=str(error), exit_code=EXIT_TRY_AGAIN)
        sentence = f"{image} is not here yet and will be fetched at the start"
        return Finding("image", is_good=True, sentence=sentence)
    except EngineError as error:
        return Finding("image", is_good=False, sentence=str(error), exit_code=EXIT_TRY_AGAIN)
    return Finding("image", is_good=True, sentence=f"{image} is here")


async def _folders(settings: Settings) -> AsyncIterator[Finding]:
    folders = {"--victoria-home": settings.victoria_home, "--state-dir": settings.state_dir}
    for option, folder in folders.items():
        yield _folder(option, folder, settings.min_free_disk)


def _folder(option: str, folder: Path, needed: int) -> Finding:
    # What is still to be made will be its maker's.
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not (os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK, effective_ids=True)):  # noqa: PTH112 - Path's own raises for what may not be looked at
        return Finding(
            option,
            is_good=False,
            sentence=f"cannot write in {there}: run as its owner, or choose another folder",
            exit_code=EXIT_CONFIGURATION,
        )
    if there != folder:
        return Finding(option, is_good=True, sentence=f"{folder} will be made at the start")
    free = free_disk(folder)
    return Finding(
        option,
        is_good=free >= needed,
        sentence=f"{folder} has {free >> 20} MiB free, {needed >> 20} MiB are to stay free"
        + ("" if free >= needed else "; free some space there or lower --min-free-disk"),
        exit_code=EXIT_TRY_AGAIN,
    )


async def _orchestrator(settings: Settings) -> AsyncIterator[Finding]:
    if not settings.orchestrator_url:
        yield Finding("orchestrator", is_good=True, sentence="not asked: no --orchestrator-url")
        return
    try:
        async with OrchestratorClient(settings.orchestrator_url, settings.ca_file) as orchestrator:
            asked_at = time.time()
            about = await orchestrator.health()
    except ConfigurationError as error:
        yield Finding(
            "orchestrator", is_good=False, sentence=str(error), exit_code=EXIT_CONFIGURATION
        )
        return
    except WireError as error:
        yield Finding(
            "orchestrator",
            is_good=False,
            sentence=_no_answer(settings.orchestrator_url, error),
            exit_code=EXIT_TRY_AGAIN,
        )
        return
    version = about.get("version", "unknown")
    yield Finding(
        "orchestrator",
        is_good=True,
        sentence=f"{settings.orchestrator_url} answers, version {version}",
    )
    skew_s = _skew_s(about, asked_at)
    if skew_s is not None:
        is_near = abs(skew_s) <= _TOLERATED_SKEW_S
        yield Finding(
            "clock",
            is_good=is_near,
            sentence=f"this host's clock is {skew_s:+.0f} s off the orchestrator's"
            + ("" if is_near else "; set it by NTP"),
            exit_code=EXIT_CONFIGURATION,
        )


def _no_answer(url: str, error: WireError) -> str:
    proxy = proxy_to(url)
    through = f" through the proxy {without_password(proxy)}" if proxy else ""
    way_round = f"the proxy, or name {urlsplit(url).hostname} in NO_PROXY; check " if proxy else ""
    return (
        f"{url} does not answer{through}: {error}; check {way_round}the address, that it runs, "
        "and that outbound connections are allowed"
    )


def _skew_s(about: Mapping[str, object], now: float) -> float | None:
    told = about.get("timestamp")
    if not isinstance(told, str):
        return None
    with suppress(ValueError):
        moment = datetime.fromisoformat(told.replace("Z", "+00:00"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return now - moment.timestamp()
    return None


@dataclass(frozen=True)
class _Book:
    """What the journal says, and whether it could be read."""

    finding: Finding
    tasks: Sequence[Task] = ()
    entries: Sequence[OutboxEntry] = ()
    node_id: str | None = None


async def _read_journal(settings: Settings) -> _Book:
    path = settings.state_dir / JOURNAL_NAME
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return _Book(Finding("journal", is_good=True, sentence=f"none yet in {path.parent}"))
    except OSError as error:
        sentence = (
            f"cannot read {path}: {(error.strerror or str(error)).lower()}; run as the runner's "
            "user, or give the --state-dir of your own"
        )
        return _Book(
            Finding("journal", is_good=False, sentence=sentence, exit_code=EXIT_CONFIGURATION)
        )
    try:
        journal = Journal(path, read_only=True)
        try:
            tasks, entries = await journal.open_tasks(), await journal.entries()
            registration = await journal.registration(settings.orchestrator_url)
            unfinished = await journal.unfinished_tasks()
        finally:
            journal.close_file()
    except JournalError as error:
        return _Book(
            Finding("journal", is_good=False, sentence=str(error), exit_code=EXIT_TRY_AGAIN)
        )
    conflict = find_conflict(unfinished, settings, await runtime_to_use(settings))
    finding = Finding(
        "journal",
        is_good=conflict is None,
        sentence=conflict or f"{len(tasks)} open tasks",
        exit_code=EXIT_CONFIGURATION,
    )
    return _Book(finding, tasks, entries, registration.identity.node_id if registration else None)


def _registration(node_id: str | None) -> Finding:
    sentence = f"registered as {node_id}" if node_id else "not registered yet"
    return Finding("registration", is_good=True, sentence=sentence)


def _outbox(entries: Sequence[OutboxEntry]) -> Finding:
    parked = [entry for entry in entries if entry.parked is not None]
    if not parked:
        return Finding("outbox", is_good=True, sentence=f"{len(entries)} reports wait")
    return Finding(
        "outbox",
        is_good=False,
        sentence=f"{len(parked)} reports were refused or given up, the last: {parked[-1].parked}; "
        "compare the tasks at the orchestrator",
        exit_code=EXIT_TRY_AGAIN,
    )


def _as_json(findings: list[Finding], book: _Book) -> object:
    return {
        "version": __version__,
        "ok": all(finding.is_good for finding in findings),
        "node_id": book.node_id,
        "checks": [
            {"what": finding.what, "ok": finding.is_good, "sentence": finding.sentence}
            for finding in findings
        ],
        "tasks": [
            {
                key: value
                for key, value in asdict(task).items()
                # The prompt may be confidential.
                if key not in {"assignment", "orchestrator_url"}
            }
            for task in book.tasks
        ],
        "outbox": [
            {
                "task_id": entry.task_id,
                "report": entry.path,
                "attempts": entry.attempts,
                "parked": entry.parked,
            }
            for entry in book.entries
        ],
    }
