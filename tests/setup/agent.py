"""Makes the agent's image, for the tests of the status reporter alone: a layer on the stand-in.

The reporter gets in as it does anywhere, by pip, but on this machine: for the image's Python, and
for its kind of processor. What was installed is kept for the next time.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from tests.setup import docker, image, podman
from tests.setup.image import Engine
from tests.setup.packages import find_program
from tests.setup.steps import ROOT, attempt, cache_folder, one_at_a_time, require, say

SOURCES = ROOT / "tests" / "image"
AGENT = [
    "tests/__init__.py",
    "tests/fakes/__init__.py",
    "tests/fakes/crush.py",
    "tests/image/scripted_agent.py",
    "tests/image/victoria_stand_in.py",
]
GLIBCS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"
NAME = "localhost/victoria-agent"


def find_or_build(engine: Engine) -> str:
    """Return the name of the agent's image, which is in that engine then."""
    with one_at_a_time():
        home = Engine("podman") if find_program("podman") else engine
        stand_in = podman.ready()[1] if home.name == "podman" else docker.build(home)
        name = named(stand_in)
        if not home.has(name):
            build(home, name, stand_in)
        if not engine.has(name):
            image.transfer(name, home, engine)
    return name


def named(stand_in: str) -> str:
    """Name the image that has this project's reporter and agent in it."""
    digest = hashlib.sha256(stand_in.encode())
    for source in [SOURCES / "Containerfile.agent", *sources(), *recipe()]:
        digest.update(b"\0" + source.read_bytes())
    return f"{NAME}:{digest.hexdigest()[:12]}"


def sources() -> list[Path]:
    """Return the files of this project that the image gets."""
    return [*sorted((ROOT / "runner").glob("*.py")), *(ROOT / name for name in AGENT)]


def recipe() -> list[Path]:
    """Return what says what pip installs."""
    return [ROOT / "pyproject.toml", ROOT / "constraints.txt"]


def build(engine: Engine, name: str, stand_in: str) -> None:
    """Build the image."""
    say("building the agent's image, with the status reporter in it")
    packages = installed_for(engine, stand_in)
    with tempfile.TemporaryDirectory(prefix="victoria-agent-") as made:
        folder = Path(made)
        app = folder / "app"
        shutil.copytree(packages, folder / "packages")
        for source in sources():
            place = app / source.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)
        compile_with(engine, stand_in, app)
        engine.require(
            f"cannot build the agent's image: see {engine.name}'s message above",
            *("build", "-q", "-t", name, "--build-arg", f"BASE={stand_in}"),
            *("-f", str(SOURCES / "Containerfile.agent"), made),
        )


def installed_for(engine: Engine, stand_in: str) -> Path:
    """Return a folder with all that the reporter imports, for the Python of that image."""
    done, version = run_python(engine, stand_in, "-c", VERSION)
    version = version.strip() if done else "3.11"
    digest = hashlib.sha256(f"{version} {platform.machine()}".encode())
    for source in recipe():
        digest.update(b"\0" + source.read_bytes())
    folder = cache_folder() / f"agent-packages-{digest.hexdigest()[:12]}"
    if folder.exists():
        return folder
    say(f"installing victoria-runner[reporter] for Python {version}")
    with tempfile.TemporaryDirectory(dir=cache_folder()) as made:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
        advice = "cannot install the reporter: see pip's message above; is PyPI reachable?"
        require([*pip, "wheel", "--no-deps", "-w", f"{made}/wheel", str(ROOT)], advice)
        (wheel,) = Path(made, "wheel").glob("*.whl")
        kinds = [f"--platform={glibc}_{platform.machine()}" for glibc in GLIBCS]
        require(
            [
                *(*pip, "install", "--no-compile", "--only-binary=:all:", *kinds),
                *("--implementation=cp", f"--python-version={version}"),
                *("--target", f"{made}/packages", f"{wheel}[reporter]"),
                *("-c", str(ROOT / "constraints.txt")),
            ],
            advice,
        )
        packages = Path(made, "packages")
        # The project's own are newer than this folder will be.
        for ours in ("runner", "orchestrator"):
            shutil.rmtree(packages / ours)
        compile_with(engine, stand_in, packages)
        packages.rename(folder)
    return folder


def compile_with(engine: Engine, stand_in: str, folder: Path) -> None:
    """Have the image's Python compile what is in a folder: a container would do it every time."""
    mount = ["-v", f"{folder}:/compiled:z"]
    arguments = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "/compiled"]
    run_python(engine, stand_in, *arguments, options=mount)


def run_python(
    engine: Engine, stand_in: str, *arguments: str, options: list[str] | None = None
) -> tuple[bool, str]:
    """Run the image's Python; return whether it succeeded, and what it printed."""
    command = ["run", "--rm", "--network", "host", "--entrypoint", "python3", *(options or [])]
    return attempt([engine.name, *command, stand_in, *arguments], environment=engine.environment)
