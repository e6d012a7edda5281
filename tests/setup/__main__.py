"""./dev: one entry point for everything that is done with a checkout.

./dev demo [--keep]        watch a task go through a real container; --keep leaves all running
./dev test [ARGUMENTS]     lint, types and tests, on podman and docker, on SQLite and PostgreSQL, on
                           Python 3.10 and 3.13, then the scenarios; with arguments for pytest,
                           only those tests
./dev check                lint and types, of the Ansible role as well
./dev bench [ARGUMENTS]    measure; "claims" and "fleet" are the orchestrator's
./dev soak [ARGUMENTS]     random tasks under random faults; --tasks N, --seed S to replay one,
                           --engine podman or docker; see docs/reliability.md
./dev rollout [ARGUMENTS]  run the Molecule scenarios of the Ansible role: all, or with arguments
                           for pytest some, on bare hosts first: -k "bare or upgrade"
./dev help                 this text

It installs what is missing, says so, and leaves no daemon behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn

from tests.setup import browser, docker, podman, postgres, pythons
from tests.setup import rollout as roles
from tests.setup.image import Engine
from tests.setup.packages import ensure_program, find_program
from tests.setup.steps import ROOT, SetupError, hand_over, one_at_a_time, say

CHECKED = ["runner", "orchestrator", "tests", "benchmarks"]
ON_EVERY_PYTHON = ["tests/unit", "tests/contract", "tests/reporter"]
PYTHONS = ["3.10", "3.13"]
# Many tests wait for deadlines, so that one worker more than there are cores keeps them at work.
WORKERS = [f"--numprocesses={(os.cpu_count() or 1) + 1}", "--dist=worksteal"]
OF_THE_ORCHESTRATOR = {"claims", "fleet"}
"""Benchmarks that need a database and no engine."""


def main(arguments: list[str]) -> int:
    """Do what the command says; return the exit code."""
    commands = {
        "demo": demo,
        "test": test,
        "check": check,
        "bench": bench,
        "soak": soak,
        "rollout": rollout,
    }
    name, *rest = arguments or ["help"]
    if name in {"help", "-h", "--help"}:
        print(__doc__.strip())
        return 0
    if name not in commands:
        raise SetupError(f"cannot do {name!r}: the commands are {', '.join(commands)} and help")
    return commands[name](rest)


def demo(arguments: list[str]) -> int:
    """Run the demo on one engine."""
    with contextlib.ExitStack() as stack:
        with one_at_a_time():
            python = pythons.environment()
            engine, image = one_engine(stack)
        environment = {"VICTORIA_DEMO_IMAGE": image, "VICTORIA_DEMO_ENGINE": engine.name}
        command = [str(python), "-m", "tests.demo", *arguments]
        return hand_over(command, {**environment, **engine.environment})


def one_engine(stack: contextlib.ExitStack) -> tuple[Engine, str]:
    """Return the engine for the demo: podman, or docker where only docker is here."""
    has_docker = find_program("docker") and docker.answers(Engine("docker"))
    if find_program("podman") or not has_docker:
        return podman.ready()
    engine = stack.enter_context(docker.docker())
    return engine, docker.build(engine)


def test(arguments: list[str]) -> int:
    """Run the tests; without arguments also the checks, and the other Pythons."""
    codes = []
    if not arguments:
        codes.append(check([]))
    with contextlib.ExitStack() as stack:
        with one_at_a_time():
            python = pythons.environment()
            environment = {**both_engines(stack), **database_server(stack)}
            browser.ready()
            ensure_program("systemctl", "a watchdog is tested with a real systemd")
        command = [str(python), "-m", "pytest", *(arguments or WORKERS)]
        codes.append(hand_over(command, environment))
        if not arguments:
            codes.extend(other_pythons(str(python), environment))
    if not arguments:
        codes.append(rollout([]) if roles.tools() else 0)
    return max(codes)


def other_pythons(python: str, environment: dict[str, str]) -> list[int]:
    """Run the tests that hold on every Python on those that the main environment is not made of."""
    codes = []
    folders = [folder for folder in ON_EVERY_PYTHON if (ROOT / folder).is_dir()]
    for version in PYTHONS:
        if version == pythons.version_of(python) or not folders:
            continue
        other = pythons.find(version)
        if other is None:
            say(f"Python {version} is not here: not tested on it")
            continue
        say(f"Python {version} is here, at {other}: testing {' and '.join(folders)} on it")
        with one_at_a_time():
            inside = pythons.environment(other, f".venv-{version}")
        codes.append(hand_over([str(inside), "-m", "pytest", *WORKERS, *folders], environment))
    return codes


def check(arguments: list[str]) -> int:
    """Run the linter, the formatter and the type checker; all of them, whatever the first says."""
    if arguments:
        raise SetupError("cannot take arguments: ./dev check checks everything")
    with one_at_a_time():
        python = str(pythons.environment())
        role = roles.lint()
    folders = [folder for folder in CHECKED if any((ROOT / folder).glob("**/*.py"))]
    return max(
        hand_over([python, "-m", "ruff", "check", "--quiet", "."]),
        hand_over([python, "-m", "ruff", "format", "--quiet", "--diff", "."]),
        hand_over([python, "-m", "mypy", *folders]),
        *(hand_over(command) for command in role),
    )


def bench(arguments: list[str]) -> int:
    """Run the benchmarks on the engines that the tests run on, or on a PostgreSQL."""
    with contextlib.ExitStack() as stack:
        with one_at_a_time():
            python = pythons.environment()
            if OF_THE_ORCHESTRATOR & set(arguments):
                # Unlike the tests' it waits for the disk.
                environment = database_server(stack, settings=())
            else:
                environment = both_engines(stack)
        return hand_over([str(python), "-m", "benchmarks", *arguments], environment)


def soak(arguments: list[str]) -> int:
    """Run a soak; docker is made ready only where it is asked for."""
    with contextlib.ExitStack() as stack:
        with one_at_a_time():
            python = pythons.environment()
            if any("docker" in argument for argument in arguments):
                environment = both_engines(stack)
            else:
                engine, image = one_engine(stack)
                environment = {
                    "VICTORIA_TEST_IMAGE": image,
                    "VICTORIA_TEST_ENGINES": engine.name,
                    **engine.environment,
                }
        return hand_over([str(python), "-m", "tests.soak", *arguments], environment)


def rollout(arguments: list[str]) -> int:
    """Run the Molecule scenarios."""
    with one_at_a_time():
        # First what this machine may have no Python for: it is told at once.
        environment = roles.ready()
        python = pythons.environment()
    return hand_over(roles.command(python, environment, arguments))


def database_server(
    stack: contextlib.ExitStack, settings: tuple[str, ...] = postgres.UNSAFE_AND_FAST
) -> dict[str, str]:
    """Start a PostgreSQL; return the environment that tells the tests."""
    return {"VICTORIA_TEST_POSTGRESQL": stack.enter_context(postgres.postgresql(settings))}


def both_engines(stack: contextlib.ExitStack) -> dict[str, str]:
    """Make podman and docker ready; return the environment that tells the tests."""
    first, image = podman.ready()
    second = stack.enter_context(docker.docker())
    docker.bring_up(second, image, first)
    return {
        "VICTORIA_TEST_IMAGE": image,
        "VICTORIA_TEST_ENGINES": f"{first.name},{second.name}",
        **second.environment,
    }


def end(*_: object) -> NoReturn:
    """End on TERM as on Ctrl-C: through everything that tidies up."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    os.chdir(ROOT)
    try:
        sys.exit(main(sys.argv[1:]))
    except SetupError as error:
        say(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
