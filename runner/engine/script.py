"""Run a shell script in a short-lived container, in place of the image's program."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import anyio

from runner.engine.base import LABEL_PROBE, ContainerSpec, Engine, Phase
from runner.errors import EngineError

_LOOK_AGAIN_S = 0.2
_LINES = 200
_NO_SHELL = re.compile(r"\bsh\W.*not found|executable file.*not found", re.IGNORECASE)


class NoShell(EngineError):
    """The image has no shell, so that no script runs in its containers."""


class ScriptResult(NamedTuple):
    """How a script ended, and the last lines of its output."""

    exit_code: int
    output: str


async def run_script(
    engine: Engine, spec: ContainerSpec, script: str, arguments: Sequence[str], timeout_s: float
) -> ScriptResult:
    """Start a container with a script, and remove it when it has ended.

    `spec` needs no arguments.

    Raises:
        NoShell: the image has no shell.
        EngineError: the container cannot be started, or does not end.
    """
    spec = replace(
        spec,
        arguments=("-c", script, "sh", *arguments),
        labels={**spec.labels, LABEL_PROBE: spec.name},
        timeout_s=timeout_s,
        run_args=(*spec.run_args, "--entrypoint", "sh"),
    )
    try:
        container_id = await engine.run(spec)
        with anyio.fail_after(timeout_s):
            exit_code = await _wait_for_end(engine, container_id)
        return ScriptResult(exit_code, await engine.last_output(container_id, _LINES))
    except TimeoutError:
        raise EngineError(f"the container did not end within {timeout_s:g} s") from None
    except EngineError as error:
        if _NO_SHELL.search(str(error)):
            raise NoShell("the image has no shell (sh)") from error
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await remove_probe(engine, spec.name)


async def _wait_for_end(engine: Engine, container_id: str) -> int:
    while True:
        await engine.wait(container_id)
        container = await engine.inspect(container_id)
        if container is None:
            raise EngineError("the container was removed by somebody else")
        if container.phase is not Phase.RUNNING:
            return container.exit_code
        await anyio.sleep(_LOOK_AGAIN_S)


def unique_name(prefix: str) -> str:
    """Return a name for a script's container that no other one has."""
    return f"{prefix}-{secrets.token_hex(8)}"


async def remove_probe(engine: Engine, name: str) -> None:
    """Remove a script's container that is still there."""
    container = await engine.inspect(name)
    if container is not None and container.labels.get(LABEL_PROBE) == name:
        await engine.remove(container.container_id)
