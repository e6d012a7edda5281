"""The files in docs/examples start what they say, with the limits that the server has."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from orchestrator.client.access import HTTP_VARIABLE, KEY_VARIABLE, URL_VARIABLE
from orchestrator.routes.assignments import preferred_wait_s
from orchestrator.routes.files import MULTIPART_OVERHEAD_BYTES
from orchestrator.serve import main
from orchestrator.settings import DEFAULT_MAX_UPLOAD_BYTES

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "docs" / "examples"
CONTAINERFILE, PROXY, UNIT = (
    (EXAMPLES / name).read_text()
    for name in ("Containerfile", "nginx.conf", "orchestrator.service")
)
SERVICE = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"]["orchestrator"]
OPTIONS = {option for parameter in main.params for option in parameter.opts}
VARIABLES = {f"VICTORIA_ORCHESTRATOR_{str(parameter.name).upper()}" for parameter in main.params}
VARIABLES |= {"REGISTRATION_TOKEN", "ADMIN_API_KEY", "FORWARDED_ALLOW_IPS"}
VARIABLES |= {URL_VARIABLE, KEY_VARIABLE, HTTP_VARIABLE}


def test_options_and_variables_in_the_examples_and_their_document_exist() -> None:
    for command in (r"^ExecStart=.*", r"^ENTRYPOINT .*"):
        [line] = re.findall(command, UNIT + CONTAINERFILE, re.MULTILINE)
        assert {"--data-dir"} <= set(re.findall(r"--[a-z-]+", line)) <= OPTIONS
    document = (REPOSITORY / "docs" / "orchestrator.md").read_text()
    names = re.findall(r"VICTORIA_ORCHESTRATOR_[A-Z_]*[A-Z]", document)
    assert {*SERVICE["environment"], *names} <= VARIABLES


def test_files_that_the_image_and_compose_take_are_there() -> None:
    sources = re.findall(r"^COPY ([^-].*) \S+$", CONTAINERFILE, re.MULTILINE)
    for name in " ".join(sources).split():
        assert (REPOSITORY / name).exists(), name
    assert (EXAMPLES / SERVICE["build"]["context"] / SERVICE["build"]["dockerfile"]).is_file()


def test_proxy_lets_through_the_largest_file_and_the_longest_poll() -> None:
    [mebibytes] = re.findall(r"client_max_body_size (\d+)m;", PROXY)
    assert int(mebibytes) * 1024**2 >= DEFAULT_MAX_UPLOAD_BYTES + MULTIPART_OVERHEAD_BYTES
    [seconds] = re.findall(r"proxy_read_timeout (\d+)s;", PROXY)
    assert int(seconds) > preferred_wait_s(["wait=999999"])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "victoria-orchestrator.service"
    # The program of the example is not installed here.
    unit.write_text(re.sub(r"/opt/\S+/python", "/bin/sh", UNIT))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
