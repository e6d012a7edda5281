"""A Prefect server and one worker of a process work pool, on loopback, for `./dev bench peers`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.system import line_of, running, wait_until
from tests.harness.ports import kept_port

QUERY_INTERVAL_S = 10.0
"""How often a worker asks for work, as Prefect has it by default."""

_RETRY_S = 0.2
_TIMEOUT_S = 30.0
_START_S = 180.0

# Prefect has an environment of its own, so its programs are text here.
_FLOWS = """
import pathlib
import subprocess

from prefect import flow


@flow
def no_op(mark: str) -> None:
    path = pathlib.Path(mark)
    path.parent.mkdir(parents=True)
    path.touch()


@flow
def container(command: list[str]) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    folder = pathlib.Path(__file__).parent
    for one in (no_op, container):
        source = flow.from_source(source=folder, entrypoint=f"flows.py:{one.fn.__name__}")
        source.deploy(name="bench", work_pool_name="bench", ignore_warnings=True)
"""


@dataclass(frozen=True)
class Prefect:
    """A running server and worker, to which two flows are deployed: `no-op` and `container`."""

    api: httpx.Client
    worker_pid: int
    version: str
    deployments: dict[str, str]
    """Their ids, by the names of the flows."""

    def create_run(self, flow: str, name: str, parameters: dict[str, object]) -> None:
        """Create a run of a flow, to be started at once."""
        body = {"name": name, "parameters": parameters}
        self._post(f"/deployments/{self.deployments[flow]}/create_flow_run", body)

    def unfinished(self, names: list[str]) -> bool:
        """Return whether one of the runs has not completed; a failed one counts as unfinished."""
        wanted = {"name": {"any_": names}, "state": {"type": {"not_any_": ["COMPLETED"]}}}
        return self._post("/flow_runs/count", {"flow_runs": wanted}) != 0

    def _post(self, path: str, body: object) -> object:
        response = self.api.post(path, json=body)
        while response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            # Its database was locked; Prefect's own client sends the request again, too.
            time.sleep(_RETRY_S)
            response = self.api.post(path, json=body)
        result: object = response.raise_for_status().json()
        return result


@contextlib.contextmanager
def prefect(folder: Path, python: str) -> Iterator[Prefect]:
    """Run both for as long as the block lasts, with Prefect's defaults, on a new database."""
    keeper, port = kept_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "DO_NOT_TRACK": "1",
        "NO_PROXY": "127.0.0.1",
        "PREFECT_API_URL": url,
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    server = ["prefect", "server", "start", "--host=127.0.0.1", f"--port={port}"]
    worker = ["prefect", "worker", "start", "--pool=bench", "--type=process"]
    folder.mkdir()
    flows = folder / "flows.py"
    flows.write_text(_FLOWS)
    log, worker_log = folder / "prefect-server.log", folder / "prefect-worker.log"
    with (
        keeper,
        running(server, log, environment, python),
        httpx.Client(base_url=url, timeout=_TIMEOUT_S, trust_env=False) as api,
    ):
        wait_until(lambda: _is_healthy(api), "Prefect's server did not start", _START_S)
        create_pool = [python, "-m", "prefect", "work-pool", "create", "bench", "--type=process"]
        for command in (create_pool, [python, str(flows)]):
            done = subprocess.run(
                command, env=environment, check=False, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"bench: cannot set up Prefect:\n{done.stdout}{done.stderr}")
        with running(worker, worker_log, environment, python) as process:
            line_of(worker_log, " started!")
            version = api.get("/admin/version").raise_for_status().json()
            deployments = {
                flow: api.get(f"/deployments/name/{flow}/bench").raise_for_status().json()["id"]
                for flow in ("no-op", "container")
            }
            yield Prefect(api, process.pid, version, deployments)


def _is_healthy(api: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return api.get("/health").is_success
    return False
