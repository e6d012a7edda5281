"""A polling loop, for `./dev bench peers`: it stands in for the runner that ours replaces.

That is the runner of the seed document, which polls every 30 s by default. This has its pace and
its size, and nothing else: a pass reports the task whose container has exited, requests the next
one from GET /tasks/pending, runs its container as a foreground child with `--rm`, and sends a
heartbeat. Files, time limits and retries are left out: a no-op task on loopback needs none.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import httpx

POLL_INTERVAL_S = 30.0


def foreground(engine: str, image: str, home: str, task_id: str, prompt: str) -> list[str]:
    """Return the command that runs a task's container in the foreground and removes it."""
    return [
        *(engine, "run", "--rm", "--network", "host"),
        *("--volume", f"{home}:/workspace/Victoria:z", "--env", f"JOB_ID={task_id}"),
        *(image, "--accept-license", "--task", prompt),
    ]


def main(url: str, home: str, engine: str, image: str) -> None:
    """Register a node, then run tasks, one at a time, until a signal ends the process."""
    client = httpx.Client(base_url=url, timeout=30.0, trust_env=False)
    token = {"X-Registration-Token": os.environ["REGISTRATION_TOKEN"]}
    machine = {"hostname": "polling-loop", "name": "polling-loop", "os_type": "linux"}
    node = client.post("/register", json=machine, headers=token).raise_for_status().json()
    client.headers["X-API-Key"] = node["api_key"]
    print("registered", flush=True)
    task_id = ""
    container: subprocess.Popen[bytes] | None = None
    while True:
        if container is not None and container.poll() is not None:
            status = "success" if container.returncode == 0 else "error"
            body = {"job_id": task_id, "status": status}
            client.post("/status", json=body).raise_for_status()
            container = None
        if container is None:
            assignment = client.get("/tasks/pending").raise_for_status().json()
            if assignment is not None:
                task_id = assignment["task_id"]
                command = foreground(engine, image, home, task_id, assignment["prompt"])
                container = subprocess.Popen(command)
        state = {"status": "idle"} if container is None else {"status": "busy"}
        body = {"node_id": node["id"], **state}
        client.post("/nodes/heartbeat", json=body).raise_for_status()
        time.sleep(POLL_INTERVAL_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
