"""Lists: pages that miss and repeat nothing, filters, and the index of each."""

from datetime import datetime, timezone

import httpx
import pytest
from sqlalchemy import update

from orchestrator.auth import Caller
from orchestrator.db.tables import Task
from orchestrator.model import Role
from orchestrator.routes.lists import NodeQuery, TaskQuery, node_list, task_list
from orchestrator.schemas.bodies import ADMIN_CREATOR
from tests.orchestrator.serving import Json, RunningOrchestrator, ok, refusal, rows

NODE_ID = "7d0c6c3e-5f0a-4b53-9f0e-2a4d1c8b7e61"
ADMIN = Caller("admin", Role.ADMIN, ("*",), "")
OPERATOR = Caller(NODE_ID, Role.OPERATOR, ("*",), "")


def _pages(client: httpx.Client, path: str) -> list[list[Json]]:
    """Follow `Link` from the first page to the last."""
    response = client.get(path)
    pages = [rows(response)]
    while "next" in response.links:
        response = client.get(response.links["next"]["url"])
        pages.append(rows(response))
    return pages


@pytest.mark.both_databases
def test_pages_miss_and_repeat_nothing_whatever_comes_and_goes(
    orchestrator: RunningOrchestrator,
) -> None:
    created = [orchestrator.create_task(f"old {n}")["id"] for n in range(5)][::-1]
    response = orchestrator.admin.get("/tasks?text=old&limit=2&status_filter=pending")
    seen = [task["id"] for task in rows(response)]
    orchestrator.create_task("old, but newer")
    ok(orchestrator.admin.post(f"/tasks/{created[1]}/purge"))
    orchestrator.cancel(created[2])
    following = _pages(orchestrator.admin, response.links["next"]["url"])
    assert seen == created[:2]
    assert [[task["id"] for task in page] for page in following] == [created[3:]]


@pytest.mark.both_databases
def test_nodes_come_in_pages_the_oldest_first(orchestrator: RunningOrchestrator) -> None:
    registered: list[str] = []
    for count, sizes in ((0, [0]), (4, [2, 2]), (5, [2, 2, 1])):
        registered += [orchestrator.register().id for _ in range(count - len(registered))]
        pages = _pages(orchestrator.admin, "/nodes?limit=2")
        assert [len(page) for page in pages] == sizes
        assert [node["id"] for page in pages for node in page] == registered
    assert "Link" not in orchestrator.admin.get("/nodes").headers


@pytest.mark.both_databases
def test_task_is_listed_if_it_meets_every_filter(orchestrator: RunningOrchestrator) -> None:
    key = orchestrator.create_key(role="operator")
    scoped = orchestrator.client(key["api_key"])
    one, other = orchestrator.register("one"), orchestrator.register("other")
    orchestrator.assign(one, "success", prompt="a", target_tags={})
    orchestrator.assign(one, "running", prompt="b", target_node_id=None)
    orchestrator.assign(other, "success", prompt="100% of c_d")
    tags = {'q"u.o$te': "a=b", "env": "eu"}
    orchestrator.create_task("d", target_tags=tags, scheduled_for=orchestrator.moment(days=1))
    later = {"target_tags": {"env": "eu"}, "scheduled_for": orchestrator.moment(days=1)}
    ok(scoped.post("/tasks", json={"prompt": "Ende E", **later}))
    for day, task in enumerate(reversed(orchestrator.tasks()), 1):
        at = datetime(2026, 1, day, tzinfo=timezone.utc)
        orchestrator.change(update(Task).where(Task.id == task["id"]).values(created_at=at))
    cases: list[tuple[Json, str]] = [
        ({"status_filter": "success"}, "100% of c_d,a"),
        ({"status_filter": ""}, "Ende E,d,100% of c_d,b,a"),
        ({"node": "one"}, "b,a"),
        ({"node": one.id, "status_filter": "running"}, "b"),
        ({"node": "nobody"}, ""),
        ({"tag": "env=eu"}, "Ende E,d"),
        ({"tag": ["env=eu", 'q"u.o$te=a=b']}, "d"),
        ({"tag": "env=e"}, ""),
        ({"created_by": key["key_id"]}, "Ende E"),
        ({"created_by": ADMIN_CREATOR, "status_filter": "pending"}, "d"),
        ({"created_after": "2026-01-04T00:00:00Z"}, "Ende E,d"),
        ({"created_before": "2026-01-02T01:00:00+01:00"}, "a"),
        ({"created_after": "2026-01-02", "created_before": "2026-01-03"}, "b"),
        ({"created_after": "2027-01-01"}, ""),
        ({"text": "END"}, "Ende E"),
        ({"text": "0% of c_"}, "100% of c_d"),
        ({"text": "%"}, "100% of c_d"),
    ]
    for params, prompts in cases:
        listed = rows(orchestrator.admin.get("/tasks", params=params))
        assert ",".join(task["prompt"] for task in listed) == prompts, params
    assert [task["prompt"] for task in rows(scoped.get("/tasks?tag=env=eu"))] == ["Ende E"]
    ok(orchestrator.admin.delete(f"/nodes/{other.id}"))
    assert len(rows(orchestrator.admin.get("/tasks", params={"node": other.id}))) == 1


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/tasks?status=pending", "status is not a parameter of this list"),
        ("/nodes?name=a", "name is not a parameter of this list"),
        ("/tasks?tag=env", "tag.0 must be key=value"),
        ("/tasks?created_by=admin", "created_by must be the id of a key, a UUID"),
        ("/tasks?limit=0", "limit must be at least 1"),
        ("/tasks?created_after=monday", "created_after must be a date and time"),
        ("/tasks?created_before=0.5", "created_before must be a date and time"),
        ("/tasks?cursor=WzFd&limit=x", "limit must be a whole number"),
        ("/tasks?cursor=nonsense", "cursor is not of this list"),
        ("/tasks?cursor=ü", "cursor is not of this list"),
        # In base64: half a number, a negative one, one that is too large, two texts, a number.
        ("/tasks?cursor=WzEuNV0", "cursor is not of this list"),
        ("/tasks?cursor=Wy0xXQ", "cursor is not of this list"),
        ("/tasks?cursor=Wzk5OTk5OTk5OTk5OTk5OTk5OTld", "cursor is not of this list"),
        ("/nodes?cursor=WyJhIiwgImIiXQ", "cursor is not of this list"),
        ("/nodes?cursor=WzFd", "cursor is not of this list"),
    ],
)
def test_parameter_that_a_list_cannot_use_is_422(
    shared: RunningOrchestrator, path: str, word: str
) -> None:
    code, sentence = refusal(shared.admin.get(path))
    assert (code, sentence[: len(word)]) == (422, word)


