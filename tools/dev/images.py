"""Build the stand-in image, and on top of it the agent's, for tests of the status reporter.

Their names carry a hash of what they are made from, so an image of that name is the right one.
"""

import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.dev.engines import Engine, docker_answers, make_podman_run
from tools.dev.environments import VERSION, project_table
from tools.dev.packages import ensure_program, find_program
from tools.dev.shell import ROOT, Result, as_root, cache_dir, run, say, setup_lock

SOURCES = ROOT / "tests" / "image"
PUBLIC_BASE = "python:3.12-slim"
PULL_TIMEOUT_S = 60

# A base for machines without a registry. Packages are only unpacked, which gives Python and a shell
# in seconds. The links are those of a merged /usr. Modules are compiled here, not by each task.
DEBIAN_SUITE = "bookworm"
DEBIAN_MIRROR = "http://deb.debian.org/debian"
BASE_RECIPE = [
    "--variant=extract",
    "--include=base-files,python3,dash,coreutils",
    '--setup-hook=cd "$1"; for d in bin sbin lib lib64; do mkdir -p usr/$d; ln -s usr/$d $d; done',
    '--extract-hook=rm -rf "$1"/usr/share/doc "$1"/usr/share/locale "$1"/usr/share/man',
    "--extract-hook=echo root:x:0:0:root:/root:/bin/sh > $1/etc/passwd",
    '--extract-hook=ln -sf dash "$1/usr/bin/sh"',
    '--extract-hook=chroot "$1" python3 -S -E -c "import signal, hashlib"',
]
AGENT_SOURCES = (
    "tests/__init__.py",
    "tests/fakes/__init__.py",
    "tests/fakes/crush.py",
    "tests/image/scripted_agent.py",
    "tests/image/victoria_stand_in.py",
)
PINS = ROOT / "constraints.txt"
GLIBCS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")


def ready_podman() -> tuple[Engine, str]:
    """Return podman and the name of the stand-in image in it; both work."""
    ensure_program("podman", "the engine that tasks run in")
    engine = Engine("podman")
    return engine, stand_in(engine)


def ready_engine() -> tuple[Engine, str]:
    """Return podman, or docker if only docker is here, and the stand-in image's name in it."""
    docker = Engine("docker")
    if find_program("podman") or not (find_program("docker") and docker_answers(docker)):
        return ready_podman()
    return docker, stand_in(docker)


def stand_in(engine: Engine) -> str:
    """Return the stand-in image's name, which is in that engine then; containers of it run."""
    chosen = os.environ.get("VICTORIA_BASE_IMAGE")
    for base in [chosen] if chosen else [PUBLIC_BASE, _made_base()]:
        if engine.has(_stand_in_on(base)):
            return _stand_in_on(base)
    base = chosen or _choose_base(engine)
    image = _stand_in_on(base)
    say(f"building the stand-in image on {base}")
    engine.run(
        *("build", "-q", "-t", image, "--build-arg", f"BASE={base}"),
        *("-f", str(SOURCES / "Containerfile"), str(SOURCES)),
        error=f"cannot build the stand-in image: see {engine.name}'s message above",
    )
    if engine.name == "podman":
        make_podman_run(engine, image)
    engine.verify(image)
    return image


def agent(engine: Engine) -> str:
    """Return the name of the agent's image, which is in that engine then."""
    with setup_lock():
        home = Engine("podman") if find_program("podman") else engine
        base = stand_in(home)
        sources = [
            *sorted((ROOT / "runner").rglob("*.py")),
            *(ROOT / name for name in AGENT_SOURCES),
        ]
        recipe: tuple[str | Path, ...] = (
            SOURCES / "Containerfile.agent",
            *sources,
            project_table(),
            PINS,
        )
        name = hashed_name("agent", base, *recipe)
        if not home.has(name):
            _build_agent(home, name, base, sources)
        if not engine.has(name):
            engine.copy_from(home, name)
    return name


def _build_agent(engine: Engine, name: str, base: str, sources: list[Path]) -> None:
    """Build the image, with these files of the project in it."""
    say("building the agent's image, with the status reporter in it")
    packages = _install_reporter(engine, base)
    with tempfile.TemporaryDirectory(prefix="victoria-agent-") as context:
        folder = Path(context)
        shutil.copytree(packages, folder / "packages")
        for source in sources:
            target = folder / "app" / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        _compile_with(engine, base, folder / "app")
        engine.run(
            *("build", "-q", "-t", name, "--build-arg", f"BASE={base}"),
            *("-f", str(SOURCES / "Containerfile.agent"), context),
            error=f"cannot build the agent's image: see {engine.name}'s message above",
        )


