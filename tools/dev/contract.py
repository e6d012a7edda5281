"""Lint the contract, and call an orchestrator with clients generated from it and from the seed's.

The clients register a node, send an idle heartbeat, create a task and list the tasks, against a
reference orchestrator that is started for them.
"""

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.harness.ports import kept_port
from tools.dev import environments as envs
from tools.dev import shell
from tools.dev.packages import ensure_program
from tools.dev.shell import ROOT, SetupError, say

OURS = ROOT / "orchestrator-openapi.yaml"
SEED = ROOT / "tests" / "contract" / "seed_contract.yaml"
SOURCES = Path(__file__).parent / "contract_clients"
GENERATORS = envs.Environment(
    ROOT / ".venv-contract",
    "generators of Python clients: 110 MB, half a minute",
    ("openapi-python-client", "datamodel-code-generator"),
    "tools/dev/contract_clients/constraints.txt",
)
NPM_FOLDER = ROOT / ".venv-contract-npm"
OLDEST_NODE = (20, 19)
"""The oldest Node.js that Redocly and Spectral run on."""
OLDEST_PYTHON = "3.11"
"""The oldest Python that openapi-python-client runs on."""
INSTALL_TIMEOUT_S = 1200
Command = list[str]


@dataclass(frozen=True)
class Tools:
    """Where linters and generators are installed."""

    python: Path
    node_modules: Path

    def pip(self, program: str) -> str:
        """Return the path of a program that pip has installed."""
        return str(self.python.parent / program)

    def npm(self, program: str) -> str:
        """Return the path of a program that npm has installed."""
        return str(self.node_modules / ".bin" / program)


def run(arguments: list[str]) -> int:
    """Lint, generate and call; return 1 if any of it failed, after all of it was tried."""
    if arguments:
        raise SetupError("cannot take arguments: ./dev contract checks everything")
    with shell.setup_lock():
        python = envs.ensure_demo()
        tools = _ensure_tools()
    results = [_succeeds(name, [command]) for name, command in _linters(tools).items()]
    with tempfile.TemporaryDirectory(prefix="victoria-contract-") as name:
        folder = Path(name)
        (folder / "node_modules").symlink_to(tools.node_modules)
        with _orchestrator(python, folder / "data") as env:
            for contract in (OURS, SEED):
                for generator, commands in _clients(tools, contract, folder).items():
                    results.append(_succeeds(f"{generator}, {contract.name}", commands, env))
    return 0 if all(results) else 1


def _ensure_tools() -> Tools:
    python = next(filter(None, map(envs.find_python, ("3.13", "3.12", OLDEST_PYTHON))), None)
    if python is None:
        raise SetupError(
            f"cannot generate Python clients: that needs Python {OLDEST_PYTHON} or later, and none "
            "was found; install one, for example with 'uv python install 3.13' or pyenv"
        )
    return Tools(GENERATORS.ensure(python), _ensure_node_modules())


def _ensure_node_modules() -> Path:
    why = "linters and a generator that run on Node.js"
    ensure_program("node", why)
    ensure_program("npm", why)
    version = shell.run(["node", "--version"]).output.strip()
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_NODE:
        needed = ".".join(map(str, OLDEST_NODE))
        raise SetupError(
            f"cannot use Node.js {version}: Redocly needs {needed} or later; put one first on PATH"
        )
    wanted, installed = SOURCES / "package.json", NPM_FOLDER / "package.json"
    complete = NPM_FOLDER / "complete"
    if not complete.exists() or installed.read_text() != wanted.read_text():
        say(f"installing linters and generators into {NPM_FOLDER.name}: 130 MB, a minute")
        complete.unlink(missing_ok=True)
        NPM_FOLDER.mkdir(exist_ok=True)
        shutil.copy(wanted, installed)
        command = "npm install --no-package-lock --ignore-scripts --no-audit --no-fund --prefix"
        shell.run(
            [*command.split(), str(NPM_FOLDER)],
            error=f"cannot fill {NPM_FOLDER.name}: see npm's message above; is npm reachable?",
            timeout_s=INSTALL_TIMEOUT_S,
        )
        complete.touch()
    return NPM_FOLDER / "node_modules"


