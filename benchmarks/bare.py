"""A server of one bare route, to compare ours with: Starlette on uvicorn, and nothing else."""

from __future__ import annotations

import socket

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

_RESPONSE = {
    "id": "7f0c9c0e-1d7b-4a52-9c4e-0d8a7c1f5b11",
    "hostname": "simulated",
    "name": "node-00-00000",
    "os_type": "linux",
    "status": "idle",
    "last_heartbeat": "2026-01-01T00:00:00.000000Z",
    "registered_at": "2026-01-01T00:00:00.000000Z",
    "capabilities": [],
    "tags": {},
    "cancelled_task_ids": [],
    "extensions": ["reregister", "pace"],
}


async def _route(request: Request) -> JSONResponse:
    await request.json()
    return JSONResponse(_RESPONSE)


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        Starlette(routes=[Route("/", _route, methods=["POST"])]),
        http="httptools",
        loop="uvloop",
        access_log=False,
        timeout_keep_alive=75,
        log_config=None,
    )
    uvicorn.Server(config).run(sockets=[listener])
