"""The child process that reads Crush's database: one JSON request in, JSON lines out.

The first line is the error, or the candidates and the session without its messages; each further
line is one message. The limits end this process and nothing else, whatever the database does to it.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Iterator

from runner.crush.search import answer
from runner.crush.sessions import CrushError, Request

_CANNOT = "cannot read the Crush database"


def main() -> None:
    """Answer the request on standard input."""
    request = Request.from_json(sys.stdin.buffer.read())
    signal.alarm(request.limits.wall_s)
    _set_limit(resource.RLIMIT_AS, request.limits.memory_mib << 20)
    _set_limit(resource.RLIMIT_CPU, request.limits.cpu_s)
    _set_limit(resource.RLIMIT_CORE, 0)
    for line in _lines(request):
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
        sys.stdout.buffer.write(text.encode() + b"\n")


def _set_limit(limit: int, value: int) -> None:
    # The soft limit alone: beyond the hard one SIGKILL would hide which limit it was.
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _lines(request: Request) -> Iterator[object]:
    try:
        candidates, session = answer(request)
    except CrushError as error:
        yield {"error": str(error), "kind": type(error).__name__}
        return
    except MemoryError:
        too_much = f"it takes over {request.limits.memory_mib} MiB of memory"
        yield {"error": f"{_CANNOT}: {too_much}", "kind": ""}
        return
    except Exception as error:  # noqa: BLE001 - nobody reads a traceback of this process
        defect = f"a defect: {type(error).__name__}: {error}"
        yield {"error": f"{_CANNOT}: {defect}", "kind": ""}
        return
    messages = session.pop("messages") if session is not None else []
    yield {**candidates._asdict(), "session": session}
    if isinstance(messages, list):
        yield from messages


if __name__ == "__main__":
    main()
