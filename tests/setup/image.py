"""Makes the stand-in image and brings it into the engines.

Its name carries a hash of what it is made from, so an image that is there is the right one.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.setup.packages import ensure_program
from tests.setup.steps import ROOT, SetupError, attempt, require, say

SOURCES = ROOT / "tests" / "image"
PUBLIC_BASE = "python:3.12-slim"
PULL_TIMEOUT_S = 60
TRIAL = ["--accept-license", "--task", "[print-line it works]"]

# A base without a registry: packages unpacked, not configured. That gives a Python and a shell in
# seconds. The links are what a merged /usr has; compiled modules spare each task the compiling.
MADE_PACKAGES = "base-files,python3,dash,coreutils"
MADE_SUITE = "bookworm"
MADE_MIRROR = "http://deb.debian.org/debian"
MADE_HOOKS = [
    '--setup-hook=cd "$1"; for d in bin sbin lib lib64; do mkdir -p usr/$d; ln -s usr/$d $d; done',
    '--extract-hook=rm -rf "$1"/usr/share/doc "$1"/usr/share/locale "$1"/usr/share/man',
    "--extract-hook=echo root:x:0:0:root:/root:/bin/sh > $1/etc/passwd",
    '--extract-hook=ln -sf dash "$1/usr/bin/sh"',
    '--extract-hook=chroot "$1" python3 -S -E -c "import signal, hashlib"',
]


@dataclass(frozen=True)
class Engine:
    """An engine's command line, and the environment that leads to the right daemon."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)

    def attempt(self, *arguments: str, timeout_s: float = 300) -> tuple[bool, str]:
        """Run the engine; return whether it succeeded, and what it printed."""
        command = [self.name, *arguments]
        return attempt(command, timeout_s=timeout_s, environment=self.environment)

    def require(self, advice: str, *arguments: str) -> str:
        """Run the engine, which has to succeed."""
        return require([self.name, *arguments], advice, environment=self.environment)

    def has(self, image: str) -> bool:
        """Tell whether the image is there."""
        return self.attempt("image", "inspect", image)[0]

    def runs(self, image: str) -> tuple[bool, str]:
        """Try a container of the stand-in image."""
        command = ("run", "--rm", "--network", "host", image, *TRIAL)
        return self.attempt(*command, timeout_s=120)


def find_or_build(engine: Engine) -> tuple[str, bool]:
    """Return the image's name, and whether it was made just now."""
    chosen = os.environ.get("VICTORIA_BASE_IMAGE")
    for base in [chosen] if chosen else [PUBLIC_BASE, made_base()]:
        if engine.has(image_from(base)):
            return image_from(base), False
    base = chosen or choose_base(engine)
    say(f"building the stand-in image on {base}")
    engine.require(
        f"cannot build the stand-in image: see {engine.name}'s message above",
        *("build", "-q", "-t", image_from(base), "--build-arg", f"BASE={base}"),
        *("-f", str(SOURCES / "Containerfile"), str(SOURCES)),
    )
    return image_from(base), True


def image_from(base: str) -> str:
    """Name the stand-in image that stands on this base."""
    digest = hashlib.sha256(base.encode())
    for source in (SOURCES / "Containerfile", SOURCES / "victoria_stand_in.py"):
        digest.update(b"\0" + source.read_bytes())
    return f"localhost/victoria-stand-in:{digest.hexdigest()[:12]}"


def made_base() -> str:
    """Name the base that we make ourselves."""
    recipe = " ".join([MADE_PACKAGES, *MADE_HOOKS])
    return f"localhost/victoria-base:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def choose_base(engine: Engine) -> str:
    """Take the public base if a registry answers, else make one."""
    say(f"fetching {PUBLIC_BASE} to build the stand-in image on")
    if engine.attempt("pull", PUBLIC_BASE, timeout_s=PULL_TIMEOUT_S)[0]:
        return PUBLIC_BASE
    if not engine.has(made_base()):
        say("no registry gave it: making a base from Debian packages with mmdebstrap")
        make_base(engine)
    return made_base()


def make_base(engine: Engine) -> None:
    """Make the base and import it."""
    ensure_program("mmdebstrap", "a base image where no registry answers")
    suite, mirror = package_source()
    with tempfile.TemporaryDirectory(prefix="victoria-base-") as folder:
        archive = str(Path(folder) / "base.tar")
        command = ["mmdebstrap", "--quiet", "--variant=extract", f"--include={MADE_PACKAGES}"]
        require(
            [*command, *MADE_HOOKS, suite, archive, mirror],
            "cannot make a base image: see mmdebstrap's message above,"
            " or name an image with Python in VICTORIA_BASE_IMAGE",
        )
        engine.require("cannot import the base image", "import", archive, made_base())


def package_source() -> tuple[str, str]:
    """Return the suite and the mirror that this machine's own apt uses, if it has one."""
    if not shutil.which("apt-get"):
        return MADE_SUITE, MADE_MIRROR
    listing = ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)"]
    release = read_os_release().get("VERSION_CODENAME", "")
    for line in attempt([*listing, "Created-By: Packages"])[1].splitlines():
        suite, component, mirror = line.split(" ", 2)
        if (suite, component) == (release, "main"):
            return suite, mirror
    return MADE_SUITE, MADE_MIRROR


def read_os_release() -> dict[str, str]:
    """Return what the distribution says of itself."""
    pairs = (line.partition("=") for line in Path("/etc/os-release").read_text().splitlines())
    return {key: " ".join(shlex.split(value)) for key, _, value in pairs}


def copy(image: str, source: Engine, target: Engine) -> None:
    """Bring the stand-in from one engine into the other, and try it there."""
    if not target.has(image):
        transfer(image, source, target)
        try_out(target, image)


def transfer(image: str, source: Engine, target: Engine) -> None:
    """Bring an image from one engine into the other, under the same name."""
    say(f"copying {image} from {source.name} to {target.name}")
    with tempfile.TemporaryDirectory(prefix="victoria-image-") as folder:
        archive = str(Path(folder) / "image.tar")
        form = ["--format", "docker-archive"] if source.name == "podman" else []
        source.require(f"cannot save {image}", "save", *form, "-o", archive, image)
        target.require(f"cannot load {image}", "load", "-i", archive)


def try_out(engine: Engine, image: str) -> None:
    """Run a container; if that fails, drop the image, so that the next ./dev tries again."""
    runs, output = engine.runs(image)
    if not runs:
        engine.attempt("image", "rm", "-f", image)
        raise SetupError(f"cannot run a container with {engine.name}: {last_line(output)}")


def last_line(output: str) -> str:
    """Return the line that most likely says why."""
    return (output.strip().splitlines() or ["it said nothing"])[-1]
