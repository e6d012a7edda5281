"""An engine's command line: each call with a deadline, and what the engine complains of raised."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from runner.answer import Answer
from runner.errors import EngineSilent, NoSuchContainer
from runner.program import Program

log = logging.getLogger(__name__)

ANSWER_DEADLINE_S = 30.0
RUN_DEADLINE_S = 120.0
STOP_GRACE_S = 10


class EngineCalls:
    """podman's or docker's program, as it is called."""

    def __init__(
        self, kind: str, path: str, environment: Mapping[str, str], deadline_s: float
    ) -> None:
        """Start it with `environment` and nothing else; `deadline_s` is for what is quick."""
        self._kind = kind
        self._deadline_s = deadline_s
        self._program = Program(path, environment)
        self._has_migrated = False

    async def ask(
        self,
        *arguments: str,
        deadline_s: float | None = None,
        is_one_stream: bool = False,
    ) -> Answer:
        """Call, and raise what the engine complains of."""
        answer = await self.call(*arguments, deadline_s=deadline_s, is_one_stream=is_one_stream)
        if answer.is_good:
            return answer
        raise answer.meaning(f"cannot do {self._kind} {arguments[0]}: {answer.complaint}")

    async def call(
        self,
        *arguments: str,
        deadline_s: float | None = None,
        is_one_stream: bool = False,
        folder: str | None = None,
        patience_s: float = 0.0,
    ) -> Answer:
        """Run the engine once, or twice when podman asks to be mended in between.

        Raises:
            EngineSilent: there is no answer, or none that says what is true.
            EngineError: the command cannot be given at all.
        """
        if deadline_s is None:
            deadline_s = self._deadline_s
        call_once = partial(
            self._program.call,
            arguments,
            deadline_s,
            is_one_stream=is_one_stream,
            folder=folder,
            patience_s=patience_s,
        )
        answer = await call_once()
        if answer.asks_for_migration and not self._has_migrated:
            self._has_migrated = True
            log.error("podman refuses to work; `podman system migrate` stops all its containers")
            await self._program.call(("system", "migrate"), RUN_DEADLINE_S)
            answer = await call_once()
        if not answer.is_good and answer.meaning is EngineSilent:
            raise EngineSilent(f"cannot do {self._kind} {arguments[0]}: {answer.complaint}")
        return answer

    async def insist(self, *arguments: str) -> None:
        """Call twice if need be: after an accident the first call fails and the second works."""
        deadline_s = self._deadline_s + STOP_GRACE_S
        answer = await self.call(*arguments, deadline_s=deadline_s)
        if not answer.is_good and answer.meaning is not NoSuchContainer:
            with suppress(NoSuchContainer):
                await self.ask(*arguments, deadline_s=deadline_s)
