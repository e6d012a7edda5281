"""A task that tries everything harms nothing with a home of its own, and in a shared one little.

What came of each attack, and what is not covered: docs/security.md.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from starlette.routing import BaseRoute

from orchestrator.app import create_app
from orchestrator.services import services_of
from orchestrator.settings import Settings
from tests.engines import Engine
from tests.harness.runner_process import RunnerProcess
from tests.system.conftest import Prepare
from tests.system.recording import RecordingOrchestrator

PROGRAM = Path(__file__).parents[1] / "image" / "attack.py"
COMMON = {"notes.txt": "notes", "crush.json": "{}", ".crush/sessions.txt": "sessions"}
"""What is in each home before: with a shared home it is common, as all that is not in `tasks`."""
PLANTED = "planted.txt"
SECRET = "secret of the host"  # noqa: S105 - opens nothing
CONFIDENTIAL = "confidential prompt of a task elsewhere"
PUBLIC = {
    ("GET", "/"),
    ("GET", "/dashboard"),
    ("GET", "/dashboard/tasks/{task_id}"),
    ("GET", "/health"),
    ("GET", "/openapi.json"),
    ("GET", "/openapi.yaml"),
    ("HEAD", "/openapi.json"),
}
"""Routes that need no key: nothing in their responses is of a task or a node."""
REFUSED = {401, 403, 429}


@dataclass
class Node:
    """A host with a hostile task beside an honest one."""

    runner: RunnerProcess
    has_shared_home: bool
    honest: str = ""
    hostile: str = ""
    before: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"node-{'shared' if self.has_shared_home else 'task'}"

    def give(self, orchestrator: RecordingOrchestrator, prompt: str, files: list[str]) -> str:
        task = orchestrator.create_task(prompt, target_node_name=self.name, files=files)
        return str(task["id"])

    def wait_until_open(self) -> None:
        """Wait until the runner has opened a home again that a task has closed."""
        home = self.runner.home
        self.runner.wait_for(lambda: os.access(home, os.X_OK), "the home is closed")

    @property
    def report(self) -> dict[str, Any]:
        path = self.runner.task_folder(self.hostile) / "attack.json"
        report: dict[str, Any] = json.loads(path.read_text())
        return report

    def changes(self) -> set[str]:
        """Return the files of this home that the hostile task has made, changed or removed."""
        after = contents(self.runner.home, self.hostile)
        return {path for path in {*self.before, *after} if self.before.get(path) != after.get(path)}


def test_hostile_task_does_no_harm_but_to_what_a_shared_home_has_in_common(
    engine: Engine, prepare: Prepare, orchestrator: RecordingOrchestrator, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text(SECRET)
    elsewhere = orchestrator.create_task(CONFIDENTIAL, target_node_name="elsewhere")["id"]
    upload = orchestrator.upload("data.csv", b"1,2\n")["filename"]
    shared, own = nodes = [start_node(prepare(engine, name), name) for name in ("shared", "task")]
    for node in nodes:
        node.honest = node.give(orchestrator, "[wait-for OWN/go][print-line honest]", [upload])
    for node in nodes:
        node.runner.wait_for_start_of(node.honest)
    files = [orchestrator.upload("attack.py", PROGRAM.read_bytes())["filename"]]
    aims = targets(orchestrator, nodes, [elsewhere], upload, tmp_path / "secret")
    files += [orchestrator.upload("targets.json", json.dumps(aims).encode())["filename"]]
    for node in nodes:
        node.before = contents(node.runner.home)
        node.hostile = node.give(orchestrator, "[run attack.py][print-line tried]", files)
    for node in nodes:
        ended = orchestrator.end_of(node.hostile)
        assert ended["status"] == "success", ended["error_message"]
        node.wait_until_open()
        check_calls(node.report["calls"])
        check_surroundings(node, orchestrator)
    assert shared.changes() == {*COMMON, PLANTED}
    assert own.changes() == set()

    for node in nodes:
        node.runner.wait_until_closed(node.hostile)
        (node.runner.task_folder(node.honest) / "go").touch()
    for node in nodes:
        ended = orchestrator.end_of(node.honest)
        assert (ended["status"], ended["result"].partition(":")[0]) == ("success", "completed")
        node.runner.wait_until_closed(node.honest)
        assert node.runner.is_alive
    assert orchestrator.task(elsewhere)["status"] == "pending"
    assert len(orchestrator.nodes()) == len(nodes)
    assert SECRET not in orchestrator.stored()


def start_node(runner: RunnerProcess, home: str) -> Node:
    for name, text in COMMON.items():
        path = runner.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    # What the hostile task leaves in the place of Crush's database is waited for in vain.
    runner.set_timings(final_log_timeout_s=1)
    node = Node(runner, has_shared_home=home == "shared")
    runner.set_options(name=node.name, home=home, max_tasks=2)
    runner.start()
    return node


def targets(
    orchestrator: RecordingOrchestrator,
    nodes: list[Node],
    others: list[str],
    upload: str,
    secret: Path,
) -> dict[str, Any]:
    """Return everything that a hostile task could have guessed."""
    honest = [node.honest for node in nodes]
    return {
        "url": orchestrator.url,
        "routes": routes(),
        "others": honest + others,
        "ids": {
            "node_id": [node.runner.node_id for node in nodes],
            "filename": [upload],
        },
        "paths": [str(secret), *(str(node.runner.state_dir) for node in nodes)],
    }


def routes() -> list[tuple[str, str]]:
    """Return the method and path of every route of the reference orchestrator."""
    with TemporaryDirectory() as folder:
        app = create_app(Settings(Path(folder), admin_key="", registration_token=None))
        services_of(app).database.close()
    found = set()
    for entry in app.routes:
        # FastAPI keeps each router as one entry; old versions copy its routes.
        for route in getattr(getattr(entry, "original_router", None), "routes", [entry]):
            path = re.sub(r":\w+}", "}", str(getattr(route, "path", "")))  # as it is declared
            found |= {(method, path) for method in methods_of(route)}
    declared = {
        (name.upper(), path) for path, one in app.openapi()["paths"].items() for name in one
    }
    assert declared <= found
    return sorted(found)


def methods_of(route: BaseRoute) -> set[str]:
    return set(getattr(route, "methods", None) or ["GET"])


def check_calls(calls: list[list[Any]]) -> None:
    """Check that every route that needs a key has refused the task's, for every other task."""
    assert {(method, path) for method, path, _ in calls} == set(routes())
    assert {(method, path) for method, path, code in calls if code not in REFUSED} == PUBLIC


