"""The engines that tests run on, as ./dev names them in the environment."""

import json
import os
import subprocess
from dataclasses import dataclass
from typing import Any

ADVICE = "run ./dev test, or set VICTORIA_TEST_ENGINES and VICTORIA_TEST_IMAGE"
CALL_TIMEOUT_S = 120


class NoEngineError(Exception):
    """The environment names no engine, or one that does not answer."""


class EngineCallError(subprocess.CalledProcessError):
    """A call of an engine failed; its message has what the engine said."""

    def __str__(self) -> str:
        return f"{super().__str__()}: {self.stderr}"


@dataclass(frozen=True)
class Engine:
    """A real engine, driven by its command line, independently of the runner's own code."""

    name: str

    def run(self, *arguments: str, timeout_s: float = CALL_TIMEOUT_S) -> str:
        """Run the engine and return what it printed; raise EngineCallError when it fails."""
        command = [self.name, *arguments]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=timeout_s
        )
        if done.returncode:
            raise EngineCallError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    def inspect(self, container: str) -> dict[str, Any]:
        inspected: list[dict[str, Any]] = json.loads(self.run("container", "inspect", container))
        return inspected[0]

    def containers(self) -> dict[str, str]:
        """Return the containers with a name or a label of ours, running or not: id to name."""
        columns = "{{.ID}}\t{{.Names}}\t{{.Labels}}"
        rows = [line.split("\t") for line in self.run("ps", "-a", "--format", columns).splitlines()]
        return {row[0]: row[1] for row in rows if "victoria-" in f" {row[1]} {row[2]}"}


def named_engines() -> list[Engine]:
    """Return the engines named in the environment; raise NoEngineError when none is."""
    names = [name for name in os.environ.get("VICTORIA_TEST_ENGINES", "").split(",") if name]
    if not names:
        raise NoEngineError(ADVICE)
    return [Engine(name) for name in names]


def names_for_tests() -> list[str]:
    """Return the names of the engines, or one on which the tests fail instead of vanishing."""
    try:
        return [engine.name for engine in named_engines()]
    except NoEngineError:
        return ["no-engine"]


def named_image() -> str:
    """Return the name of the stand-in image, the same in every engine."""
    if "VICTORIA_TEST_IMAGE" not in os.environ:
        raise NoEngineError(ADVICE)
    return os.environ["VICTORIA_TEST_IMAGE"]


def check_answering(engine: Engine) -> None:
    """Raise NoEngineError when the engine does not answer; for docker that is its daemon."""
    try:
        engine.run("info")
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        raise NoEngineError(f"{engine.name} does not answer: {output.strip()}") from error
