"""The files in docs/examples start what they say, with the limits that the server has."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from orchestrator.__main__ import main
from orchestrator.routes.assignments import preferred_wait_s
from orchestrator.routes.files import MULTIPART_OVERHEAD_BYTES
from orchestrator.settings import DEFAULT_MAX_UPLOAD_BYTES

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "docs" / "examples"
OPTIONS = {option for parameter in main.params for option in parameter.opts}
VARIABLES = {
    "REGISTRATION_TOKEN",
    "ADMIN_API_KEY",
    "FORWARDED_ALLOW_IPS",
    *(f"VICTORIA_ORCHESTRATOR_{str(parameter.name).upper()}" for parameter in main.params),
}


@pytest.mark.parametrize("name", ["orchestrator.service", "Containerfile"])
def test_options_in_the_examples_exist(name: str) -> None:
    [command] = re.findall(
        r"^(?:ExecStart=|ENTRYPOINT ).*", (EXAMPLES / name).read_text(), re.MULTILINE
    )
    options = re.findall(r"--[a-z-]+", command)
    assert "--data-dir" in options
    assert set(options) <= OPTIONS


def test_variables_in_the_examples_and_their_document_exist() -> None:
    compose = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
    environment = set(compose["services"]["orchestrator"]["environment"])
    document = (REPOSITORY / "docs" / "orchestrator.md").read_text()
    assert environment <= VARIABLES
    assert set(re.findall(r"VICTORIA_ORCHESTRATOR_[A-Z_]*[A-Z]", document)) <= VARIABLES


def test_files_that_the_image_and_compose_take_are_there() -> None:
    sources = re.findall(
        r"^COPY ([^-].*) \S+$", (EXAMPLES / "Containerfile").read_text(), re.MULTILINE
    )
    for name in " ".join(sources).split():
        assert (REPOSITORY / name).exists(), name
    compose = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
    build = compose["services"]["orchestrator"]["build"]
    assert (EXAMPLES / build["context"] / build["dockerfile"]).is_file()


def test_proxy_lets_through_the_largest_file_and_the_longest_poll() -> None:
    proxy = (EXAMPLES / "nginx.conf").read_text()
    [mebibytes] = re.findall(r"client_max_body_size (\d+)m;", proxy)
    assert int(mebibytes) * 1024**2 >= DEFAULT_MAX_UPLOAD_BYTES + MULTIPART_OVERHEAD_BYTES
    [seconds] = re.findall(r"proxy_read_timeout (\d+)s;", proxy)
    assert int(seconds) > preferred_wait_s(["wait=999999"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    # The program of the example is not installed here.
    unit = tmp_path / "victoria-orchestrator.service"
    text = (EXAMPLES / "orchestrator.service").read_text()
    unit.write_text(re.sub(r"/opt/\S+/python", "/bin/sh", text))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
