"""The OpenAPI schema: what FastAPI derives from the code, and what it cannot know.

The file `orchestrator-openapi.yaml` is this schema; a test holds them together.
"""

from typing import Any

import yaml
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from orchestrator.schemas.examples import EXAMPLES
from orchestrator.schemas.problems import SENTENCES, described_problem

DESCRIPTION = """\
Nodes are hosts that run tasks. All connections are outbound: a node registers once, then polls for
tasks, sends heartbeats, and reports what became of its tasks.

**Keys.** `POST /register` takes a registration token and returns a node key. Every other call
except `GET /health` and `GET /dashboard` takes a key in `X-API-Key`. `NodeApiKey` is the key of a
node, `AdminApiKey` the admin key, `ScopedKey` a scoped key with one of the roles that the call
names, `TaskApiKey` the key of one task.

**Patterns.** A registration token may be for some names of nodes only; others are refused with 403.
A scoped key may be for some nodes only: its tasks must target them, and with the role `admin` it
reads and changes nothing but these nodes, the tasks that target them, its own tasks, and keys and
tokens whose patterns lie within its own.

**Fields.** A response leaves out a field that has no value. In a request, null means the same as
leaving the field out, and fields that are not declared are ignored. Bodies about a task may call
its id `task_id` or `job_id`; at least one is required, and both must be equal.

**Long polling.** `GET /tasks/pending` may carry `Prefer: wait=25` (RFC 7240). The response then
comes as soon as there is a task, or after that many seconds. `Preference-Applied` in the response
shows that the server supports this; without that header, poll at an interval.

**Redelivery.** An assignment that the node has not reported on is offered to the node again. A node
must remember the ids of its tasks and must not start one twice.

**Task states.** A task is pending, then assigned to a node, then running or analyzing as the node
reports. It ends as success, error or cancelled; these are final. The first final status counts: a
later report changes nothing, and the response to it has the task's status. A task that is assigned
becomes pending again if its node stops sending heartbeats. A running task ends as an error that
begins with `lost` when its time limit is long over and its node is silent or does not have it.

**Extensions.** The responses to `POST /register` and `POST /nodes/heartbeat` may have `extensions`,
a list of names. A server may lack any extension, and a node uses only those that are named.
`reregister`: a node whose name, tags, capabilities or host name have changed calls
`POST /register` with its key in `X-API-Key` beside the token, and stays the same node, with the
same key and the same tasks. A server that does not name this extension would create a second node.
`pace`: the response to a heartbeat has `heartbeat_interval_seconds`, from 5 to 300, after which the
next one is expected; a node that sends none for three of these intervals is offline. It is at most
15 for a node with a task, which learns of cancellations by its heartbeats.
`task-key`: an assignment has `task_api_key`, which a node hands to the container in place of its
own key. With it, `POST /status` and `POST /logs` for that task are accepted, until a minute after
the task's end; every other call is refused with 403, and after that minute with 401. A redelivery
shows the same key. A task that is assigned again has another key, and the old one is refused.
`parked-reports`: a heartbeat may have `parked_reports`, the number of reports that were refused and
that the node keeps for its operator.

**New keys of nodes.** The response to a heartbeat may have `new_api_key`. The node stores it, and
uses it from then on; it is shown until it is used. Its first use ends the old key, except for
`POST /status` and `POST /logs` of tasks that were assigned before, until they end.

**Logs.** A task's log is replaced by a later one until the task has ended. After the end, the
task's key can add a log if there is none, and the node's key can replace one that was sent before
the end. Otherwise another log is refused with 409; the same one is accepted again.

**Limits.** A message has up to 100,000 characters, however many bytes they take; a heartbeat up to
1,000 ids of up to 128 characters. A server takes these, so a node may rely on them. It may limit
the calls of a node, and how many reports and logs of a task it stores, but it takes a final report
and the heartbeats that it has asked for. To a log that is too large it answers 413; the node then
sends a shorter one, once.

**Errors** have the body `{"detail": "one sentence"}`. After 429, 503 and 507, retry; wait for
`Retry-After` seconds if the response has that header.
"""

TAGS = [
    {"name": "nodes", "description": "Registration, heartbeats, and the list of nodes."},
    {"name": "tasks", "description": "Tasks: created by administrators, polled for by nodes."},
    {"name": "files", "description": "Files that tasks need: uploaded by administrators."},
    {"name": "status", "description": "What nodes report about their tasks."},
    {"name": "logs", "description": "The sessions of the agents that worked on tasks."},
    {"name": "keys", "description": "Scoped keys, and the audit log of all keys."},
    {"name": "tokens", "description": "Registration tokens for some names of nodes."},
    {"name": "system", "description": "Health, dashboard and statistics."},
]

