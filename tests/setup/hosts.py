"""Makes the images of the scenarios' hosts: systemd in a container, shaped as Ubuntu and as Fedora.

Each is named by a hash of what it is made from, so one that is there is the right one. Their bases
are made from Debian packages, or are images that the environment names.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.setup.image import MADE_MIRROR, last_line, package_source, read_os_release
from tests.setup.packages import ensure_program
from tests.setup.podman import settings_to_try
from tests.setup.steps import ROOT, SetupError, as_root, attempt, require, say

SOURCES = Path(__file__).parent / "hosts"
BUILD_TIMEOUT_S = 1200
SLIM = ["/usr/share/doc", "/usr/share/man", "/usr/share/locale"]
SYSTEM = (
    "systemd,systemd-sysv,dbus,libpam-systemd,openssh-server,sudo,procps,iproute2,ca-certificates"
)
NETAVARK = '[network]\nnetwork_backend = "netavark"\n'


@dataclass(frozen=True)
class Shape:
    """A distribution, and the Debian that stands in for it where no registry is."""

    name: str
    suite: str
    packages: str

    @property
    def chosen(self) -> str | None:
        """Give the image that is to be taken instead."""
        return os.environ.get(f"VICTORIA_ROLLOUT_{self.name.upper()}_IMAGE")

    @property
    def recipe(self) -> list[str]:
        """Give what mmdebstrap is told."""
        return [
            "--variant=minbase",
            f"--include={SYSTEM},{self.packages}",
            # A suite that is still in the making may have been left alone by its mirror for weeks.
            '--aptopt=Acquire::Check-Valid-Until "false"',
            *(f'--customize-hook=rm -rf "$1"{folder}' for folder in SLIM),
            self.suite,
        ]


SHAPES = (
    Shape("ubuntu", "trixie", "python3,python3-apt"),
    # Fedora's packages are empty there, so all that the role installs has to lie there already.
    Shape(
        "fedora",
        "testing",
        "python3,python3-venv,python3-pip,dnf5,python3-libdnf5,rpm,createrepo-c,dbus-user-session,"
        "podman,crun,netavark,aardvark-dns,uidmap,passt,slirp4netns,nftables,catatonit,"
        "fuse-overlayfs,docker.io,docker-cli",
    ),
)


def images(ca_bundle: str | None) -> dict[str, str]:
    """Give the images' names by what they are for; make those that are missing."""
    with ThreadPoolExecutor() as pool:
        ubuntu, fedora = pool.map(host_image, SHAPES)
    return {"UBUNTU": ubuntu, "FEDORA": fedora, "CONTROL": control_image(ubuntu, ca_bundle)}


def host_image(shape: Shape) -> str:
    """Make an image with systemd as its first process."""
    base = shape.chosen or shaped_base(shape)
    name = named(f"rollout-{shape.name}", base, ["Containerfile", "finish", "init"])
    return build(name, base, "Containerfile")


def shaped_base(shape: Shape) -> str:
    """Make what stands in for the distribution's image."""
    script = f"shape-{shape.name}"
    name = named(f"base-{shape.name}", " ".join(shape.recipe), ["Containerfile.shape", script])
    if has(name):
        return name
    ensure_program("mmdebstrap", "hosts for the scenarios where no registry answers")
    say(f"making a host that looks like {shape.name} from Debian packages")
    mirror = package_source()[1] if read_os_release().get("ID") == "debian" else MADE_MIRROR
    raw = f"{name}-raw"
    with tempfile.TemporaryDirectory(prefix="victoria-host-") as folder:
        archive = str(Path(folder) / "base.tar")
        require(
            as_root(["mmdebstrap", "--quiet", *shape.recipe, archive, mirror]),
            f"cannot make a host: see mmdebstrap's message above, or name an image of {shape.name}"
            f" in VICTORIA_ROLLOUT_{shape.name.upper()}_IMAGE",
            timeout_s=BUILD_TIMEOUT_S,
        )
        require(podman("import", archive, raw), "cannot import the host", timeout_s=BUILD_TIMEOUT_S)
    return build(name, raw, "Containerfile.shape", "--build-arg", f"SHAPE={script}")


def control_image(base: str, ca_bundle: str | None) -> str:
    """Make the image of the control plane, with what the orchestrator needs."""
    files = ["Containerfile.control", "control"]
    needed = orchestrator_needs((ROOT / "pyproject.toml").read_text())
    options = ["--build-arg", f"NEEDED={needed}"]
    if ca_bundle:
        inside = "/etc/controller-ca.crt"
        options += [f"--volume={ca_bundle}:{inside}:ro", "--build-arg", f"PIP_CERT={inside}"]
    return build(named("rollout-control", f"{base} {needed}", files), base, files[0], *options)


def orchestrator_needs(project: str) -> str:
    """Give what .[orchestrator] asks for; no Python before 3.11 reads TOML."""
    lists = [
        project.partition(f"\n{name} = [")[2].partition("\n]")[0]
        for name in ("dependencies", "orchestrator")
    ]
    return " ".join(re.findall(r'^ +"([^"]+)"', "\n".join(lists), re.MULTILINE))


def build(name: str, base: str, recipe: str, *options: str) -> str:
    """Build an image if it is missing; give its name."""
    if has(name):
        return name
    say(f"building {name}")
    command = ["build", "--quiet", "--network=host", "--isolation=chroot", "--tag", name, *options]
    require(
        podman(*command, "--build-arg", f"BASE={base}", "-f", str(SOURCES / recipe), str(SOURCES)),
        f"cannot build {name}: see podman's message above",
        timeout_s=BUILD_TIMEOUT_S,
    )
    return name


def named(purpose: str, base: str, files: list[str]) -> str:
    """Name an image by what it is made from."""
    digest = hashlib.sha256(base.encode())
    for file in files:
        digest.update(b"\0" + (SOURCES / file).read_bytes())
    return f"localhost/victoria-{purpose}:{digest.hexdigest()[:12]}"


def has(image: str) -> bool:
    """Tell whether the image is there."""
    return attempt(podman("image", "exists", image))[0]


def podman(*arguments: str) -> list[str]:
    """Give the command line: hosts of containers with systemd inside take root."""
    return as_root(["podman", *arguments])


def settings(image: str, folder: Path) -> Path:
    """Write a containers.conf with which hosts run on this machine; give its path."""
    path = folder / "containers.conf"
    output = ""
    for setting in ["", *settings_to_try()]:
        path.write_text(f"{NETAVARK}{setting}")
        trial = podman("run", "--rm", "--privileged", "--cgroupns=private", image, "true")
        runs, output = attempt(
            ["env", f"CONTAINERS_CONF={path}", *trial]
            if os.geteuid() == 0
            else ["sudo", "env", f"CONTAINERS_CONF={path}", *trial[1:]]
        )
        if runs:
            return path
    raise SetupError(f"cannot run a host in podman: {last_line(output)}")