def _install_reporter(engine: Engine, base: str) -> Path:
    """Return a folder with all packages that the reporter imports, for the image's Python."""
    result = _run_python(engine, base, "-c", VERSION)
    version = result.output.strip() if result.ok else "3.11"
    target = f"{version} {platform.machine()}"
    key = hashed_name("", target, project_table(), PINS).rpartition(":")[2]
    folder = cache_dir() / f"agent-packages-{key}"
    if folder.exists():
        return folder
    say(f"installing victoria-runner[reporter] for Python {version}: half a minute")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
        run(
            [
                *(*pip, "install", "--no-compile", "--only-binary=:all:"),
                *(f"--platform={glibc}_{platform.machine()}" for glibc in GLIBCS),
                *("--implementation=cp", f"--python-version={version}"),
                *("--target", f"{scratch}/packages", f"{ROOT}[reporter]"),
                *("-c", str(PINS)),
            ],
            error="cannot install the reporter: see pip's message above; is PyPI reachable?",
        )
        packages = Path(scratch, "packages")
        # The image gets the project's own code apart, since it changes more often than this folder.
        for package in ("runner", "orchestrator"):
            shutil.rmtree(packages / package)
        _compile_with(engine, base, packages)
        packages.rename(folder)
    return folder


def _compile_with(engine: Engine, base: str, folder: Path) -> None:
    """Compile the modules in a folder with the image's Python, or each container would do it."""
    arguments = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "/compiled"]
    _run_python(engine, base, *arguments, options=["-v", f"{folder}:/compiled:z"])


def _run_python(engine: Engine, base: str, *arguments: str, options: Sequence[str] = ()) -> Result:
    """Run the image's Python."""
    command = ("run", "--rm", "--network", "host", "--entrypoint", "python3", *options)
    return engine.run(*command, base, *arguments, timeout_s=600)


def hashed_name(purpose: str, *parts: str | Path) -> str:
    """Return the name of an image that is made from these texts and files."""
    contents = (part.read_bytes() if isinstance(part, Path) else part.encode() for part in parts)
    digest = hashlib.sha256(b"\0".join(contents)).hexdigest()
    return f"localhost/victoria-{purpose}:{digest[:12]}"


def import_debian(
    engine: Engine, name: str, recipe: Iterable[str], source: tuple[str, str], advice: str
) -> None:
    """Make a root file system from Debian packages, and import it as an image."""
    suite, mirror = source
    with tempfile.TemporaryDirectory(prefix="victoria-base-") as folder:
        archive = str(Path(folder) / "base.tar")
        command = ["mmdebstrap", "--quiet", *recipe, suite, archive, mirror]
        run(
            as_root(command) if engine.rootful else command,
            error=f"cannot make {name}: see mmdebstrap's message above{advice}",
            timeout_s=1200,
        )
        engine.run("import", archive, name, error=f"cannot import {name}", timeout_s=1200)


def package_source() -> tuple[str, str]:
    """Return the suite and the mirror that this machine's own apt uses, if it has one."""
    if shutil.which("apt-get"):
        listing = ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)"]
        release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
        for line in run([*listing, "Created-By: Packages"]).output.splitlines():
            suite, component, mirror = line.split(" ", 2)
            if (suite, component) == (release, "main"):
                return suite, mirror
    return DEBIAN_SUITE, DEBIAN_MIRROR


def _stand_in_on(base: str) -> str:
    sources = (SOURCES / "Containerfile", SOURCES / "victoria_stand_in.py")
    return hashed_name("stand-in", base, *sources)


def _made_base() -> str:
    return hashed_name("base", *BASE_RECIPE)


def _choose_base(engine: Engine) -> str:
    say(f"pulling {PUBLIC_BASE} to build the stand-in image on: 50 MB, at most a minute")
    if engine.run("pull", PUBLIC_BASE, timeout_s=PULL_TIMEOUT_S).ok:
        return PUBLIC_BASE
    base = _made_base()
    if not engine.has(base):
        ensure_program("mmdebstrap", "a base image where no registry answers")
        say("no registry has it: making a base from Debian packages, half a minute")
        advice = ", or name an image with Python in VICTORIA_BASE_IMAGE"
        import_debian(engine, base, BASE_RECIPE, package_source(), advice)
    return base
