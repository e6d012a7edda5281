"""Set up what the Molecule scenarios need: Ansible, images of hosts, and the command to run them.

A host is a container with systemd, and takes root. Its base is made from Debian packages, some of
them shaped as Ubuntu or as Fedora, or is an image that the environment names.
"""

import os
import platform
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.dev.before import unpack_release_before
from tools.dev.engines import Engine, settings_to_try
from tools.dev.environments import NO_ANSIBLE_PYTHON, ensure_ansible, ensure_oldest_ansible
from tools.dev.images import DEBIAN_MIRROR, hashed_name, import_debian, package_source, ready_podman
from tools.dev.packages import ensure_engine_part, ensure_program
from tools.dev.shell import ROOT, MissingPythonError, SetupError, as_root, cache_dir, run, say

NO_ROOT = (
    "cannot make hosts: that takes root, and sudo refuses it to this account; "
    "let it use sudo, or run ./dev rollout as root"
)
SOURCES = Path(__file__).parent / "hosts"
PODMAN = Engine("podman", rootful=True)
BUILD_TIMEOUT_S = 1200
NETAVARK = '[network]\nnetwork_backend = "netavark"\n'
# Debian's packages in each host.
SYSTEM = (
    "systemd,systemd-sysv,dbus,libpam-systemd,openssh-server,sudo,procps,iproute2,ca-certificates"
)
PYTHON = "python3,python3-apt"


@dataclass(frozen=True)
class Shape:
    """A host: its distribution, and the Debian that it is made of where no image is named."""

    name: str
    suite: str
    packages: str = PYTHON
    script: str = ""
    """What makes Debian look like another distribution, in hosts/."""

    @property
    def variable(self) -> str:
        """Return the variable that names an image of the distribution itself."""
        return f"VICTORIA_ROLLOUT_{self.name.upper()}_IMAGE"


# Like Ubuntu 26.04, sid has Python 3.14 and podman 5; its systemd is three versions later.
UBUNTU = Shape("ubuntu", "sid", script="shape-ubuntu")
# In its stand-in Fedora's packages are empty: all that the role installs has to be there already.
FEDORA = Shape(
    "fedora",
    "testing",
    (
        "python3,python3-venv,python3-pip,dnf5,python3-libdnf5,rpm,createrepo-c,dbus-user-session,"
        "podman,crun,netavark,aardvark-dns,uidmap,passt,nftables,catatonit,"
        "fuse-overlayfs,docker.io,docker-cli"
    ),
    "shape-fedora",
)
DEBIAN_12 = Shape("debian12", "bookworm")
# The control plane's host too: of all suites its packages change least, and have what it needs.
DEBIAN_13 = Shape("debian13", "trixie")
SHORT = (UBUNTU, FEDORA, DEBIAN_13)
LONG = (*SHORT, DEBIAN_12)


def ready(*, with_long: bool = True) -> dict[str, str]:
    """Make everything ready, also for the long scenarios; return the environment for them."""
    programs = ensure_ansible()
    if programs is None:
        raise MissingPythonError(NO_ANSIBLE_PYTHON)
    run(as_root(["true"]), error=NO_ROOT)
    ensure_program("ssh", "the way to the scenarios' hosts")
    ensure_program("newuidmap", "containers without root")
    ensure_engine_part("netavark", "the network of the scenarios' hosts")
    ensure_engine_part("aardvark-dns", "their names")
    _, stand_in = ready_podman()
    bundle = _ca_bundle(programs)
    images = _build_all(LONG if with_long else SHORT, bundle)
    if not PODMAN.has(stand_in):  # from there it goes to the scenarios' registry
        PODMAN.copy_from(Engine("podman"), stand_in)
    folder = cache_dir() / "rollout"
    folder.mkdir(mode=0o700, exist_ok=True)
    return {
        "PATH": path_for_root(programs),
        "CONTAINERS_CONF": str(_write_settings(images["UBUNTU"], folder)),
        "VICTORIA_TEST_IMAGE": stand_in,
        "VICTORIA_ROLLOUT_FOLDER": str(folder),
        "VICTORIA_ROLLOUT_CA": bundle or "",
        "VICTORIA_ROLLOUT_OLDEST_ANSIBLE": str(ensure_oldest_ansible(programs)),
        **(unpack_release_before(folder / "before") if with_long else {}),
        **{f"VICTORIA_ROLLOUT_{name}_HOST": image for name, image in images.items()},
        # NO_COLOR is Molecule's.
        "NO_COLOR": "1",
        "ANSIBLE_NOCOLOR": "1",
    }


def path_for_root(programs: Path) -> str:
    """Return a PATH with Ansible's programs, and with root's, which podman's network calls."""
    return f"{programs}:{os.environ['PATH']}:/usr/sbin:/sbin"


