"""What Schemathesis cannot know from the contract: whose key goes where, and which texts exist.

It loads this file by SCHEMATHESIS_HOOKS; the server under test is named in variables.
"""

import os
from typing import Any

import httpx
import schemathesis
from hypothesis import strategies

URL = os.environ["VICTORIA_CHECKED_URL"]
ADMIN_KEY = os.environ["VICTORIA_CHECKED_ADMIN_KEY"]
TOKEN = os.environ["VICTORIA_CHECKED_TOKEN"]
TIMEOUT_S = 60
FOR_NODES = {"record_heartbeat", "next_task", "download_file", "report_status", "store_log"}


def _new_node_key() -> str:
    body = {"hostname": "checked.example", "os_type": "linux"}
    headers = {"X-Registration-Token": TOKEN}
    answer = httpx.post(
        f"{URL}/register", json=body, headers=headers, timeout=TIMEOUT_S, trust_env=False
    )
    return str(answer.json()["api_key"])


@schemathesis.auth(refresh_interval=None)
class Keys:
    """Gives each call the key that it needs; a node's is new each time, since nodes are removed."""

    def get(self, case: schemathesis.Case[Any], _context: object) -> tuple[str, str]:
        """Choose a header."""
        operation = case.operation.definition.raw.get("operationId")
        if operation == "register":
            return "X-Registration-Token", TOKEN
        return "X-API-Key", _new_node_key() if operation in FOR_NODES else ADMIN_KEY

    def set(self, case: schemathesis.Case[Any], header: tuple[str, str], _context: object) -> None:
        """Put it on."""
        name, value = header
        case.headers[name] = value


@schemathesis.hook
def before_call(_context: object, case: schemathesis.Case[Any], _arguments: object) -> None:
    """Make both names of a task the same, which a schema cannot ask for; wait for no work."""
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("job_id"), str) and "task_id" in body:
        case.body = {**body, "task_id": body["job_id"]}
    if "wait=25" in str(case.headers.get("prefer", "")):
        case.headers["prefer"] = "wait=1"


def _uploaded() -> str:
    answer = httpx.post(
        f"{URL}/upload",
        files={"file": ("checked.txt", b"content")},
        headers={"X-API-Key": ADMIN_KEY},
        timeout=TIMEOUT_S,
        trust_env=False,
    )
    return str(answer.json()["filename"])


schemathesis.openapi.format("uploaded-file", strategies.just(_uploaded()))
schemathesis.openapi.format(
    "cron", strategies.sampled_from(["* * * * *", "*/5 3 * * mon-fri", "0 0 1 1 *"])
)