def test_unknown_parameters_of_other_calls_are_ignored(shared: RunningOrchestrator) -> None:
    node = shared.register()
    assert node.http.get("/tasks/pending?further=1").status_code == 200
    assert shared.admin.get(f"/nodes/{node.id}?further=1").status_code == 200


@pytest.mark.parametrize(
    ("query", "caller", "index"),
    [
        ({}, ADMIN, "SCAN tasks"),
        ({"status_filter": "success"}, ADMIN, "ix_tasks_listed_status (status=?)"),
        ({"node": NODE_ID}, ADMIN, "ix_tasks_listed_node (assigned_node_id=?)"),
        ({"node": NODE_ID, "status_filter": "error"}, ADMIN, "ix_tasks_node (assigned_node_id=?"),
        ({"created_by": NODE_ID}, ADMIN, "ix_tasks_listed_creator (created_by=?)"),
        ({}, OPERATOR, "ix_tasks_listed_creator (created_by=?)"),
        ({"status_filter": "error"}, OPERATOR, "ix_tasks_creator (created_by=? AND status=?)"),
        ({"created_after": "2026-01-01"}, ADMIN, "ix_tasks_listed_time (created_at>?)"),
        ({"created_before": "2026-01-01"}, ADMIN, "ix_tasks_listed_time (created_at<?)"),
        ({"cursor": "WzFd"}, ADMIN, "INTEGER PRIMARY KEY (rowid<?)"),
    ],
)
def test_page_of_tasks_is_read_from_an_index(
    shared: RunningOrchestrator, query: Json, caller: Caller, index: str
) -> None:
    with shared.database() as database, database.reading() as session:
        statement = task_list(session, caller, TaskQuery(limit=100, **query))
        sql = statement.compile(session.get_bind(), compile_kwargs={"literal_binds": True})
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}")
        steps = " / ".join(row[3] for row in plan)
    assert index in steps
    # Neither all tasks are sorted for one page, nor, but for the list of all, read.
    assert "TEMP B-TREE" not in steps
    assert ("SCAN" in steps) is (index == "SCAN tasks")


def test_page_of_nodes_is_read_from_an_index(shared: RunningOrchestrator) -> None:
    shared.register()
    link = shared.admin.get("/nodes?limit=1").links.get("next")
    cursor = None if link is None else httpx.URL(link["url"]).params["cursor"]
    with shared.database() as database, database.reading() as session:
        statement = node_list(session, ADMIN, NodeQuery(limit=1, cursor=cursor))
        sql = statement.compile(session.get_bind(), compile_kwargs={"literal_binds": True})
        [step] = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}")
    assert "USING INDEX ix_nodes_listed" in step[3]
