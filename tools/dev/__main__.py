"""./dev: run, test and measure what is in this checkout.

./dev demo [--keep]       run one task in a real container and show each step; with --keep,
                          the orchestrator and the runner keep running until Ctrl-C
./dev check               check lint, format, types and import rules, and lint the Ansible role
./dev test                ./dev check, then all tests but the long ones, on podman and docker, on
                          SQLite and PostgreSQL; at most ten minutes on two cores
./dev test --long         the long tests
./dev test ARGUMENTS      some tests only; the arguments are pytest's, as in tests/unit -k map
./dev test --python 3.10 [ARGUMENTS]
                          tests/unit, tests/contract and tests/reporter on another Python
./dev soak [OPTIONS]      run 300 random tasks under random faults; see docs/reliability.md
./dev rollout             test the Ansible role on containers with systemd, in the scenarios that
                          CI runs; needs sudo
./dev rollout --all       the same, with the long scenarios
./dev rollout ARGUMENTS   some scenarios only; the arguments are pytest's, as in
                          -k "bare or upgrade"
./dev lock                write requirements-runner.txt, which has the hashes of what hosts install
./dev contract            lint the contract, and generate clients that call the orchestrator
./dev bench [OPTIONS]     measure the runner, the status reporter or the orchestrator
./dev ci                  run what CI runs: test, test --long, soak, test --python 3.10, rollout
./dev help                show this text

demo, soak and bench list their options with --help. ./dev first installs what is missing, and
prints what it installs and how long that takes. It leaves no daemon running.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from tools.dev import ci as ci_steps
from tools.dev import environments as envs
from tools.dev import options, postgres
from tools.dev import rollout as scenarios
from tools.dev.contract import run as run_contract
from tools.dev.engines import Engine, running_docker
from tools.dev.images import ready_engine, ready_podman
from tools.dev.lock import write_hashes
from tools.dev.packages import ensure_browser, ensure_program
from tools.dev.shell import (
    INTERRUPTED,
    ROOT,
    SKIPPED,
    MissingPythonError,
    SetupError,
    run,
    run_in_foreground,
    say,
    setup_lock,
)

CHECK_TIMEOUT_S = 1200
ON_EVERY_PYTHON = ["tests/unit", "tests/contract", "tests/reporter"]
# Many tests wait for engines and deadlines: two workers a core keep the cores at work.
WORKERS = [f"--numprocesses={2 * (os.cpu_count() or 1)}", "--dist=worksteal"]


def main(arguments: list[str]) -> int:
    """Run the command that the arguments name; return the exit code."""
    commands = {
        command.__name__: command
        for command in (demo, check, test, soak, rollout, lock, contract, bench, ci)
    }
    name, *rest = arguments or ["help"]
    if name in {"help", "-h", "--help"}:
        print(__doc__.strip())
        return 0
    if name not in commands:
        raise SetupError(f"cannot run {name!r}: the commands are {', '.join(commands)} and help")
    return commands[name](rest)


def demo(arguments: list[str]) -> int:
    """Run the demo on one engine."""
    options.demo().parse_args(arguments)
    with setup_lock():
        python = envs.ensure_demo()
        engine, image = ready_engine()
    env = {"VICTORIA_DEMO_IMAGE": image, "VICTORIA_DEMO_ENGINE": engine.name, **engine.env}
    return run_in_foreground([str(python), "-m", "tests.demo", *arguments], env)


def check(arguments: list[str]) -> int:
    """Run linters, formatter and type checker; all of them, whatever the first ones find."""
    if arguments:
        raise SetupError("cannot take arguments: ./dev check checks everything")
    with setup_lock():
        python = envs.project().ensure()
        programs = envs.ensure_ansible()
    checks = project_checks(python, (ROOT / "pyproject.toml").read_text())
    if programs is None:
        say(f"not checking the role: {envs.NO_ANSIBLE_PYTHON}")
    else:
        checks |= role_checks(programs)
    return max(_run_check(name, command) for name, command in checks.items())


def project_checks(python: Path, settings: str) -> dict[str, list[str]]:
    """Return the commands that check the code by the settings in pyproject.toml, by their names."""
    checks = {
        "ruff check": [str(python), "-m", "ruff", "check", "--quiet", "."],
        "ruff format": [str(python), "-m", "ruff", "format", "--quiet", "--diff", "."],
        "mypy": [str(python), "-m", "mypy"],
    }
    if "\n[tool.importlinter]\n" in settings:
        checks["import-linter"] = [str(python.parent / "lint-imports"), "--no-logo"]
    return checks


def role_checks(programs: Path) -> dict[str, list[str]]:
    """Return the commands that check the Ansible role, by their names."""
    path = f"PATH={programs}:{os.environ['PATH']}"
    folders = ["ansible", "molecule", ".config", ".github"]
    return {
        "yamllint": ["env", path, "yamllint", "--strict", *folders],
        "ansible-lint": ["env", path, "ansible-lint", "--offline", "-q"],
    }


def _run_check(name: str, command: list[str]) -> int:
    """Run a check, print one line on it, and its output if it failed; return the exit code."""
    began = time.monotonic()
    result = run(command, timeout_s=CHECK_TIMEOUT_S)
    say(f"{name:<14}{time.monotonic() - began:4.0f} s  {'ok' if result.ok else 'failed'}")
    if not result.ok:
        print(result.output.rstrip(), flush=True)
    return 0 if result.ok else 1


def test(arguments: list[str]) -> int:
    """Run the tests; without arguments also the checks."""
    codes = [] if arguments else [check([])]
    version, chosen = _chosen_python(arguments)
    with contextlib.ExitStack() as stack:
        with setup_lock():
            python = envs.project().ensure() if version is None else envs.ensure_tests(version)
            env = {**both_engines(stack), **database_server(stack)}
            if version is None:
                ensure_browser()
            ensure_program("systemctl", "a watchdog is tested with a real systemd")
        if not chosen:
            chosen = [*WORKERS, "-m", "not long", *(ON_EVERY_PYTHON if version else [])]
        elif chosen == ["--long"]:
            chosen = [*WORKERS, "-m", "long"]
        codes.append(run_in_foreground([str(python), "-m", "pytest", *chosen], env))
    return max(codes)


def _chosen_python(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Return the version after a leading --python, if there is one, and the other arguments."""
    if arguments[:1] != ["--python"]:
        return None, arguments
    if len(arguments) == 1:
        raise SetupError("cannot choose a Python: --python takes a version, for example 3.10")
    return arguments[1], arguments[2:]


