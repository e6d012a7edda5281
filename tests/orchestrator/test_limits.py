"""What the orchestrator takes, its runner can run; what the runner sends, the orchestrator takes.

The two share no code. Here the schemas of one meet the parser and the options of the other.
"""

import json
import string
import uuid
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.model import NodeStatus
from orchestrator.routes.reports import MAX_LOG_BYTES
from orchestrator.schemas import bodies, types
from orchestrator.schemas.bodies import NewTask
from orchestrator.security import task_key
from orchestrator.serve import main
from orchestrator.uploads import plain_name, stored_name
from runner.api import assignment
from runner.crush.sessions import LOG_LIMIT_BYTES
from runner.errors import BadAssignment
from runner.model import MOST_MESSAGE_CHARS, is_task_id
from runner.settings import MAX_NAME_CHARS, MAX_TAGS, check_capabilities, check_name, parse_tags
from tests.orchestrator.serving import sha256

TASK_ID = str(uuid.uuid4())
MOST = types.MAX_PROMPT_BYTES
URLS = ["https://o.example.com", "https://[2001:db8::1]:8443/x", "http://10.0.0.1"]
UNUSABLE_URLS = ["https://münchen.example", "https://a b", "http://[::1", "https://", "ftp://a"]

prompts = st.text(st.characters() | st.sampled_from(string.whitespace + "\x1c\x1f\x85\0-"))
tasks = st.fixed_dictionaries(
    {"prompt": prompts},
    optional={
        "timeout_seconds": st.integers(-1, 1 << 40) | st.sampled_from([None, 0, 1, 0.5, "60"]),
        "priority": st.integers(),
        "files": st.lists(st.text(max_size=3).map(plain_name), unique=True),
    },
)


def is_created(body: dict[str, Any]) -> bool:
    """Return whether the orchestrator creates a task of this body."""
    try:
        NewTask.model_validate(body)
    except ValidationError:
        return False
    return True


def is_run(body: dict[str, Any]) -> bool:
    """Return whether the runner takes the assignment of such a task."""
    new = NewTask.model_construct(**body)
    files = new.files or []
    sent = bodies.Assignment.model_construct(
        task_id=TASK_ID,
        prompt=new.prompt,
        orchestrator_url=URLS[0],
        timeout_seconds=new.timeout_seconds,
        files=files,
        file_checksums=[sha256(b"") for _ in files],
        task_api_key=task_key(b"secret", TASK_ID, 1),
    )
    try:
        assignment.parse_assignment(vars(sent), orchestrator_url=URLS[0])
    except BadAssignment:
        return False
    return True


@settings(deadline=None)
@given(tasks)
@example({"prompt": "\x1c"})
@example({"prompt": "p", "timeout_seconds": 0})
@example({"prompt": "p", "timeout_seconds": 1 << 31})
def test_what_the_orchestrator_creates_its_runner_runs(body: dict[str, Any]) -> None:
    assert is_run(body) or not is_created(body)


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("prompt", ["x" * MOST, "ü" * (MOST // 2)], ["x" * (MOST + 1), "ü" * (MOST // 2 + 1)]),
        ("prompt", ["-" * (MOST - 7)], ["-" * (MOST - 6), f"-{'ü' * (MOST // 2 - 3)}"]),
        (
            "prompt",
            ["\ufeff", "\u200b", "\x01"],
            ["", " \n", "\x1c\x1f\x85\u2028", "a\0", "\ud800"],
        ),
        ("timeout_seconds", [0, 1, None, 366 * 24 * 3600], [-1, 366 * 24 * 3600 + 1, 1 << 31]),
        ("files", [[], [str(n) for n in range(1000)]], [[str(n) for n in range(1001)], ["a", "a"]]),
    ],
    ids=["length", "length with a dash", "blank", "timeout", "files"],
)
def test_both_have_the_same_limits(name: str, taken: list[Any], refused: list[Any]) -> None:
    for values, expected in ((taken, True), (refused, False)):
        for value in values:
            body = {"prompt": "p", name: value}
            assert (is_created(body), is_run(body)) == (expected, expected)


@settings(deadline=None)
@given(st.text())
def test_name_of_a_stored_file_is_one_that_the_runner_takes(original: str) -> None:
    assert is_run({"prompt": "p", "files": [stored_name("0" * 36, original * 9)]})


@pytest.mark.parametrize("url", URLS + UNUSABLE_URLS + ["https://" + "a" * 2000])
def test_public_url_is_one_that_the_runner_takes(url: str) -> None:
    try:
        assignment.parse_assignment(
            {"task_id": TASK_ID, "prompt": "p", "orchestrator_url": url}, orchestrator_url=""
        )
        is_taken = True
    except BadAssignment:
        is_taken = False
    # It goes on to the next mistake, if this is none.
    done = CliRunner().invoke(main, ["--public-url", url, "--port=70000"])
    assert "Traceback" not in done.output
    assert ("--public-url" not in done.stderr) == is_taken == (url in URLS)


def test_what_the_runner_sends_the_orchestrator_takes() -> None:
    long = "ü" * MAX_NAME_CHARS
    described = {
        "name": check_name(long),
        "capabilities": check_capabilities((long,) * MAX_TAGS),
        "tags": parse_tags(f"{number:0{MAX_NAME_CHARS}}={long}" for number in range(MAX_TAGS)),
    }
    bodies.Registration.model_validate({"hostname": "h" * 64, "os_type": "linux", **described})
    ids = [f"{number:0128}" for number in range(1000)]
    assert all(map(is_task_id, ids))
    beat = {"status": NodeStatus.BUSY, "current_task_id": ids[0], "task_ids": ids}
    assert bodies.Heartbeat.model_validate({"node_id": TASK_ID, **beat}).held_task_ids == ids
    report = {"task_id": ids[0], "status": "success", "message": "ü" * MOST_MESSAGE_CHARS}
    assert bodies.Report.model_validate_json(json.dumps(report)).about == ids[0]
    assert LOG_LIMIT_BYTES <= MAX_LOG_BYTES
