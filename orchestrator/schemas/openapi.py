"""The schema that the server shows: what FastAPI finds out by itself, and what it cannot know.

The file `orchestrator-openapi.yaml` is this schema; a test holds them together.
"""

from typing import Any

import yaml
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from orchestrator.schemas.examples import EXAMPLES
from orchestrator.schemas.problems import SENTENCES, described_problem

DESCRIPTION = """\
Nodes are hosts that run tasks. They call, and are never called: a node registers once, then asks
for work, says that it lives, and reports what became of its tasks.

**Keys.** `POST /register` takes the registration token and answers a node key. All other calls
but `/health` and the page at `/dashboard` take a key in `X-API-Key`: a node's key, the
admin key, or a scoped key, which may do what its role permits.

**Waiting for work.** `GET /tasks/pending` may carry `Prefer: wait=25` (RFC 7240). The answer then
comes as soon as there is work, at the latest after so many seconds, and `Preference-Applied`
says that the server knew the preference. Whoever gets no such header asks again in intervals.

**Redelivery.** An assignment that its node has not reported on is offered to that node again. So
a node has to know its tasks by their ids and must not start one twice.

**A task's states.** pending, then assigned to a node; running and analyzing as the node reports;
at the end success, error or cancelled, and no other state follows these. The first end counts:
a later report changes nothing, and its answer says where the task stands. An assigned task whose
node falls silent is pending again. A running one ends as an error that begins with `lost` when
its time limit is long over and its node is silent, or no longer has it in hand.

**Extensions.** The answers to `POST /register` and `POST /nodes/heartbeat` may carry `extensions`,
a list of names. A server may lack any extension, and a node uses only what is named. `reregister`:
a node whose name, tags, capabilities or host name have changed calls `POST /register` with its key
in `X-API-Key` beside the token, and stays the same node with the same key and the same tasks. A
server that does not name it would make a second node of such a call.

**Names.** Bodies about a task may call it `task_id` or `job_id`, or both.

**Errors** have the body `{"detail": "one sentence"}`. After 429 and 503 it helps to try again,
in `Retry-After` seconds if the answer has it.
"""

TAGS = [
    {"name": "nodes", "description": "Registration, signs of life, and the list of nodes."},
    {"name": "tasks", "description": "Work: created by its owners, asked for by nodes."},
    {"name": "files", "description": "Files that tasks need: in from owners, out to nodes."},
    {"name": "status", "description": "What nodes report of their tasks."},
    {"name": "logs", "description": "What the agent wrote while it worked on a task."},
    {"name": "keys", "description": "Scoped keys, and the audit of all keys."},
    {"name": "system", "description": "Whether the server is well, and the fleet in numbers."},
]

_ABOUT_A_TASK = ("Report", "LogSubmission")
_OPERATIONS = ("get", "post", "delete")


def schema_of(app: FastAPI) -> dict[str, Any]:
    """Give the whole contract as OpenAPI 3.1."""
    schema = get_openapi(
        title="Victoria Terminal orchestrator",
        version=app.version,
        openapi_version="3.1.0",
        summary="Hands out tasks to the hosts that run Victoria Terminal.",
        description=DESCRIPTION,
        routes=app.routes,
        tags=TAGS,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    for path in schema["paths"].values():
        for method in _OPERATIONS:
            if method in path:
                _complete(path[method])
    models = schema["components"]["schemas"]
    # FastAPI's own form of errors, which no answer has.
    for name in ("HTTPValidationError", "ValidationError"):
        models.pop(name, None)
    schema["components"]["responses"] = {
        str(code): described_problem(code) for code in sorted(SENTENCES)
    }
    for name, example in EXAMPLES.items():
        models[name]["examples"] = [example]
    for name in _ABOUT_A_TASK:
        models[name]["anyOf"] = [{"required": ["job_id"]}, {"required": ["task_id"]}]
    return schema


def _complete(operation: dict[str, Any]) -> None:
    """Say what else any call may be answered, and point to where each error is described."""
    codes = {int(code) for code in operation["responses"] if code >= "400"} | {503}
    if "parameters" in operation:
        codes |= {422}
    if "requestBody" in operation:
        codes |= {400, 413, 422}
    operation["responses"].update(
        {str(code): {"$ref": f"#/components/responses/{code}"} for code in sorted(codes)}
    )
    operation["responses"] = dict(sorted(operation["responses"].items()))


def to_yaml(schema: dict[str, Any]) -> str:
    """Return a schema as YAML, in the order of its keys."""
    return yaml.dump(schema, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes long texts as blocks, and nothing by reference."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
