"""What Schemathesis cannot know from the contract: whose key goes where, and which texts exist.

It loads this file by SCHEMATHESIS_HOOKS; the server under test is named in variables.
"""

import os
import uuid
from datetime import datetime
from typing import Any

import httpx
import schemathesis

ADMIN_KEY = os.environ["VICTORIA_CHECKED_ADMIN_KEY"]
TOKEN = {"X-Registration-Token": os.environ["VICTORIA_CHECKED_TOKEN"]}
SERVER = httpx.Client(base_url=os.environ["VICTORIA_CHECKED_URL"], timeout=60, trust_env=False)
MAX_LENGTH = 255
LATER = "2999-12-31T00:00:00Z"
FOR_NODES = {"record_heartbeat", "next_task", "download_file", "report_status", "store_log"}
FOR_NODES |= {"put_artifact", "send_output"}


@schemathesis.auth(refresh_interval=None)
class Keys:
    """The key that each call needs; a node's is new each time, since nodes are removed."""

    def get(self, case: schemathesis.Case[Any], _context: object) -> dict[str, str]:
        """Return a header."""
        operation = case.operation.definition.raw.get("operationId")
        if operation == "register":
            return TOKEN
        if operation not in FOR_NODES:
            return {"X-API-Key": ADMIN_KEY}
        body = {"hostname": "checked.example", "os_type": "linux"}
        response = SERVER.post("/register", json=body, headers=TOKEN)
        return {"X-API-Key": str(response.json()["api_key"])}

    def set(self, case: schemathesis.Case[Any], header: dict[str, str], _context: object) -> None:
        case.headers.update(header)


@schemathesis.hook
def before_call(_context: object, case: schemathesis.Case[Any], _arguments: object) -> None:
    """Make what is valid by the schema also valid by what a schema cannot say; wait for no task."""
    if isinstance(case.body, dict):
        case.body = _valid(case.body, case.operation.definition.raw["operationId"])
    # A cursor is copied from a page, and none that is made up is one.
    if isinstance(case.query, dict):
        case.query.pop("cursor", None)
    if "wait=25" in str(case.headers.get("prefer", "")):
        case.headers["prefer"] = "wait=1"


def _valid(body: dict[str, Any], operation: str) -> dict[str, Any]:
    if operation in {"report_status", "store_log"}:
        # One of both is required, and both must be equal.
        if body.get("job_id") is None and body.get("task_id") is None:
            return {**body, "job_id": str(uuid.uuid4())}
        if isinstance(body.get("job_id"), str) and "task_id" in body:
            return {**body, "task_id": body["job_id"]}
    if operation == "create_token" and _is_time(body.get("expires_at")):
        return {**body, "expires_at": LATER}
    if operation == "create_task":
        if _is_short(body.get("recurrence")):
            body = {**body, "recurrence": "*/5 3 * * mon-fri"}
        files = body.get("files")
        if isinstance(files, list) and files and all(map(_is_short, files)):
            is_unique = len(set(files)) == len(files)
            body = {**body, "files": [_uploaded()] if is_unique else ["twice", "twice"]}
    return body


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and "T" in value and bool(datetime.fromisoformat(value))
    except ValueError:
        return False


def _is_short(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_LENGTH and "\0" not in value


def _uploaded() -> str:
    # Each time, since cleanup deletes what no task needs.
    files, headers = {"file": ("checked.txt", b"content")}, {"X-API-Key": ADMIN_KEY}
    return str(SERVER.post("/upload", files=files, headers=headers).json()["filename"])