def _linters(tools: Tools) -> dict[str, Command]:
    """Return the linters' commands; a warning fails, as an error does."""
    rules = str(SOURCES / "spectral.yaml")
    return {
        "Redocly": [
            *(tools.npm("redocly"), "lint", "--extends", "recommended"),
            *("--max-problems", "1000", "--format", "stylish", str(OURS)),
        ],
        "Spectral": [tools.npm("spectral"), "lint", "-r", rules, "-F", "warn", str(OURS)],
    }


def _clients(tools: Tools, contract: Path, folder: Path) -> dict[str, list[Command]]:
    """Return for each generator the commands that generate and call."""
    python, name = str(tools.python), contract.stem.replace("-", "_")
    package, models, scripts = (
        folder / f"{name}_client",
        folder / f"{name}_models.py",
        folder / name,
    )
    scripts.mkdir()
    shutil.copy(SOURCES / "call_with_types.ts", scripts / "call.mts")
    return {
        "openapi-python-client": [
            [
                *(tools.pip("openapi-python-client"), "generate", "--path", str(contract)),
                *("--output-path", str(package), "--meta", "none", "--fail-on-warning"),
                *("--config", str(SOURCES / "openapi_python_client.yaml")),
            ],
            [python, str(SOURCES / "call_with_package.py"), str(package)],
        ],
        "datamodel-code-generator": [
            [
                # An unknown format is a warning of Python's.
                *(python, "-W", "error::UserWarning", "-m", "datamodel_code_generator"),
                *("--input", str(contract), "--input-file-type", "openapi"),
                *("--output-model-type", "pydantic_v2.BaseModel", "--formatters", "builtin"),
                *("--output", str(models)),
            ],
            [python, str(SOURCES / "call_with_models.py"), str(models), str(contract)],
        ],
        "openapi-typescript": [
            [tools.npm("openapi-typescript"), str(contract), "-o", str(scripts / "schema.d.ts")],
            [
                *(tools.npm("tsc"), "--strict", "--target", "es2022", "--module", "nodenext"),
                *("--lib", "es2022,dom", "--skipLibCheck", str(scripts / "call.mts")),
            ],
            ["node", str(scripts / "call.mjs")],
        ],
    }


def _succeeds(name: str, commands: list[Command], env: Mapping[str, str] | None = None) -> bool:
    """Run the commands until one fails, and print its output; return whether none did."""
    # With the formatter that openapi-python-client calls.
    path = f"{GENERATORS.folder / 'bin'}:{os.environ['PATH']}"
    quiet = {"PATH": path, "NO_COLOR": "1", "REDOCLY_TELEMETRY": "off"}
    for command in commands:
        result = shell.run(command, env={**quiet, **(env or {})})
        has_warned = re.search(r"You have \d+ warning", result.output)  # Redocly's exit code is 0
        if not result.ok or has_warned:
            print(result.output.rstrip())
            print(f"FAILED  {name}: {' '.join(command)}", flush=True)
            return False
    print(f"ok      {name}", flush=True)
    return True


@contextlib.contextmanager
def _orchestrator(python: Path, data_dir: Path) -> Iterator[dict[str, str]]:
    """Run an orchestrator; yield the environment that tells the clients how to call it."""
    keeper, port = kept_port()
    url = f"http://127.0.0.1:{port}"
    secret = {name: secrets.token_hex(16) for name in ("REGISTRATION_TOKEN", "ADMIN_API_KEY")}
    data_dir.mkdir()
    log = data_dir / "log"
    with keeper, log.open("wb") as output:
        process = subprocess.Popen(
            [str(python), "-m", "orchestrator", f"--port={port}", f"--data-dir={data_dir}"],
            cwd=ROOT,
            env={**os.environ, **secret},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            health = ["curl", "-sf", "--noproxy", "*", f"{url}/health"]
            shell.wait_until(lambda: shell.run(health).ok or process.poll() is not None)
            if not shell.run(health).ok:
                raise SetupError(f"cannot start the orchestrator: {log.read_text()}")
            yield {"ORCHESTRATOR_URL": url, "NO_PROXY": "127.0.0.1", **secret}
        finally:
            process.terminate()
            process.wait(60)