def soak(arguments: list[str]) -> int:
    """Run a soak; docker is made ready only if an argument names it."""
    given = options.soak().parse_args(arguments)
    with contextlib.ExitStack() as stack:
        with setup_lock():
            python = envs.project().ensure()
            if "docker" in (given.engine or ()):
                env = both_engines(stack)
            else:
                engine, image = ready_engine()
                env = engines_env(image, engine)
        return run_in_foreground([str(python), "-m", "tests.soak", *arguments], env)


def rollout(arguments: list[str]) -> int:
    """Run the Molecule scenarios: those of CI, all, or those that pytest's arguments choose."""
    with setup_lock():
        # First what this machine may have no Python for.
        env = scenarios.ready(with_long=bool(arguments))
        python = envs.project().ensure()
    return run_in_foreground(scenarios.command(python, env, arguments))


def lock(arguments: list[str]) -> int:
    """Write the file of hashes that hosts install by."""
    if arguments:
        raise SetupError("cannot take arguments: ./dev lock writes requirements-runner.txt")
    with setup_lock():
        return write_hashes()


def contract(arguments: list[str]) -> int:
    """Lint the contract, and generate clients that call the orchestrator."""
    return run_contract(arguments)


def bench(arguments: list[str]) -> int:
    """Run benchmarks, on the engines or the PostgreSQL that they need."""
    what = set(options.bench().parse_args(arguments).what)
    with contextlib.ExitStack() as stack:
        with setup_lock():
            python = envs.project().ensure()
            env = both_engines(stack) if what & options.ENGINE_BENCHMARKS else {}
            if "peers" in what:
                env["VICTORIA_BENCH_PREFECT"] = str(envs.ensure_prefect())
            if what & set(options.DATABASE_BENCHMARKS):
                # Unlike the tests', it waits for the disk.
                env |= database_server(stack, settings=())
        return run_in_foreground([str(python), "-m", "benchmarks", *arguments], env)


def ci(arguments: list[str]) -> int:
    """Run what CI runs, one step after the other."""
    if arguments:
        raise SetupError("cannot take arguments: ./dev ci runs all that CI does")
    return ci_steps.run()


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
        sys.exit(SKIPPED if isinstance(error, MissingPythonError) else 1)
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(INTERRUPTED)