_SUMMARIES = {
    "get_health": ("Check the server's health", "The server and its database respond."),
    "register": ("Register a node", "The node and its key."),
    "record_heartbeat": ("Record a heartbeat", "The node and the tasks that it must stop."),
    "list_nodes": ("List nodes", "All nodes, the oldest first."),
    "get_node": ("Get a node", "The node."),
    "remove_node": ("Remove a node", "The node is removed."),
    "rotate_node_key": ("Rotate a node's key", "The node, without its keys."),
    "next_task": ("Get the next assignment", "An assignment, or null if there is none."),
    "create_task": ("Create a task", "The new task."),
    "list_tasks": ("List tasks", "The tasks, the newest first."),
    "clean_up": ("Delete old tasks", "The number of deleted tasks."),
    "get_task": ("Get a task", "The task and its history."),
    "cancel_task": ("Cancel a task", "The cancelled task."),
    "upload_file": ("Upload a file", "The stored file."),
    "download_file": ("Download a file", "The file's bytes."),
    "report_status": ("Report a task's status", "The task's status now."),
    "store_log": ("Store a task's log", "The stored session."),
    "get_log": ("Get a task's log", "The session that was stored last."),
    "create_key": ("Create a scoped key", "The new key and its secret."),
    "list_keys": ("List scoped keys", "All scoped keys, the oldest first."),
    "list_uses": ("Read the audit log", "The entries, the newest first."),
    "get_key": ("Get a scoped key", "The key, without its secret."),
    "rotate_key": ("Rotate a scoped key", "The key and its new secret."),
    "revoke_key": ("Revoke a scoped key", "The revoked key."),
    "delete_key": ("Delete a scoped key", "The key is deleted."),
    "create_token": ("Create a registration token", "The new token and its secret."),
    "list_tokens": ("List registration tokens", "All tokens, the oldest first."),
    "get_token": ("Get a registration token", "The token, without its secret."),
    "delete_token": ("Revoke a registration token", "The token is revoked."),
    "get_statistics": ("Get the fleet's statistics", "Numbers of nodes and tasks."),
    "show_dashboard": ("Get the dashboard", "The page."),
}
"""For each operation, its summary and the description of its response 200."""

_OPERATIONS = ("get", "post", "delete")

Json = dict[str, Any]


def schema_of(app: FastAPI) -> Json:
    """Return the whole contract as OpenAPI 3.1."""
    schema = get_openapi(
        title="Victoria Terminal orchestrator",
        version=app.version,
        openapi_version="3.1.0",
        summary="Assigns tasks to the hosts that run Victoria Terminal.",
        description=DESCRIPTION,
        routes=app.routes,
        tags=TAGS,
        servers=[{"url": "/", "description": "The server that this file comes from."}],
        contact={"name": "The operator of the server"},
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    for path in schema["paths"].values():
        for method in _OPERATIONS:
            if method in path:
                _complete(path[method])
    models = schema["components"]["schemas"]
    # FastAPI's own form of errors, which no response has.
    for name in ("HTTPValidationError", "ValidationError"):
        models.pop(name, None)
    requests = _request_models(schema)
    # Any JSON, which needs no name.
    del models["JsonValue"]
    for name, model in models.items():
        if "$ref" in model.get("additionalProperties", {}):
            model["additionalProperties"] = True
        for field in model.get("properties", {}).values():
            _tidy(field, keep_null=name in requests)
    schema["components"]["responses"] = {
        str(code): described_problem(code) for code in sorted(SENTENCES)
    }
    for name, example in EXAMPLES.items():
        models[name]["examples"] = [example]
    return schema


def _complete(operation: Json) -> None:
    """Add summary, security and the responses that FastAPI does not know."""
    summary, description = _SUMMARIES[operation["operationId"]]
    operation["summary"] = summary
    operation["security"] = [
        # FastAPI has the roles here, where linters want them declared, which keys cannot have.
        {name: _move_roles(operation, roles) for name, roles in alternative.items()}
        for alternative in operation.get("security", [])
    ]
    responses = operation["responses"]
    responses["200"]["description"] = description
    for content in responses["200"].get("content", {}).values():
        content.get("schema", {}).pop("title", None)
    for parameter in operation.get("parameters", []):
        _tidy(parameter["schema"])
        if "description" in parameter:
            parameter["schema"].pop("description", None)
    # Every call can have a body that is too large.
    codes = {int(code) for code in responses if code >= "400"} | {413, 503}
    if "parameters" in operation:
        codes |= {422}
    if "requestBody" in operation:
        codes |= {400, 422}
    responses.update(
        {str(code): {"$ref": f"#/components/responses/{code}"} for code in sorted(codes)}
    )
    operation["responses"] = dict(sorted(responses.items()))


def _move_roles(operation: Json, roles: list[str]) -> list[str]:
    """Write the roles that a scoped key needs into the description."""
    if roles:
        names = " or ".join(f"`{role}`" for role in roles)
        operation["description"] += f"\n\nA scoped key needs the role {names}."
    return []


def _request_models(schema: Json) -> set[str]:
    """Return the names of the models that are in requests, at any depth."""
    waiting = [
        operation.get("requestBody", {})
        for path in schema["paths"].values()
        for operation in path.values()
    ]
    names: set[str] = set()
    while waiting:
        for reference in _references(waiting.pop()):
            name = reference.rpartition("/")[2]
            if name not in names:
                names.add(name)
                waiting.append(schema["components"]["schemas"][name])
    return names


def _references(part: object) -> list[str]:
    if isinstance(part, list):
        return [found for item in part for found in _references(item)]
    if not isinstance(part, dict):
        return []
    own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
    return own + [found for value in part.values() for found in _references(value)]


def _tidy(field: Json, *, keep_null: bool = False) -> None:
    """Write a field as people do: without pydantic's titles, and null as a type or not at all.

    Requests may have null, responses leave the field out.
    """
    field.pop("title", None)
    if "default" in field and field["default"] is None:
        del field["default"]
    choices = field.get("anyOf", [])
    others = [choice for choice in choices if choice != {"type": "null"}]
    if len(others) != 1 or len(choices) != len(others) + 1:
        return
    (other,) = others
    if not keep_null or "type" in other:
        del field["anyOf"]
        field.update({**other, **field})
        if keep_null:
            field["type"] = [other["type"], "null"]


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