def check_surroundings(node: Node, orchestrator: RecordingOrchestrator) -> None:
    """Check what the hostile task has found around itself: no secret, task or engine of others."""
    report = node.report
    tasks = {path.split("/")[1] for path in report["seen"] if path.startswith("tasks/")}
    assert tasks == {node.hostile}
    readable = {path for path in report["read"] if not path.startswith("tasks/")}
    assert readable == {path for path in COMMON if node.has_shared_home or ".crush/" not in path}
    assert (report["sockets"], report["engines"]) == ([], [])
    secrets = {node.runner.node_key, orchestrator.admin_key, orchestrator.registration_token}
    assert secrets.isdisjoint(report["environment"].values())


def contents(home: Path, but: str = "nobody") -> dict[str, str]:
    """Return what each file below a home is, but for one task's own folder and own home."""
    return dict(_contents(home, (f"tasks/{but}/", f"tasks/.homes/{but}/")))


def _contents(home: Path, but: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for parent, folders, names in os.walk(home):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for path in (Path(parent) / name for name in [*names, *links]):
            relative = path.relative_to(home).as_posix()
            if relative.startswith(but):
                continue
            with suppress(FileNotFoundError):
                mode = path.lstat().st_mode
                content = path.read_bytes() if stat.S_ISREG(mode) else b""
                yield relative, f"{mode:o} {hashlib.sha256(content).hexdigest()}"
