"""An orchestrator of one task, the six calls of a runner: python small_server.py PORT."""

import hashlib
import json
import secrets
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "your-registration-token"  # noqa: S105 - of an example
FILE, CHECKSUM = b"north,7\n", hashlib.sha256(b"north,7\n").hexdigest()
TASK: dict[str, Any] = {"id": "task-uuid-here", "status": "pending", "node": None}
NODES: dict[str, str] = {}  # the id of each node, by its key
STATUSES = {"running", "analyzing", "success", "error"}


class Handler(BaseHTTPRequestHandler):  # noqa: D101
    def do_GET(self) -> None:
        node = NODES.get(self.headers["X-API-Key"])
        if node is None:
            self._reply({"detail": "unknown API key"}, 401)
        elif self.path == "/tasks/pending":
            is_free = TASK["status"] == "pending" and TASK["node"] in {None, node}
            TASK["node"] = node if is_free else TASK["node"]
            task = {"task_id": TASK["id"], "prompt": "Add it up", "timeout_seconds": 3600}
            task |= {"orchestrator_url": f"http://{self.headers['Host']}"}
            self._reply(
                task | {"files": ["a.csv"], "file_checksums": [CHECKSUM]} if is_free else None
            )
        elif self.path == "/files/a.csv" and TASK["node"] == node:
            self._reply(FILE)
        else:
            self._reply({"detail": "there is no such thing"}, 404)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body, node = json.loads(raw), NODES.get(self.headers["X-API-Key"])
        if self.path == "/register" and self.headers["X-Registration-Token"] == TOKEN:
            key = secrets.token_hex()
            NODES[key] = secrets.token_hex()
            self._reply({"id": NODES[key], "api_key": key})
        elif node is None:
            self._reply({"detail": "unknown API key or registration token"}, 401)
        elif self.path == "/nodes/heartbeat":
            self._reply({"id": node, "status": body["status"]})
        elif TASK["node"] != node or TASK["id"] not in {body.get("task_id"), body.get("job_id")}:
            self._reply({"detail": "the task is not with this node"}, 403)
        elif len(raw) > 10 * 1024**2:
            self._reply({"detail": "the log has more than 10 MB"}, 413)
        elif self.path == "/status" and (
            body["status"] not in STATUSES or isinstance(body.get("progress"), str)
        ):
            self._reply({"detail": "the status is unknown, or the progress is not a number"}, 422)
        else:
            if self.path == "/status" and TASK["status"] not in {"success", "error"}:
                TASK["status"] = body["status"]
            self._reply(TASK)

    def _reply(self, body: object, code: int = 200) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
