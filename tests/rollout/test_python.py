"""The tests that need no engine, on a Python that this machine may not have: that of Debian sid.

Left out are those that mount a small disk, which an ordinary container may not do.
"""

import os
import subprocess
from pathlib import Path

import pytest

from tests.rollout.molecule import ROOT

PACKAGES = "python3-venv git"
INSIDE = f"""
set -eu
export DEBIAN_FRONTEND=noninteractive HOME=/var/ops
apt-get update -q && apt-get install -y -q --no-install-recommends {PACKAGES}
install -d -o ops /src && tar --extract --file /checkout.tar --directory /src --owner ops
cd /src && chown -R ops . && exec runuser -u ops -- sh -eu -c '
python3 -m venv .venv
.venv/bin/pip install -q -e ".[orchestrator,client,reporter,test]" -c constraints.txt
.venv/bin/python --version
.venv/bin/python -m pytest tests/unit tests/loops -n 2 -q -m "not long" -k "not trouble_of_the_host"
'
"""


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_unit_tests_pass_on_the_python_of_debian_sid(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout.tar"
    files = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout
    subprocess.run(
        ["tar", "--create", f"--file={checkout}", "--null", "--files-from=-"],
        cwd=ROOT,
        check=True,
        input=files,
    )
    ca = os.environ["VICTORIA_ROLLOUT_CA"]
    trust = [f"--volume={ca}:/ca.crt:ro", "--env=PIP_CERT=/ca.crt"] if ca else []
    done = subprocess.run(
        [
            *("podman", "run", "--rm", "--replace", "--name=vr-python", "--network=host"),
            *(f"--volume={checkout}:/checkout.tar:ro", *trust),
            *(os.environ["VICTORIA_ROLLOUT_UBUNTU_HOST"], "sh", "-c", INSIDE),
        ],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = Path(os.environ["VICTORIA_ROLLOUT_FOLDER"]) / "python.log"
    log.write_text(done.stdout)
    assert done.returncode == 0, f"see {log}: {done.stdout[-3000:]}"
    assert "Python 3.14" in done.stdout
