"""./dev: one entry point for everything that is done with a checkout.

./dev demo [--keep]        run one task in a real container and show what happens; --keep leaves
                           orchestrator and runner running
./dev test [ARGUMENTS]     lint, types and tests, on podman and docker, on SQLite and PostgreSQL, on
                           Python 3.10 and 3.13, then the scenarios; with arguments for pytest,
                           only those tests
./dev check                lint, types and import rules; of the Ansible role as well
./dev bench [ARGUMENTS]    measure; "claims" and "fleet" measure the orchestrator
./dev soak [ARGUMENTS]     random tasks under random faults; --tasks N, --seed S to replay one,
                           --engine podman or docker; see docs/reliability.md
./dev rollout [ARGUMENTS]  run the Molecule scenarios of the Ansible role: all, or with arguments
                           for pytest some, on bare hosts first: -k "bare or upgrade"
./dev contract             lint the contract, and try clients that are generated from it
./dev help                 this text

It installs what is missing, prints what and how long that takes, and leaves no daemon running.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from tools.dev import environments as envs
from tools.dev import postgres
from tools.dev import rollout as scenarios
from tools.dev.contract import run as contract
from tools.dev.engines import Engine, running_docker
from tools.dev.images import ready_engine, ready_podman
from tools.dev.packages import ensure_browser, ensure_program
from tools.dev.shell import ROOT, SetupError, run_in_foreground, say, setup_lock

ON_EVERY_PYTHON = ["tests/unit", "tests/contract", "tests/reporter"]
PYTHONS = ["3.10", "3.13"]
# Many tests wait for deadlines; one worker more than there are cores keeps the cores at work.
WORKERS = [f"--numprocesses={(os.cpu_count() or 1) + 1}", "--dist=worksteal"]
ORCHESTRATOR_BENCHMARKS = {"claims", "fleet"}
"""Benchmarks that need a database and no engine."""


def main(arguments: list[str]) -> int:
    """Run the command that the arguments name; return the exit code."""
    commands = {command.__name__: command for command in (demo, test, check, bench, soak, rollout)}
    commands["contract"] = contract
    name, *rest = arguments or ["help"]
    if name in {"help", "-h", "--help"}:
        print(__doc__.strip())
        return 0
    if name not in commands:
        raise SetupError(f"cannot run {name!r}: the commands are {', '.join(commands)} and help")
    return commands[name](rest)


def demo(arguments: list[str]) -> int:
    """Run the demo on one engine."""
    with setup_lock():
        python = envs.ensure_demo()
        engine, image = ready_engine()
    env = {"VICTORIA_DEMO_IMAGE": image, "VICTORIA_DEMO_ENGINE": engine.name, **engine.env}
    return run_in_foreground([str(python), "-m", "tests.demo", *arguments], env)


def test(arguments: list[str]) -> int:
    """Run the tests; without arguments also the checks, the other Pythons and the scenarios."""
    codes = [] if arguments else [check([])]
    with contextlib.ExitStack() as stack:
        with setup_lock():
            python = envs.project().ensure()
            env = {**both_engines(stack), **database_server(stack)}
            ensure_browser()
            ensure_program("systemctl", "a watchdog is tested with a real systemd")
        codes.append(run_in_foreground([str(python), "-m", "pytest", *(arguments or WORKERS)], env))
        if not arguments:
            codes.extend(other_pythons(python, env))
    if not arguments:
        codes.append(rollout([]) if envs.ensure_ansible() else 0)
    return max(codes)


def other_pythons(python: Path, env: dict[str, str]) -> list[int]:
    """Run the tests that hold on every Python on the versions that the main one is not."""
    codes = []
    for version in PYTHONS:
        if version == envs.version_of(str(python)):
            continue
        other = envs.find_python(version)
        if other is None:
            say(f"not testing on Python {version}: none was found on PATH or under pyenv")
            continue
        say(f"testing {' and '.join(ON_EVERY_PYTHON)} on Python {version} ({other})")
        with setup_lock():
            inside = envs.project(f".venv-{version}").ensure(other)
        command = [str(inside), "-m", "pytest", *WORKERS, *ON_EVERY_PYTHON]
        codes.append(run_in_foreground(command, env))
    return codes


def check(arguments: list[str]) -> int:
    """Run linters, formatter and type checker; all of them, whatever the first ones find."""
    if arguments:
        raise SetupError("cannot take arguments: ./dev check checks everything")
    with setup_lock():
        python = envs.project().ensure()
        programs = envs.ensure_ansible()
    commands = project_checks(python, (ROOT / "pyproject.toml").read_text())
    if programs is None:
        say(f"not checking the role: {envs.NO_ANSIBLE_PYTHON}")
    else:
        path = f"PATH={programs}:{os.environ['PATH']}"
        folders = ["ansible", "molecule", ".config", ".github"]
        commands.append(["env", path, "yamllint", "--strict", *folders])
        commands.append(["env", path, "ansible-lint", "--offline", "-q"])
    return max(run_in_foreground(command) for command in commands)


def project_checks(python: Path, settings: str) -> list[list[str]]:
    """Return the commands that check the code, by the settings in pyproject.toml."""
    commands = [
        [str(python), "-m", "ruff", "check", "--quiet", "."],
        [str(python), "-m", "ruff", "format", "--quiet", "--diff", "."],
        [str(python), "-m", "mypy"],
    ]
    if "\n[tool.importlinter]\n" in settings:
        commands.append([str(python.parent / "lint-imports"), "--no-logo"])
    return commands


def bench(arguments: list[str]) -> int:
    """Run benchmarks, on the engines that the tests run on or on a PostgreSQL."""
    with contextlib.ExitStack() as stack:
        with setup_lock():
            python = envs.project().ensure()
            if ORCHESTRATOR_BENCHMARKS & set(arguments):
                # Unlike the tests', it waits for the disk.
                env = database_server(stack, settings=())
            else:
                env = both_engines(stack)
        return run_in_foreground([str(python), "-m", "benchmarks", *arguments], env)


def soak(arguments: list[str]) -> int:
    """Run a soak; docker is made ready only if an argument names it."""
    with contextlib.ExitStack() as stack:
        with setup_lock():
            python = envs.project().ensure()
            if any("docker" in argument for argument in arguments):
                env = both_engines(stack)
            else:
                engine, image = ready_engine()
                env = engines_env(image, engine)
        return run_in_foreground([str(python), "-m", "tests.soak", *arguments], env)


def rollout(arguments: list[str]) -> int:
    """Run the Molecule scenarios."""
    with setup_lock():
        # First what this machine may have no Python for.
        env = scenarios.ready()
        python = envs.project().ensure()
    return run_in_foreground(scenarios.command(python, env, arguments))


def both_engines(stack: contextlib.ExitStack) -> dict[str, str]:
    """Make podman and docker ready; return the environment for tests."""
    first, image = ready_podman()
    second = stack.enter_context(running_docker(image, first))
    return engines_env(image, first, second)


def engines_env(image: str, *engines: Engine) -> dict[str, str]:
    """Return the environment that names engines and the stand-in image to tests."""
    env = {
        "VICTORIA_TEST_IMAGE": image,
        "VICTORIA_TEST_ENGINES": ",".join(engine.name for engine in engines),
    }
    for engine in engines:
        env |= engine.env
    return env


def database_server(
    stack: contextlib.ExitStack, settings: tuple[str, ...] = postgres.UNSAFE_AND_FAST
) -> dict[str, str]:
    """Start a PostgreSQL; return the environment that names it to tests."""
    return {"VICTORIA_TEST_POSTGRESQL": stack.enter_context(postgres.postgresql(settings))}


def interrupt(*_: object) -> NoReturn:
    """End on TERM as on Ctrl-C, so that everything is cleaned up."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    os.chdir(ROOT)
    try:
        sys.exit(main(sys.argv[1:]))
    except SetupError as error:
        say(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