def command(python: Path, env: dict[str, str], arguments: list[str]) -> list[str]:
    """Return the command that runs scenarios; as root, because they make hosts.

    Without arguments those that CI runs, with --all every one, else what pytest chooses by them.
    """
    chosen_tests = [argument for argument in arguments if argument != "--all"]
    if not arguments:
        chosen_tests = ["-m", "not long"]
    chosen = {name: value for name, value in os.environ.items() if name.startswith("VICTORIA_")}
    # Root's pytest leaves nothing in the checkout that its owner could not write to afterwards.
    variables = {**chosen, **env, "PYTHONDONTWRITEBYTECODE": "1"}
    return as_root(
        [
            *("env", *(f"{name}={value}" for name, value in variables.items())),
            *(
                str(python),
                "-m",
                "pytest",
                "-p",
                "no:cacheprovider",
                "tests/rollout",
                *chosen_tests,
            ),
        ]
    )


def _ca_bundle(programs: Path) -> str | None:
    """Return the file of certificates that pip is set to trust here, for the hosts' pip."""
    for line in run([str(programs / "python"), "-m", "pip", "config", "list"]).output.splitlines():
        name, _, value = line.partition("=")
        if name.rpartition(".")[2] == "cert":
            return value.strip("'\"")
    return None


def _build_all(shapes: tuple[Shape, ...], ca_bundle: str | None) -> dict[str, str]:
    """Build the images that are missing; return their names by purpose."""
    with ThreadPoolExecutor() as pool:
        hosts = list(pool.map(_host_image, shapes))
    images = {shape.name.upper(): image for shape, image in zip(shapes, hosts, strict=True)}
    return {**images, "CONTROL": _control_image(images[DEBIAN_13.name.upper()], ca_bundle)}


def _host_image(shape: Shape) -> str:
    base = os.environ.get(shape.variable) or _debian(shape)
    return _build(f"rollout-{shape.name}", base, ["Containerfile", "finish", "init"])


def _debian(shape: Shape) -> str:
    recipe = [
        "--variant=minbase",
        f"--include={SYSTEM},{shape.packages}",
        # Mirrors may leave the testing suite alone for weeks.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        '--customize-hook=rm -rf "$1"/usr/share/doc "$1"/usr/share/man "$1"/usr/share/locale',
    ]
    # What a host installs from sid fits an image of the same month, but hardly one of last year.
    month = time.strftime("%Y-%m") if shape.suite == "sid" else ""
    image = hashed_name("debian", shape.suite, *recipe, month)
    if not PODMAN.has(image):
        ensure_program("mmdebstrap", "hosts for the scenarios where no registry answers")
        say(f"making a host from Debian packages ({shape.suite}): some minutes")
        is_debian = platform.freedesktop_os_release()["ID"] == "debian"
        mirror = package_source()[1] if is_debian else DEBIAN_MIRROR
        advice = f", or name an image of {shape.name} in {shape.variable}"
        import_debian(PODMAN, image, recipe, (shape.suite, mirror), advice)
    if not shape.script:
        return image
    files = ["Containerfile.shape", shape.script]
    return _build(f"base-{shape.name}", image, files, "--build-arg", f"SHAPE={shape.script}")


def _control_image(base: str, ca_bundle: str | None) -> str:
    needed = _orchestrator_needs((ROOT / "pyproject.toml").read_text())
    options = ["--build-arg", f"NEEDED={needed}"]
    if ca_bundle:
        inside = "/etc/controller-ca.crt"
        options += [f"--volume={ca_bundle}:{inside}:ro", "--build-arg", f"PIP_CERT={inside}"]
    return _build(
        "rollout-control", base, ["Containerfile.control", "control"], *options, key=needed
    )


def _orchestrator_needs(project: str) -> str:
    """Return what .[orchestrator] depends on; Python before 3.11 cannot read TOML."""
    lists = [
        project.partition(f"\n{name} = [")[2].partition("\n]")[0]
        for name in ("dependencies", "orchestrator")
    ]
    # Separated by a character that no requirement has.
    return "|".join(re.findall(r'^ +"([^"]+)"', "\n".join(lists), re.MULTILINE))


def _build(purpose: str, base: str, files: list[str], *options: str, key: str = "") -> str:
    # The first of the files is the Containerfile.
    name = hashed_name(purpose, base, key, *(SOURCES / file for file in files))
    if not PODMAN.has(name):
        say(f"building {name}: a minute or two")
        PODMAN.run(
            *("build", "--quiet", "--network=host", "--isolation=chroot", "--tag", name, *options),
            *("--build-arg", f"BASE={base}", "-f", str(SOURCES / files[0]), str(SOURCES)),
            error=f"cannot build {name}: see podman's message above",
            timeout_s=BUILD_TIMEOUT_S,
        )
    return name


def _write_settings(image: str, folder: Path) -> Path:
    """Write a containers.conf with which hosts run on this machine; return its path."""
    path = folder / "containers.conf"
    podman = Engine("podman", {"CONTAINERS_CONF": str(path)}, rootful=True)
    for setting in ["", *settings_to_try()]:
        path.write_text(f"{NETAVARK}{setting}")
        result = podman.run("run", "--rm", "--privileged", "--cgroupns=private", image, "true")
        if result.ok:
            return path
    raise SetupError(f"cannot run a host in podman: {result.last_line}")
