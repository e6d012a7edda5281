"""The processor architecture of an image, and whether this host can run its programs.

Architectures have Go's names, as in images.
"""

from __future__ import annotations

from pathlib import Path

from runner.engine.base import Engine, ImageFacts
from runner.errors import EngineError

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_OTHER_NAMES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i686": "386",
    "armv7l": "arm",
}
_RUNS_TOO = frozenset({("amd64", "386"), ("arm64", "arm")})
# As the header of their programs has them: e_machine in linux/elf-em.h.
_ELF_MACHINES = {
    "386": 3,
    "s390x": 22,
    "ppc64le": 21,
    "arm": 40,
    "amd64": 62,
    "arm64": 183,
    "riscv64": 243,
    "loong64": 258,
}


async def check_architecture(engine: Engine, image: str) -> ImageFacts:
    """Check that this host can run the programs of an image that it has; return the image's facts.

    An image does not always tell the truth: see also `outcome.cannot_execute`.

    Raises:
        EngineError: it cannot, or the engine does not answer.
    """
    facts, inspected = engine.known_facts or await engine.facts(), await engine.inspect_image(image)
    is_known = facts.architecture and not facts.is_remote  # the kernel of another host is not
    if is_known and not can_run(inspected.architecture, facts.architecture):
        host = go_name(facts.architecture)
        raise EngineError(
            f"cannot run the image {image}: it is for {inspected.architecture}, and this host is "
            f"{host}; use an image for {host}, or install an emulator (qemu-user-static)"
        )
    return inspected


def can_run(image: str, host: str, binfmt: Path = _BINFMT) -> bool:
    """Return whether a host can run programs of an architecture; of an unknown one it may."""
    image, host = go_name(image), go_name(host)
    machine = _ELF_MACHINES.get(image)
    return (
        image == host or (host, image) in _RUNS_TOO or machine is None or _emulates(machine, binfmt)
    )


def go_name(architecture: str) -> str:
    """Return Go's name of an architecture that the kernel may name otherwise."""
    return _OTHER_NAMES.get(architecture, architecture)


def _emulates(machine: int, binfmt: Path) -> bool:
    """Return whether an interpreter for these programs is registered with the kernel."""
    field = machine.to_bytes(2, "big" if machine == _ELF_MACHINES["s390x"] else "little").hex()
    try:
        entries = [path.read_text(encoding="ascii", errors="replace") for path in binfmt.iterdir()]
    except OSError:
        return False
    for entry in entries:
        _, _, magic = entry.partition("\nmagic ")
        # Two hex digits a byte: the number of the architecture is at byte 18.
        if entry.startswith("enabled") and magic.startswith("7f454c46") and magic[36:40] == field:
            return True
    return False
