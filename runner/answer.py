"""An engine's answer to one command, and what its complaint means."""

from __future__ import annotations

import re
from dataclasses import dataclass

from runner.errors import EngineError, EngineSilent, ImageMissing, NameInUse, NoSuchContainer

# Each as podman 4.3 to 5.8 and docker 20.10 to 28 say it. The first that is found holds.
_MEANINGS: tuple[tuple[re.Pattern[str], type[EngineError]], ...] = (
    (
        re.compile(
            r"cannot connect to (?:the docker daemon|podman)|unable to connect to podman|"
            r"error during connect|while trying to connect to the docker"
        ),
        EngineSilent,
    ),
    (re.compile(r"no such container|no container with name or id"), NoSuchContainer),
    (re.compile(r"container name \S+ is already in use"), NameInUse),
    (re.compile(r"image not known|no such image|unable to find image"), ImageMissing),
)
_CHATTER = re.compile(r"time=\"\S+\" level=(?:debug|info|warning) |Usage: |(?:See|Run) '")
_PREFIXES = ("docker: ", "Error: ", "Error response from daemon: ")
_MAX_COMPLAINT = 500


@dataclass(frozen=True)
class Answer:
    """How a command of the engine ended; a negative exit code is the signal that ended it."""

    exit_code: int
    output: str
    errors: str

    @property
    def is_good(self) -> bool:
        """Tell whether the engine did what it was told."""
        return self.exit_code == 0

    @property
    def asks_for_migration(self) -> bool:
        """Tell whether podman refuses every command until it is mended."""
        return not self.is_good and "podman system migrate" in self.errors

    @property
    def complaint(self) -> str:
        """Give the engine's last words on one line, without its own prefixes and advice."""
        if self.exit_code < 0:
            return f"it was ended by signal {-self.exit_code}"
        lines = [line.strip() for line in (self.errors or self.output).splitlines()]
        lines = [line for line in lines if line and not _CHATTER.match(line)]
        words = next((line for line in reversed(lines) if "rror" in line), (lines or [""])[-1])
        for prefix in _PREFIXES:
            words = words.removeprefix(prefix)
        return words[:_MAX_COMPLAINT] or f"exit code {self.exit_code}"

    @property
    def meaning(self) -> type[EngineError]:
        """Say which of our errors the complaint is."""
        if self.exit_code < 0:
            return EngineSilent
        said = (self.errors or self.output).lower()
        return next((error for words, error in _MEANINGS if words.search(said)), EngineError)
