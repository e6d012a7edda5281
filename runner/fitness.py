"""Whether this host may take on new work: room on its disks, an engine that answers, an image.

What forbids it is a trouble in the workload: the heartbeats say `error`, and an operator reads why.
"""

from __future__ import annotations

import logging

import anyio.to_thread

from runner.errors import EngineError
from runner.files import free_disk
from runner.log import fields
from runner.parts import Parts
from runner.workload import START

log = logging.getLogger(__name__)

_ENGINE = "engine"
_LONGEST_LOOK_S = 300.0
"""More than the engine may take to say nothing; a disk has no deadline of its own."""


async def is_fit(parts: Parts) -> bool:
    """Say whether a new task may be taken on now, and note as a trouble what forbids it."""
    parts.pulse.beat("poll", next_within_s=_LONGEST_LOOK_S)
    if not await _has_room(parts):
        return False
    troubles = parts.workload.troubles
    if any(name.startswith(f"{_ENGINE}/") for name in troubles):
        return False  # a task in hand waits for the engine, and will tell
    if _ENGINE in troubles and not await _engine_answers(parts):
        return False
    return START not in troubles or await _may_start(parts)


async def meet_engine(parts: Parts) -> None:
    """Ask the engine about itself and for the image, before the first task; say what will hurt."""
    if await _engine_answers(parts):
        await _may_start(parts)


async def _has_room(parts: Parts) -> bool:
    settings = parts.settings
    for folder in (settings.victoria_home, settings.state_dir):
        name = f"disk/{folder}"
        try:
            free = await anyio.to_thread.run_sync(free_disk, folder)
        except OSError as error:
            parts.workload.set_trouble(name, f"cannot use {folder}: {error.strerror}")
            return False
        if free < settings.min_free_disk:
            parts.workload.set_trouble(
                name,
                f"no new task is taken: {folder} has {free >> 20} MiB free and "
                f"{settings.min_free_disk >> 20} MiB are to stay free; free some space there or "
                "lower --min-free-disk",
            )
            return False
        parts.workload.clear_trouble(name)
    return True


async def _engine_answers(parts: Parts) -> bool:
    engine = parts.engine
    try:
        facts = await engine.facts()
    except EngineError as error:
        parts.workload.set_trouble(_ENGINE, f"no new task is taken: {error}")
        return False
    parts.workload.clear_trouble(_ENGINE)
    log.info(
        "engine answers",
        extra=fields(
            engine=engine.kind,
            version=facts.version,
            rootless=facts.is_rootless,
            cgroup_manager=facts.cgroup_manager,
        ),
    )
    if engine.kind == "podman" and facts.is_rootless and facts.cgroup_manager != "systemd":
        log.error(
            "podman does not use systemd's cgroups here: a stop of this service would end the "
            "containers with it; run `loginctl enable-linger` for this user and set "
            "XDG_RUNTIME_DIR and DBUS_SESSION_BUS_ADDRESS"
        )
    return True


async def _may_start(parts: Parts) -> bool:
    """See to the image again, and after a while try whatever else an engine may have refused."""
    workload, settings = parts.workload, parts.settings
    if parts.clock.uptime_s() < workload.next_start_at_s:
        return False
    parts.pulse.rest("poll")  # an image may be large, and its fetching has a deadline of its own
    try:
        await parts.engine.fetch_image(settings.container_image, settings.pull)
    except EngineError as error:
        workload.note_refused_start(str(error), parts.clock.uptime_s())
        return False
    return True
